import json
import shutil

import pytest
from huggingface_hub import ModelCard
from tiny import task

from post_training.core import hub
from post_training.lineage import collect, verify
from post_training.release import card

RESULTS = {"kind": "exact_match", "rows": 20, "exact_match": 0.75, "loss": 0.5, "stopped": 1.0}


@pytest.fixture
def model(exported, tmp_path):
    """A copy of the run with its model, as an output base."""
    shutil.copytree(exported.parents[1], tmp_path / exported.parents[1].name)
    return tmp_path / exported.parents[1].name / "model"


def evaluation(path, fingerprint, **changes):
    path.parent.mkdir(parents=True)
    path.write_text(
        json.dumps({"stage": "evaluate", "fingerprint": fingerprint, "results": {"tasks": RESULTS | changes}})
    )
    return path


def test_an_export_has_a_card_that_the_hub_reads(model):
    found = ModelCard.load(model / "README.md")
    assert found.data.library_name == "transformers" and found.data.pipeline_tag == "text-generation"
    assert found.data.tags == ["trl", "post-training", "conversational", "sft"]
    assert found.data.base_model is None, "a model that is not on the Hub has no name there"
    text = found.text.strip()
    assert text.startswith("# sft") and "| `learning_rate` | 0.001 |" in text and "| `steps` | 6 |" in text
    assert 'pipeline("text-generation"' in text and "## Evaluation" not in text


def test_the_rule_writes_it_again_with_the_evaluation(model):
    made = card_stage(model)
    found = ModelCard.load(model / "README.md")
    assert (model / "README.md").read_text() == (made.parent / "README.md").read_text()
    assert "| tasks | exact match | 0.25 | 0.75 | 20 |" in found.text
    assert "| pick | acc | 0.250 ± 0.125 | 0.500 |" in found.text
    (measured,) = [result for result in found.data.eval_results if result.metric_type == "acc"]
    assert (measured.dataset_name, measured.metric_value) == ("pick (lm_eval)", 0.5)
    (measured,) = [result for result in found.data.eval_results if result.metric_type == "exact_match"]
    assert (measured.dataset_name, measured.metric_value) == ("tasks", 0.75)
    assert found.data.model_name


def test_the_weights_manifest_stays_true_and_an_edited_card_is_told(model):
    lineage = collect(model)
    lineage["stages"] = {lineage["root"]: lineage["stages"][lineage["root"]] | {"expected": {}}}
    assert verify(lineage).problems == []
    card_stage(model)
    assert verify(lineage).problems == [], "the card is one of those that were written"
    (model / "README.md").write_text((model / "README.md").read_text() + "more")
    assert [problem["file"] for problem in verify(lineage).problems] == ["README.md"]


def benchmarked(path, fingerprint, value, stderr):
    path.parent.mkdir(parents=True)
    results = {"pick": {"acc": {"value": value, "stderr": stderr, "higher_is_better": True}}}
    path.write_text(json.dumps({"stage": "lm_eval", "fingerprint": fingerprint, "results": results}))
    return path


def card_stage(model):
    base = model.parents[1]
    inputs = {
        "base evaluate": evaluation(base / "evaluations" / "b" / "manifest.json", "b" * 64, exact_match=0.25),
        "base lm_eval": benchmarked(base / "lm_eval" / "b" / "manifest.json", "d" * 64, 0.25, 0.125),
        "export": model / "manifest.json",
        "model lm_eval": benchmarked(base / "lm_eval" / "m" / "manifest.json", "e" * 64, 0.5, None),
        "model evaluate": evaluation(base / "evaluations" / "m" / "manifest.json", "c" * 64),
    }
    made = task("card", {}, {}, inputs, base / "cards" / "sft-1" / "manifest.json")
    card.run(made)
    return made.output


def test_sources_with_their_revisions_and_licences():
    download = {
        "stage": "download",
        "repository": "org/data",
        "revision_sha": "a" * 40,
        "license": "cc-by-4.0",
        "inputs": {},
    }
    stages = {
        "r/model": {"stage": "export", "inputs": {"train": "r", "data": "mix"}, "versions": {}, "git": None},
        "r": {
            "stage": "train",
            "inputs": {"model": "m", "data": "mix"},
            "config": {
                "method": "sft",
                "sft": {"packing": True},
                "training": {"max_steps": 3},
                "model": {"dtype": "bfloat16"},
            },
        },
        "m": {
            "stage": "download_model",
            "repository": "org/base",
            "revision_sha": "b" * 40,
            "license": "mit",
            "inputs": {},
        },
        "mix": {
            "stage": "mix",
            "rows_out": 7,
            "inputs": {"d": "tok"},
            "table": [{"name": "d", "rows_used": 5, "tokens": 1000, "trained_tokens": 500, "share": 1.0}],
        },
        "tok": {"stage": "tokenize", "inputs": {"rows": "tra", "model": "m"}},
        "tra": {"stage": "transform", "inputs": {"raw": "raw"}},
        "raw": download,
    }
    made = ModelCard(card.card({"root": "r/model", "stages": stages, "gpu_hours": 1.5}, {}, {}))
    assert (made.data.base_model, made.data.datasets, made.data.license) == ("org/base", ["org/data"], "mit")
    assert (
        "| d | [org/data](https://huggingface.co/datasets/org/data) at `aaaaaaaaaaaa` | cc-by-4.0 | 5 | 1,000 | 500 | 100.0% |"
        in made.text
    )
    assert "1.50 GPU-hours" in made.text


@pytest.mark.parametrize(
    "text,licence", [("---\nlicense: mit\n---\n", "mit"), ("no header", None), ("---\n: [\n---\n", None)]
)
def test_licence_of_a_source(tmp_path, text, licence):
    (tmp_path / "README.md").write_text(text)
    assert hub.licence_of(tmp_path / "README.md") == licence
    assert hub.licence_of(tmp_path / "absent.md") is None
