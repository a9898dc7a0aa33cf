"""Predicted beside measured; the table; names, and the keys of the configuration."""

import json
import re
from pathlib import Path

import pytest
from tiny import task

from post_training import preflight
from post_training.core.errors import ConfigError
from post_training.preflight import check, measurements, resources
from post_training.preflight.check import NAMES, Check, only_warn, table
from post_training.run_dir import predictions


def test_the_table_has_what_a_user_needs():
    checks = [Check("data.dropped", "3 rows [all]", "failure", "fix it", "sft"), check.check("resources.disk", "1 GiB")]
    text = table(checks)
    assert "3 rows [all]" in text and "fix it" in text
    assert [line.split()[0] for line in text.splitlines()] == [
        "check",
        text.splitlines()[1],
        "data.dropped",
        "resources.disk",
    ]
    assert max(map(len, text.splitlines())) <= 160
    assert checks[0].line() == "preflight failure: sft: data.dropped: 3 rows [all]; fix it"


def test_a_failure_that_is_only_warned_of():
    checks = [Check("data.dropped", "", "failure"), Check("resources.disk", "", "failure")]
    assert [c.verdict for c in only_warn(checks, ["resources.disk"])] == ["failure", "warning"]


def test_every_check_is_in_the_documentation():
    told = (Path(__file__).parents[3] / "docs" / "preflight.md").read_text()
    rows = [line.split("|")[1] for line in told.splitlines() if line.startswith("| `")]
    assert sorted(name for row in rows for name in re.findall(r"`([\w.]+)`", row)) == sorted(NAMES)


def test_names_in_the_code_are_those_on_offer():
    source = "\n".join(path.read_text() for path in Path(check.__file__).parent.glob("*.py") if path.name != "check.py")
    groups = {name.partition(".")[0] for name in NAMES}
    found = {name for name in re.findall(r'"([a-z]+\.[a-z_]+)"', source) if name.partition(".")[0] in groups}
    found.discard("model.safetensors")  # a file
    assert found == set(NAMES)


@pytest.mark.parametrize(
    "changes,said",
    [
        (
            {"preflight__only_warn": ["data.droped"]},
            r"preflight\.only_warn: found 'data\.droped'\. Did you mean 'data\.dropped'",
        ),
        ({"preflight__min_trained_share": 0.99}, r"preflight\.min_trained_share: found 0\.99"),
        ({"preflight__probe_steps": 1}, r"preflight\.probe_steps: found 1"),
        ({"slurm__gpu_model": "h100"}, r"slurm\.gpu_model: found 'h100'"),
    ],
)
def test_keys_are_checked_when_it_is_planned(template, changes, said):
    from tiny import pipeline_of

    from post_training.plan.checks import check_view

    with pytest.raises(ConfigError, match=said):
        check_view("sft", pipeline_of(template, **changes))


def test_predicted_and_measured_side_by_side(tmp_path):
    checks = [Check("data.dropped", "", stage=stage).as_json() for stage in ("sft", "dpo", "")]
    checks += [Check("optimisation.batch", name, stage="sft", runs=(name,)).as_json() for name in ("x", "y")]
    mine = {"stage": "sft", "runs": ["x"], "predicted": {"steps": 4}, "work": {"method": "sft"}}
    (tmp_path / "made.json").write_text(json.dumps({"checks": checks, "trainings": {"sft-x": mine}}))
    run = tmp_path / "sft-x"
    training = task("train", {}, {"preflight": str(tmp_path / "made.json")}, {}, run / "manifest.json")
    predictions.begin(task("train", {}, training.runtime, {}, tmp_path / "dpo-x" / "manifest.json"), "dpo")
    assert not (tmp_path / "dpo-x").exists()  # nothing is known of that training
    run.mkdir()
    predictions.begin(training, "sft")
    told = json.loads((run / "preflight.json").read_text())
    assert (told["predicted"], told["measured"]) == ({"steps": 4}, None)
    assert [(entry["stage"], entry["value"]) for entry in told["checks"]] == [("sft", ""), ("", ""), ("sft", "x")]

    checkpoint = run / "checkpoints" / "checkpoint-4"
    checkpoint.mkdir(parents=True)
    (checkpoint / "weights").write_bytes(b"1234")
    facts = {"world_size": 2, "tokens": 400, "seconds": 36.0, "peak_memory_bytes": 7, "device_name": "H100"}
    lines = [{"step": n, "tokens_per_second": rate} for n, rate in enumerate((1.0, 50.0, 50.0, 60.0), 1)]
    predictions.end(training, facts, lines, checkpoint)
    assert json.loads((run / "preflight.json").read_text())["measured"] == {
        "method": "sft",
        "steps": 4,
        "tokens": 400,
        "tokens_per_second": 50.0,
        "step_seconds": 2.0,
        "hours": 0.01,
        "gpu_hours": 0.02,
        "peak_memory_bytes": 7,
        "checkpoint_bytes": 4,
        "checkpoints_bytes": 4,
        "world_size": 2,
        "hardware": "H100",
    }


def test_a_training_by_hand_has_none(tmp_path):
    training = task("train", {}, {}, {}, tmp_path / "manifest.json")
    predictions.begin(training, "sft")
    predictions.end(training, {}, [], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_was_measured_corrects_the_prediction(subject_of, tmp_path):
    subject = subject_of()
    probe = tmp_path / "preflight_probe" / "sft-x"
    probe.mkdir(parents=True)
    work = measurements.work(subject) | measurements.batch_of(subject.view)
    measured = work | {"tokens_per_second": 10.0, "world_size": 1, "peak_memory_bytes": 5 << 30}
    (probe / "preflight.json").write_text(
        json.dumps({"predicted": {"peak_memory_bytes": 1 << 30}, "measured": measured})
    )
    assert resources.memory_check(subject).verdict == "ok"
    subject.rates = measurements.measurements(tmp_path)
    found = resources.memory_check(subject)
    assert found.verdict == "failure" and "times 5.00 as measured by sft-x" in found.value
    # Of another batch nothing is known.
    subject.view["training"]["per_device_train_batch_size"] = 2
    assert measurements.memory_correction(subject) is None


def test_warnings_of_a_preflight_are_kept(tmp_path):
    checks = [
        Check("data.dropped", "3 rows", "warning", "fix it").as_json(),
        Check("resources.disk", "1 GiB").as_json(),
    ]
    (tmp_path / "manifest.json").write_text(json.dumps({"checks": checks}))
    assert preflight.warnings(tmp_path / "manifest.json") == ["preflight warning: data.dropped: 3 rows; fix it"]
    assert preflight.warnings(tmp_path / "none.json") == []
