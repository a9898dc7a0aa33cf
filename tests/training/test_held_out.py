"""Evaluation during training, on the demo shrunk: what it measures, that it changes nothing, and what is decided by it."""

import json
import math
import shutil
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import make_here, metrics_of

from post_training.config import load_file, resolve
from post_training.core.errors import ConfigError, UserError
from post_training.plan import make_plan
from post_training.run_dir.checkpoints import complete_at, mark_complete, rotate

REPOSITORY = Path(__file__).resolve().parents[2]


def project(**changes) -> dict:
    """The demo at toy size with held-out rows; dropout draws random numbers at every step."""
    config = load_file(REPOSITORY / "config/config.yaml") | {"method": "dpo", "run_name": "tiny"}
    config["model"]["from_scratch"]["config"] |= {"num_hidden_layers": 1, "hidden_size": 32}
    config["training"] |= {"max_steps": 6}
    config["sft"]["model"] = {"lora": {"r": 4, "dropout": 0.1}}
    config["dpo"]["training"] |= {"max_steps": 4, "learning_rate": 1.0e-2}
    config["data"] |= {"eval_fraction": 0.02, "num_proc": 1}
    config |= {"logging": {"logging_steps": 3, "report_to": ["none"]}, "accelerate": {"use_cpu": True}}
    config["checkpointing"] |= {"save_steps": 4, "inference_checkpoint_steps": None}
    config["evaluation"] |= {"datasets": [], "during_training_steps": 2, "max_samples": 20}
    for key, value in changes.items():
        section, _, name = key.rpartition("__")
        place = config
        for part in filter(None, section.split("__")):
            place = place.setdefault(part, {})
        place[name] = value
    return config


def held_out_of(directory: Path) -> list[dict]:
    return [line for line in metrics_of(directory) if "eval_loss" in line]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The plan with evaluations every 2 steps, all of it made, and the folder that it was made in."""
    folder = tmp_path_factory.mktemp("held_out")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REPOSITORY)
        plan = make_plan(resolve(project(paths__output_base=str(folder / "on"))))
        for name in ("sft", "dpo"):
            make_here(plan, plan.evaluated[name])
    return plan, folder


def result(plan, model: str, rows: str) -> dict:
    return json.loads((plan.base / plan.evaluated[model].manifest).read_text())["results"][f"held-out {rows}"]


@pytest.mark.slow
def test_the_last_values_are_what_the_stage_evaluate_measures(made):
    plan, _ = made
    lines = held_out_of(plan.base / plan.trained["sft"].directory)
    assert [line["step"] for line in lines] == [0, 2, 4, 6]
    assert lines[-1]["eval_loss"] == pytest.approx(result(plan, "sft", "sft")["loss"], rel=1e-4)
    assert lines[0]["eval_loss"] > lines[-1]["eval_loss"] and lines[-1]["tokens"] > 0
    pairs = held_out_of(plan.base / plan.trained["dpo"].directory)
    assert [line["step"] for line in pairs] == [0, 2, 4]
    assert pairs[0]["eval_loss"] == pytest.approx(math.log(2)) and pairs[0]["eval_rewards/accuracies"] == 0
    # The reward is beta times what the log-probability has gained over the reference, the SFT model.
    gained = result(plan, "dpo", "dpo")["margin"] - result(plan, "sft", "dpo")["margin"]
    assert gained != 0 and pairs[-1]["eval_rewards/margins"] == pytest.approx(0.2 * gained, rel=1e-3, abs=1e-5)
    assert pairs[-1]["eval_loss"] < math.log(2) and pairs[-1]["eval_rewards/accuracies"] > 0.5
    # Training's own lines are as before, and the manifest has the last of both.
    manifest = json.loads((plan.base / plan.trained["dpo"].manifest).read_text())
    assert {"loss", "rewards/margins", "eval_loss"} <= set(manifest["metrics"]) and manifest["held_out"][
        "best_step"
    ] == 4


@pytest.mark.slow
def test_evaluating_changes_no_weight_and_no_training_metric(made, monkeypatch):
    plan, folder = made
    monkeypatch.chdir(REPOSITORY)
    off = project(paths__output_base=str(folder / "off"), evaluation__during_training_steps=None)
    without = make_plan(resolve(off))
    assert without.trained["sft"].fingerprint == plan.trained["sft"].fingerprint  # it makes nothing stale
    make_here(without, without.exported["sft"])
    runs = [one.base / one.trained["sft"].directory for one in (plan, without)]
    weights = [(run / "model" / "model.safetensors").read_bytes() for run in runs]
    assert weights[0] == weights[1] and not held_out_of(runs[1])
    same = ("step", "loss", "grad_norm", "mean_token_accuracy", "entropy", "tokens")
    lines = [[{key: line[key] for key in same} for line in metrics_of(run) if "loss" in line] for run in runs]
    assert lines[0] == lines[1]


@pytest.mark.slow
def test_a_resumed_run_evaluates_what_it_missed_and_keeps_its_reference(made, monkeypatch):
    plan, folder = made
    monkeypatch.chdir(REPOSITORY)
    # DPO, stopped by a signal at step 2: saved before it was evaluated.
    cut = make_plan(resolve(project(paths__output_base=str(folder / "cut"), dpo__checkpointing={"save_steps": 2})))
    shutil.copytree(plan.base, cut.base)
    run, whole = (one.base / one.trained["dpo"].directory for one in (cut, plan))
    shutil.rmtree(run)
    make_here(cut, cut.trained["dpo"])
    (run / "manifest.json").unlink()
    shutil.rmtree(run / "checkpoints" / "checkpoint-4")
    saved = complete_at(run / "checkpoints", 2)
    assert saved.facts["held_out"]["step"] == 2
    mark_complete(saved.path, 2, **{**saved.facts, "held_out": {"step": 0}})
    lines = metrics_of(run)
    kept = [line for line in lines if not ("eval_loss" in line and line["step"] == 2)]
    (run / "logs" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    make_here(cut, cut.trained["dpo"])
    timing = ("seconds", "tokens")
    ours, theirs = (
        [{k: v for k, v in line.items() if k not in timing} for line in held_out_of(one)] for one in (run, whole)
    )
    assert ours == theirs
    (run / "manifest.json").unlink()
    shutil.rmtree(run / "checkpoints" / "checkpoint-4")
    (run / "logs" / "held_out_reference.npy").unlink()
    with pytest.raises(UserError, match="this run began without"):
        make_here(cut, cut.trained["dpo"])


@pytest.mark.slow
def test_early_stopping_and_the_best_checkpoint(made, monkeypatch):
    plan, _ = made
    monkeypatch.chdir(REPOSITORY)
    changes = {"training__max_steps": 40, "method": "sft", "checkpointing__save_steps": 1, "export__checkpoint": "best"}
    changes |= {"training__early_stopping": {"patience": 2, "min_delta": 100.0}}  # which no step can meet but the first
    changes |= {"logging__report_to": ["tensorboard"]}
    stopped = make_plan(resolve(project(paths__output_base=str(plan.base), **changes)))
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(stopped.base / stopped.trained["sft"].directory / "logs"))
    assert stopped.trained["sft"].fingerprint != plan.trained["sft"].fingerprint
    make_here(stopped, stopped.exported["sft"])
    run = stopped.base / stopped.trained["sft"].directory
    manifest = json.loads((run / "manifest.json").read_text())
    losses = {line["step"]: line["eval_loss"] for line in held_out_of(run) if line["step"]}
    best = min(losses, key=losses.get)
    assert manifest["steps"] == 6 and list(losses) == [2, 4, 6]
    assert (
        manifest["final_checkpoint"] == f"checkpoints/checkpoint-{best}" and manifest["held_out"]["best_step"] == best
    )
    names = {path.name for path in (run / "checkpoints").glob("checkpoint-*")}
    assert names == {f"checkpoint-{step}" for step in {best, 5, 6}}
    events = EventAccumulator(str(run / "logs"))
    events.Reload()
    tracked = {event.step: event.value for event in events.Scalars("eval/loss")}
    assert {step: pytest.approx(value, rel=1e-5) for step, value in losses.items()} == {
        k: v for k, v in tracked.items() if k
    }
    exported = json.loads((run / "model" / "manifest.json").read_text())
    assert exported["checkpoint"] == manifest["final_checkpoint"]


def test_rotation_spares_the_best_checkpoint(tmp_path):
    for step in range(1, 7):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "weights").write_text("w")
        mark_complete(tmp_path / f"checkpoint-{step}", step)
        rotate(tmp_path, 2, best_step=2 if step >= 2 else None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-5", "checkpoint-6"]
    assert complete_at(tmp_path, 2).step == 2 and complete_at(tmp_path, 3) is None


@pytest.mark.parametrize(
    ("changes", "key", "remedy"),
    [
        ({"data__eval_fraction": 0.0}, "evaluation.during_training_steps", "set sft.data.eval_fraction"),
        ({"evaluation__during_training_steps": 0}, "evaluation.during_training_steps", "expected 1 or more"),
        ({"evaluation__during_training_steps": None, "training__early_stopping": {}}, "training.early_stopping", "set evaluation.d"),
        ({"evaluation__during_training_steps": None, "export__checkpoint": "best"}, "export.checkpoint", "set evaluation.during"),
        ({"export__checkpoint": "first"}, "export.checkpoint", "first"),
        ({"training__early_stopping": {"patience": 0}}, "training.early_stopping.patience", "expected 1 or more"),
    ],
)  # fmt: skip
def test_what_it_needs_is_said_at_plan_time(changes, key, remedy, monkeypatch, tmp_path):
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises(ConfigError) as caught:
        make_plan(resolve(project(paths__output_base=str(tmp_path), **changes)))
    assert caught.value.key == key and remedy in str(caught.value)


def test_nothing_is_stale_where_it_is_off(monkeypatch, tmp_path):
    """The keys that it added decide nothing until they are used."""
    monkeypatch.chdir(REPOSITORY)
    plan = make_plan(resolve(project(paths__output_base=str(tmp_path))))
    assert not {"early_stopping", "evaluation", "checkpoint"} & {
        *plan.trained["sft"].config,
        *plan.trained["sft"].config["training"],
    }
