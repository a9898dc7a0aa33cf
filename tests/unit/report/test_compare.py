"""Numbers and page of a comparison of runs."""

import base64
import hashlib
import json
import re

import numpy as np
import pytest

from post_training.config import resolve_runs
from post_training.core import html
from post_training.report.charts import of_runs, over_keys
from post_training.report.compare import compare, same_objective
from post_training.report.curves import AXES
from post_training.report.page import SHARED_PLOTLY, render

KEYS = ["dpo.beta", "dpo.training.seed", "dpo.loss_type"]
RUNS = [
    [f"b{beta}-s{seed}", dict(zip(KEYS, (beta, seed, "<sigmoid>"), strict=True))]
    for beta in (0.1, 0.3)
    for seed in (0, 1, 2)
]


def measure(number: int) -> dict[str, float]:
    return {"loss": 1.0 / (number + 1), "accuracy": 0.5 + number / 100}


def held_out(measure: str, higher: bool, examples: int = 100) -> dict:
    share = measure != "loss per token"
    return {"measure": measure, "share": share, "higher_is_better": higher, "examples": examples, "error": None}


HELD_OUT = {"loss": held_out("loss per token", False), "accuracy": held_out("preference accuracy", True)}


def of(measures: dict) -> dict:
    return {"measures": measures, "page": "", "totals": {"gpu_hours": 0, "seconds": 1.0}, "model": "outputs/m"}


@pytest.fixture
def numbers():
    return compare(
        RUNS,
        {
            name: of(measure(n)) | {"page": f"../{name}.html", "totals": {"gpu_hours": 1.0}}
            for n, (name, _) in enumerate(RUNS)
        },
        HELD_OUT,
        preferences=True,
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
    results = {"a": of({"x": 1.0}), "b": of({"y": 2.0})}
    numbers = compare([["a", {"k": 1}], ["b", {"k": 2}]], results)
    assert numbers["groups"][0]["spread"] == {"x": {"n": 1, "mean": 1.0, "min": 1.0, "max": 1.0}, "y": None}


def test_the_best_is_by_the_first_held_out_measure_that_tells_runs_apart(numbers):
    best = numbers["best"]
    assert (best["measure"], best["runs"]) == ("accuracy", ["b0.3-s0", "b0.3-s1", "b0.3-s2"])
    assert best["value"] == pytest.approx(0.54) and best["worst"] == pytest.approx(0.51)
    assert numbers["measures"][0] == "accuracy"
    # Equal on it, runs are told apart by the next one, whose lower values are better; what only training measured ranks nothing.
    runs = [["a", {"k": 1}], ["b", {"k": 2}]]
    results = {"a": of({"accuracy": 1.0, "loss": 0.3, "x": 9}), "b": of({"accuracy": 1.0, "loss": 0.2, "x": 1})}
    found = compare(runs, results, HELD_OUT, preferences=True)
    assert (found["best"]["measure"], found["best"]["runs"]) == ("loss", ["b"])
    results["b"]["measures"]["loss"] = 0.3
    assert compare(runs, results, HELD_OUT)["best"] is None


def test_what_scales_with_a_swept_key_is_not_shown_as_quality():
    assert not same_objective(RUNS)
    assert not same_objective([["a", {"data.datasets[0].weight": 1}], ["b", {"data.datasets[0].weight": 2}]])
    assert same_objective([["a", {"dpo.training.learning_rate": 1, "data.seed": 1, "dpo.model.lora.r": 8}]])


def test_measures_are_drawn_over_keys_that_are_swept_and_no_seeds(numbers):
    drawn = over_keys(numbers)
    assert list(drawn) == [
        "accuracy over dpo.beta",
        "accuracy over dpo.loss_type",
        "loss over dpo.beta",
        "loss over dpo.loss_type",
    ]
    chart = drawn["accuracy over dpo.beta"]
    assert chart["points"]["x"] == [0.1] * 3 + [0.3] * 3 and chart["mean"]["x"] == [0.1, 0.3]
    assert chart["mean"]["y"] == pytest.approx([0.51, 0.54]) and chart["format"] == ".0%" and not chart["log"]


def page_of(numbers, curves):
    lines, over = of_runs(numbers["runs"], curves, ["loss"]), over_keys(numbers)
    more = {"charts": lines | over, "over": list(over), "curves": list(lines), "lines": len(numbers["runs"])}
    return render("compare.html.jinja", **numbers, **more, name="swept")


def test_the_page_is_complete_and_escaped(numbers):
    curve = {"loss": {"title": "loss", "values": [2.0, 1.0], **{axis: [1, 2] for axis in AXES}}}
    page = page_of(numbers, {name: curve for name, _ in RUNS})
    body = page[page.index("<body>") : page.index("<script")]
    assert "Spread over seeds" in body and "&lt;sigmoid&gt;" in body and "<sigmoid>" not in page
    assert len(re.findall(r'<td><a href="\.\./b', body)) == len(RUNS) == body.count("★</td>") * 2
    assert "<title>swept</title>" in page and "Best by accuracy, mean over seeds: dpo.beta = 0.3" in body
    chart = json.loads(re.search(r'id="charts">(.*?)</script>', page)[1])["loss"]
    assert [line["colour"] for line in chart["lines"]] == [0, 0, 0, 1, 1, 1]


def test_without_seeds_there_is_no_spread():
    results = {name: of({"x": 1.0}) for name in "ab"}
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


def test_a_page_holds_its_library_or_loads_it_and_can_be_given_it(numbers, tmp_path):
    more = {"charts": {}, "over": [], "curves": [], "lines": 6, "name": "swept"}
    alone, shared = (render("compare.html.jinja", shared=shared, **numbers, **more) for shared in (False, True))
    assert len(alone) > 3_000_000 and len(shared) < 50_000 and "file:" not in alone.partition("</title>")[0]
    assert html.embed(alone, tmp_path) == alone
    (tmp_path / SHARED_PLOTLY).write_text("let a = '<\\/script>';")
    embedded = html.embed(shared, tmp_path)
    script = re.search(r"<script>(let a.*?)</script>", embedded)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in embedded.partition("</title>")[0] and 'name="library"' not in embedded
