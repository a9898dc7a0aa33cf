"""What the first screen says a run has gained, and which charts a training has."""

import math

import pytest

from post_training.report.charts import of_run
from post_training.report.measures import gain, headline, rows, score

MODELS = ["base", "sft", "dpo"]


def answers(match: float, loss: float) -> dict:
    return {"kind": "exact_match", "rows": 100, "exact_match": match, "loss": loss, "stopped": 1.0}


NUMBERS = {
    "evaluations": {
        "tasks": {"base": answers(0.0, 6.0), "sft": answers(0.9, 0.1), "dpo": answers(0.8, 0.2)},
        "held-out sft": {name: {"kind": "loss", "rows": 50, "loss": loss} for name, loss in zip(MODELS, (6.0, 0.1, 0.3), strict=True)},
    },
    "lm_eval": {
        "wiki": {
            name: {"word_perplexity": {"value": value, "stderr": None, "higher_is_better": False}}
            for name, value in zip(MODELS, (9.0, 11.0, 12.0), strict=True)
        },
        "old": {"base": {"acc": {"value": None, "stderr": None}}, "dpo": {"acc": {"value": 0.5, "stderr": 0.1}}},
    },
}  # fmt: skip


def test_better_is_by_each_measures_own_direction():
    measured = rows(NUMBERS)
    found = headline(measured, MODELS)
    assert found["better"] == ["tasks: exact match", "held-out sft: loss per token"]
    assert found["worse"] == ["wiki: word_perplexity"] and found["same"] == []
    assert found["before"] == "sft" and found["lost"] == [*found["better"], *found["worse"]]
    by_name = {(row["data"], row["measure"]): row for row in measured}
    assert by_name["tasks", "exact match"]["best"] == ["sft"]
    assert by_name["tasks", "exact match"]["errors"]["sft"] == pytest.approx(math.sqrt(0.9 * 0.1 / 100))
    assert by_name["tasks", "ended with a stop token"]["best"] == []
    assert by_name["held-out sft", "loss per token"]["best"] == ["sft"]
    # What is not known is not guessed.
    assert by_name["old", "acc"]["values"] == {"dpo": 0.5} and gain(by_name["old", "acc"], "base", "dpo") is None
    assert (score(0.9, True), score(0.12345), score(None)) == ("90.0 %", "0.1235", "–")


def curve(*values: float) -> dict:
    return {"title": "", "values": list(values), "step": [1, 2], "tokens": [1, 2], "seconds": [1, 2]}


@pytest.mark.parametrize(("loss_type", "level"), [("sigmoid", True), (["sigmoid"], True), ("ipo", False)])
def test_what_belongs_together_is_one_chart(loss_type, level):
    curves = {
        name: curve(0.7, 0.5) for name in ("loss", "rewards/chosen", "rewards/rejected", "eval_loss", "grad_norm")
    }
    curves["peak_memory_bytes"] = curve(2**30, 2**31)
    stage = {"name": "dpo", "curves": curves, "marks": [], "elapsed": {}, "data": [], "packing": {"max_seq_length": 8}}
    stage["config"] = {"method": "dpo", "dpo": {"loss_type": loss_type}}
    charts = of_run({"stages": [stage], "costs": []})
    names = [name.removeprefix("curve dpo ") for name in charts if name.startswith("curve")]
    assert names == ["loss", "rewards/chosen and rewards/rejected", "gradient norm", "peak memory (GiB)"]
    loss, rewards = charts["curve dpo loss"], charts["curve dpo rewards/chosen and rewards/rejected"]
    assert [line["name"] for line in loss["lines"]] == ["training", "held-out"]
    assert ("reference" in loss) == level and (not level or loss["reference"]["value"] == math.log(2))
    assert [line["name"] for line in rewards["lines"]] == ["chosen", "rejected"]
    memory = charts["curve dpo peak memory (GiB)"]
    assert memory["zero"] and memory["lines"][0]["values"] == [1.0, 2.0] and not loss["zero"]
