"""Where the time of a training went, from timelines whose answer is known."""

import json

import pytest

from post_training.report.collect import finite
from post_training.report.curves import curves, final, marks
from post_training.report.elapsed import PARTS, elapsed
from post_training.run_dir import metrics as metrics_file


def run_of(folder, *events, metrics=()):
    (folder / "logs").mkdir()
    (folder / "logs" / "timeline.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (folder / "logs" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    return folder


def event(name, time, **facts):
    return {"event": name, "time": time, **facts}


def parts(times):
    return {part.removesuffix("_seconds"): times[part] for part in PARTS}


def test_an_undisturbed_attempt(tmp_path):
    times = elapsed(
        run_of(
            tmp_path,
            event("start", 100.0, devices=4, job_id=None, submitted=None),
            event("train_begin", 110.0, step=0, lost_steps=0, lost_seconds=0.0, last_seen=None),
            event("first_step", 113.0, step=1),
            event("save", 120.0, step=50, seconds=2.0),
            event("save", 150.0, step=100, seconds=3.0),
            event("end", 151.0, step=100, why="done"),
        )
    )
    assert parts(times) == {
        "queue": 0, "start_up": 10, "first_step": 3, "training": 33, "saving": 5, "repeated": 0,
    }  # fmt: skip
    assert times["device_seconds_before_first_step"] == 40
    (start,) = times["starts"]
    assert (start["step"], start["end_step"], start["why"]) == (0, 100, "done")


def test_a_requeued_and_a_killed_attempt(tmp_path):
    run = run_of(
        tmp_path,
        event("start", 1000.0, devices=8, job_id="7", submitted=400.0),
        event("train_begin", 1060.0, step=0, lost_steps=0, lost_seconds=0.0, last_seen=None),
        event("first_step", 1070.0, step=1),
        event("save", 1200.0, step=40, seconds=10.0),
        event("end", 1201.0, step=40, why="SIGUSR1"),
        event("start", 1500.0, devices=8, job_id="7", submitted=None),  # Slurm started it again
        event("train_begin", 1550.0, step=40, lost_steps=0, lost_seconds=0.0, last_seen=1190.0),
        event("first_step", 1560.0, step=41),
        # killed after step 60, of which the last log was at 1660
        event("start", 2000.0, devices=8, job_id="9", submitted=1990.0),
        # killed while it loaded
        event("start", 2100.0, devices=4, job_id="10", submitted=2050.0),
        event("train_begin", 2130.0, step=40, lost_steps=20, lost_seconds=100.0, last_seen=1660.0),
        event("first_step", 2135.0, step=41),
        event("end", 2235.0, step=80, why="done"),
        metrics=[{"step": step, "tokens": 10 * step, "seconds": 2.0 * step, "loss": 1.0} for step in (39, 41, 80)],
    )
    times = elapsed(run)
    first, second, third, fourth = times["starts"]
    assert [start["why"] for start in times["starts"]] == ["SIGUSR1", "killed", "killed", "done"]
    assert (first["queue_seconds"], first["training_seconds"], first["saving_seconds"]) == (600, 121, 10)
    assert (second["queue_seconds"], second["repeated_seconds"], second["training_seconds"]) == (299, 100, 0)
    assert second["lost_steps"] == 20
    assert (third["queue_seconds"], third["start_up_seconds"], third["training_seconds"]) == (10, 0, 0)
    assert (fourth["queue_seconds"], fourth["start_up_seconds"], fourth["repeated_seconds"]) == (50, 30, 0)
    assert times["device_seconds_before_first_step"] == 8 * (60 + 50) + 4 * 30
    found = marks(metrics_file.read(run / "logs" / "metrics.jsonl"), times["starts"])
    assert [mark["step"] for mark in found] == [40, 40]
    assert found[0] == {"step": 40, "tokens": 390, "seconds": 78.0, "why": "SIGUSR1"}


def test_a_run_without_a_timeline_has_no_times(tmp_path):
    assert elapsed(tmp_path) == {}


def test_a_training_by_hand_begins_with_its_steps(tmp_path):
    begin = {"lost_steps": 0, "lost_seconds": 0.0, "last_seen": None}
    times = elapsed(
        run_of(tmp_path, event("train_begin", 5.0, step=0, **begin), event("train_begin", 9.0, step=3, **begin))
    )
    assert len(times["starts"]) == 2


def test_long_curves_keep_their_spikes():
    lines = [{"step": n, "tokens": n, "seconds": n, "loss": 1.0 + (n == 70_001) * 50} for n in range(1, 100_001)]
    curve = curves(lines, {}, 1)["loss"]
    assert len(curve["values"]) <= 1002 and max(curve["values"]) == 51.0
    assert curve["step"][0] == 1 and curve["step"][-1] == 100_000 and curve["step"] == sorted(curve["step"])
    assert final(lines)["loss"] == pytest.approx(1.0)


def test_nan_and_inf_are_left_out():
    """A float16 run logs an infinite norm where its loss was scaled too far; in JSON it would stop the page's script."""
    norms = [1.0, float("inf"), 2.0, float("nan")]
    lines = [{"step": n, "seconds": n, "loss": 1.0, "grad_norm": norm} for n, norm in enumerate(norms, 1)]
    drawn = curves(lines, {}, 1)["grad_norm"]
    assert drawn["values"] == [1.0, 2.0] and drawn["step"] == [1, 3] and "tokens" not in drawn
    assert final(lines)["grad_norm"] == 2.0
    assert finite({"a": [float("nan"), 1.0, {"b": float("inf")}]}) == {"a": [None, 1.0, {"b": None}]}


def test_utilisation_is_of_all_devices():
    lines = [
        {"step": 1, "tokens": 10, "seconds": 1.0, "loss": 2.0, "tokens_per_second": 100.0},
        {"step": 2, "loss": 1.0},
    ]
    drawn = curves(lines, {"device_peak_flops": 1e6, "flops_per_token": 5000, "model_flops_per_token": 4000}, 2)
    assert drawn["mfu"]["values"] == [0.2] and drawn["hfu"]["values"] == [0.25]
    assert drawn["loss"]["values"] == [2.0, 1.0]
