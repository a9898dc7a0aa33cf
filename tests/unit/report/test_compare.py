"""Numbers and page of a comparison of runs."""

import json
import re

import numpy as np
import pytest

from post_training.config import resolve_runs
from post_training.report.charts import of_runs
from post_training.report.compare import compare
from post_training.report.curves import AXES
from post_training.report.page import render

KEYS = ["dpo.beta", "dpo.training.seed", "dpo.loss_type"]
RUNS = [
    [f"b{beta}-s{seed}", dict(zip(KEYS, (beta, seed, "<sigmoid>"), strict=True))]
    for beta in (0.1, 0.3)
    for seed in (0, 1, 2)
]


def measure(number: int) -> dict[str, float]:
    return {"loss": 1.0 / (number + 1), "accuracy": 0.5 + number / 100}


@pytest.fixture
def numbers():
    return compare(
        RUNS,
        {
            name: {"measures": measure(n), "page": f"../{name}.html", "totals": {"gpu_hours": 1.0}}
            for n, (name, _) in enumerate(RUNS)
        },
    )


def test_replicas_are_one_group_with_its_spread(numbers):
    assert numbers["seeds"] == ["dpo.training.seed"]
    assert [group["values"]["dpo.beta"] for group in numbers["groups"]] == [0.1, 0.3]
    for first, group in zip((0, 3), numbers["groups"], strict=True):
        losses = [measure(number)["loss"] for number in range(first, first + 3)]
        found = group["spread"]["loss"]
        assert found == pytest.approx(
            {"n": 3, "mean": np.mean(losses), "std": np.std(losses, ddof=1), "min": min(losses), "max": max(losses)}
        )


def test_a_measure_that_a_run_lacks_is_left_out():
    results = {
        "a": {"measures": {"x": 1.0}, "page": "", "totals": {"gpu_hours": 0}},
        "b": {"measures": {"y": 2.0}, "page": "", "totals": {"gpu_hours": 0}},
    }
    numbers = compare([["a", {"k": 1}], ["b", {"k": 2}]], results)
    assert numbers["groups"][0]["spread"] == {"x": {"n": 1, "mean": 1.0, "min": 1.0, "max": 1.0}, "y": None}


def page_of(numbers, curves):
    return render(
        "compare.html.jinja", **numbers, charts=of_runs(numbers["runs"], curves, ["loss"]), lines=len(numbers["runs"])
    )


def test_the_page_is_complete_and_escaped(numbers):
    curve = {"loss": {"title": "loss", "values": [2.0, 1.0], **{axis: [1, 2] for axis in AXES}}}
    page = page_of(numbers, {name: curve for name, _ in RUNS})
    body = page[page.index("<body>") : page.index("<script")]
    assert "Spread over seeds" in body and "&lt;sigmoid&gt;" in body and "<sigmoid>" not in page
    assert len(re.findall(r'<a href="\.\./b', body)) == len(RUNS)
    (chart,) = json.loads(re.search(r'id="charts">(.*?)</script>', page)[1]).values()
    assert [line["colour"] for line in chart["lines"]] == [0, 0, 0, 1, 1, 1]


def test_without_seeds_there_is_no_spread():
    results = {name: {"measures": {"x": 1.0}, "page": "", "totals": {"gpu_hours": 0}} for name in "ab"}
    assert "Spread over seeds" not in page_of(compare([["a", {"k": 1}], ["b", {"k": 2}]], results), {"a": {}, "b": {}})


def test_values_are_those_that_a_run_had():
    file = {
        "method": "dpo",
        "training": {"max_steps": 3, "seed": 7},
        "data": {"datasets": [{"path": "a", "weight": 0.5}]},
        "sft": {},
        "dpo": {"data": {"datasets": [{"path": "p"}]}},
        "runs": {"plain": {}, "other": {"dpo.beta": "0.3", "dpo.training.seed": 1, "sft.data.datasets[0].weight": 2}},
    }
    keys = ["dpo.beta", "dpo.training.seed", "sft.data.datasets[0].weight", "training.seed", "method"]
    plain, other = ([pipeline.value(key) for key in keys] for pipeline in resolve_runs(file))
    assert plain == [0.1, 7, 0.5, 7, "dpo"]
    assert other == [0.3, 1, 2.0, 1, "dpo"]
