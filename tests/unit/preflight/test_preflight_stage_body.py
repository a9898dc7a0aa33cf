"""The rule's body in this process, on the tiny model: what is written, what is printed, how it ends."""

import json

import pytest
from tiny import pipeline_of

from post_training.__main__ import main
from post_training.core.task import Task
from post_training.preflight import resources

FACTS = {
    "trained_tokens": 400,
    "contradictory": None,
    "dropped": {},
    "held_out": {"rows": 0},
    "table": [{"name": "d", "tokens": 1000, "trained_tokens": 400, "rows_in": 96}],
    "files": [],
}


@pytest.fixture
def preflight(tmp_path, model_manifest, sft_rows, template, capfd):
    """Facts of the mix, keys of the configuration -> exit code, `preflight.json`, whether a manifest was written, output."""

    def run(facts=None, place="local", runs=None, **changes):
        base = tmp_path / "outputs"
        tokens, mix = base / "data" / "tokenized" / "d", base / "data" / "mixed" / "m" / "manifest.json"
        told = json.loads(sft_rows.read_text())
        for folder in (tokens, mix.parent):
            folder.mkdir(parents=True, exist_ok=True)
        (tokens / "manifest.json").write_text(
            json.dumps({"config": {"chat_template": template.read_text()}, "dropped": {}, "inputs": {}})
        )
        told |= FACTS | {"inputs": {"d": {"path": str(tokens / "manifest.json")}}} | (facts or {})
        told["shards"] = []
        mix.write_text(json.dumps(told))
        output = base / "preflight" / "p" / "manifest.json"
        output.parent.mkdir(parents=True, exist_ok=True)
        inputs = {"sft data": mix, "sft model": model_manifest}
        spec = {
            "stage": "preflight",
            "fingerprint": "0",
            "config": {"place": place},
            "inputs": dict.fromkeys(inputs, "0"),
        }
        trainings = [
            {"run": f"sft-{name}", "stage": "sft", "names": [name],
             "pipeline": pipeline_of(template, **changes, **more).frozen("sft")}
            for name, more in (runs or {"x": {}}).items()
        ]  # fmt: skip
        task = Task.of(spec, {"trainings": trainings}, inputs, output)
        code = main(["stage", str(task.saved())])
        found = json.loads((output.parent / "preflight.json").read_text())
        return code, found, output.is_file(), "".join(capfd.readouterr())

    return run


def test_a_sound_run_passes(preflight):
    code, found, written, told = preflight()
    assert (code, written) == (0, True), told
    assert found["verdict"] == "ok", told
    assert {check["name"].partition(".")[0] for check in found["checks"]} == {
        "assets",
        "gpu",
        "model",
        "template",
        "data",
        "optimisation",
        "libraries",
        "resources",
    }
    predicted = found["trainings"]["sft-x"]["predicted"]
    assert (
        predicted["steps"] == 6 and predicted["peak_memory_bytes"] > 0 and predicted["rate_from"].startswith("assumed")
    )
    assert "resources.memory" in told and "Traceback" not in told


WRONG = {"table": [{"name": "d", "tokens": 1000, "trained_tokens": 1000, "rows_in": 96}]}


def test_a_failure_stops_what_follows_in_a_line_each(preflight):
    code, found, written, told = preflight(WRONG, training__trainer_args={"adam_beta3": 1})
    assert (code, written, found["verdict"]) == (1, False, "failure")
    lines = [line for line in told.splitlines() if line.startswith("preflight")]
    assert [line.split(":")[2].strip() for line in lines[:2]] == ["data.trained_share", "libraries.arguments"]
    assert lines[2].startswith("preflight: 2 failed, and no GPU job starts; preflight.only_warn='[data.trained_share,")
    assert "Traceback" not in told


def test_a_failure_that_is_allowed_is_a_warning(preflight):
    code, found, written, _ = preflight(WRONG, preflight__only_warn=["data.trained_share"])
    assert (code, written, found["verdict"]) == (0, True, "warning")


def test_runs_on_the_same_data_are_looked_at_together(preflight):
    """What is alike is said once, and what is not names its runs; a run that is finished is left out."""
    rates = {name: {"training__learning_rate": rate} for name, rate in (("a", 1e-3), ("b", 1e-3), ("c", 9.0))}
    code, found, written, told = preflight(runs=rates)
    assert (code, written) == (1, False)
    entries = [entry for entry in found["checks"] if entry["name"] == "optimisation.learning_rate"]
    assert [(entry["verdict"], entry["runs"]) for entry in entries] == [("ok", ["a", "b"]), ("failure", ["c"])]
    assert len({entry["name"] for entry in found["checks"]}) == len(found["checks"]) - 1
    assert "preflight failure: sft (c): optimisation.learning_rate: 9 for sft" in told
    assert list(found["trainings"]) == ["sft-a", "sft-b", "sft-c"]


def test_a_finished_run_is_left_out(preflight, tmp_path):
    (tmp_path / "outputs" / "sft-c").mkdir(parents=True)
    (tmp_path / "outputs" / "sft-c" / "manifest.json").write_text("{}")
    code, found, _, told = preflight(runs={"a": {}, "c": {"training__learning_rate": 9.0}})
    assert (code, list(found["trainings"])) == (0, ["sft-a"]), told


def test_slurms_own_word(preflight, monkeypatch):
    from post_training.core.errors import ConfigError
    from post_training.slurm import check

    monkeypatch.setattr(resources, "gres", lambda partition: ["gpu:h200:8"])
    monkeypatch.setattr(check, "check_views", lambda views: [])
    changes = {"slurm__gpus_per_node": 2, "training__trainer_args": {}}
    code, found, _, told = preflight(place="slurm", **changes)
    named = {entry["name"]: entry for entry in found["checks"]}
    assert (code, named["resources.slurm"]["verdict"]) == (0, "ok"), told
    assert "(h200)" in named["resources.memory"]["value"] and "resources.wall_time" in named
    assert found["trainings"]["sft-x"]["predicted"]["gpu_hours"] is not None

    monkeypatch.setattr(check, "check_views", lambda views: ["not enough nodes are up"])
    named = {entry["name"]: entry for entry in preflight(place="slurm", **changes)[1]["checks"]}
    assert named["resources.slurm"]["verdict"] == "warning"

    def refuse(views):
        raise ConfigError("slurm.account", "found 'x', which the cluster's accounting does not know")

    monkeypatch.setattr(check, "check_views", refuse)
    code, found, _, told = preflight(place="slurm", **changes)
    assert code == 1 and "resources.slurm: slurm.account: found 'x'" in told
