"""The manifest of a training whose last checkpoint is complete; written by the launcher and by `train`."""

from pathlib import Path
from typing import Any

from post_training.config import batch, resolve
from post_training.core import manifest
from post_training.core.errors import UserError
from post_training.core.task import Task
from post_training.run_dir import metrics, predictions
from post_training.run_dir.checkpoints import Checkpoint, complete_at, newest_complete, undamaged, why_damaged

# Facts of the last checkpoint's marker that the manifest repeats.
_MEASURED = (
    "tokens", "trained_tokens", "parameters", "trainable_parameters", "device_name", "peak_memory_bytes", "energy_joules",
)  # fmt: skip


def last_checkpoint(task: Task, steps: int) -> Checkpoint | None:
    """The complete checkpoint of the last step, or of the one at which early stopping ended, if training has come so far."""
    newest = newest_complete(task.directory / "checkpoints").chosen
    return newest if newest and (newest.step >= steps or _held_out(newest).get("stopped")) else None


def _held_out(checkpoint: Checkpoint) -> dict[str, Any]:
    """What evaluations during training have found up to a checkpoint; empty without them."""
    return checkpoint.facts.get("held_out") or {}


def final_checkpoint(task: Task, last: Checkpoint, choice: str) -> Checkpoint:
    """The checkpoint that is exported. Raises UserError when the best one is gone."""
    step = _held_out(last)["best_step"] if choice == "best" else last.step
    found = complete_at(task.directory / "checkpoints", step)
    if found is None:
        raise UserError(
            f"{task.directory}/checkpoints: the checkpoint of the best step, {step}, is missing or incomplete; set export.checkpoint=last"
        )
    if found.step != last.step and (why := why_damaged(found.path)):
        raise UserError(f"{found.path}: {why}; set export.checkpoint=last")
    return found


def finish_if_complete(task: Task, steps: int) -> bool:
    """Write the manifest if the checkpoint of the last step is complete; returns whether it is."""
    if last_checkpoint(task, steps) is not None:
        undamaged(task.directory / "checkpoints")  # a run must not end with other weights than it had
    last = last_checkpoint(task, steps)
    if last is None:
        return False
    lines = metrics.read(metrics.path_of(task.directory))
    losses = [line["loss"] for line in lines if "loss" in line]
    rows = task.input_manifest("data")
    view = resolve(task.runtime["pipeline"]).last
    topology = batch.slurm_topology(view) if task.runtime.get("slurm") else batch.local_topology(view)
    world_size = last.facts.get("world_size")
    chosen = final_checkpoint(task, last, view["export"]["checkpoint"])
    final: dict[str, Any] = {}
    for kind in ("eval_loss", "loss"):  # of each the last line
        final |= next((line for line in reversed(lines) if kind in line), {})
    final = {key: value for key, value in final.items() if key not in ("step", "epoch")}
    predictions.end(task, last.facts, lines, last.path)
    task.finish(
        rows_in=rows["rows_out"],
        steps=last.step,
        final_checkpoint=str(chosen.path.relative_to(task.directory)),
        **({"held_out": _held_out(last)} if _held_out(last) else {}),
        world_size=world_size,
        gpus=(world_size or topology.world_size) if topology.device == "GPU" else 0,
        training_seconds=last.facts.get("seconds"),
        **{key: last.facts.get(key) for key in _MEASURED},
        loss_first=losses[0] if losses else None,
        loss_last=losses[-1] if losses else None,
        metrics=final,
        files=manifest.describe(task.directory, _files(task, chosen, rows)),
    )
    change = f", loss {losses[0]:.4g} -> {losses[-1]:.4g}" if losses else ""
    print(f"{task.config['method']}: {last.step:,} steps done{change}; {chosen.path}", flush=True)
    return True


def _files(task: Task, last: Checkpoint, rows: manifest.Manifest) -> list[Path]:
    """Results of the run: final checkpoint, inference checkpoints, configuration, metrics; epochs it has added to its mix."""
    directory, mix = task.directory, task.inputs["data"].parent
    elsewhere = resolve(task.runtime["pipeline"]).last["checkpointing"]["inference_checkpoint_path"]
    inference = Path(elsewhere).absolute() / directory.name if elsewhere else directory / "inference_checkpoints"
    names = ("config.yaml", predictions.FILE, "logs/metrics.jsonl", "logs/timeline.jsonl")
    found = [directory / name for name in names]
    found += [*last.path.rglob("*"), *inference.glob("step-*/**/*")]
    known = {file["path"] for file in rows.get("files", [])}
    found += [path for path in sorted(mix.glob("epoch-*.npy")) if path.name not in known]
    return sorted(path for path in found if path.is_file())
