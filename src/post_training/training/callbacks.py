"""What happens beside the steps: metrics, progress, whole checkpoints, models for inference.

Each callback does one thing. Those that write weights or add up over ranks are called on every rank.
"""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from post_training.core.errors import UserError
from post_training.core.format import duration
from post_training.models import lora
from post_training.models.files import cast_weights, make_readable, polish
from post_training.run_dir import metrics, timeline
from post_training.run_dir.checkpoints import flush, mark_complete, rotate
from post_training.run_dir.failures import no_room
from post_training.training.measure import Meter, restore_unlogged
from post_training.training.peak_memory import PeakMemory


def barrier() -> None:
    """Wait for all ranks."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()


class MetricsCallback(TrainerCallback):
    """`logs/metrics.jsonl`: one JSON line a logged step, also over several attempts."""

    def __init__(self, path: Path, meter: Meter, peak: PeakMemory, steps_per_epoch: float) -> None:
        # Transformers counts all epochs, which lie one after the other, as one.
        self.path, self.meter, self.peak, self.steps_per_epoch = path, meter, peak, steps_per_epoch

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Append the line of this step; the summary at the end has no loss and is left out."""
        logs = kwargs["logs"]
        if "loss" not in logs or not state.is_world_process_zero:
            return
        # TRL's own token count starts at 0 again in every attempt; ours does not.
        others = {key: value for key, value in logs.items() if key not in ("num_tokens", "epoch")}
        epoch = round(state.global_step / self.steps_per_epoch, 4)
        line = {"step": state.global_step, "epoch": epoch, **others, "seconds": round(self.meter.seconds, 3)}
        line["peak_memory_bytes"] = self.peak.since_last()
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def cut_metrics(path: Path, step: int, seconds: float) -> dict[str, Any]:
    """Drop the lines after `step`, where `seconds` had been trained: the steps that a resumed run is about to take again.

    Returns what the timeline tells of them: `lost_steps`, `lost_seconds`, and when the last line was written, `last_seen`.
    """
    if not path.is_file():
        return {"lost_steps": 0, "lost_seconds": 0.0, "last_seen": None}
    seen, lines = path.stat().st_mtime, metrics.read(path)
    kept = [line for line in lines if line["step"] <= step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    temporary.replace(path)
    last = lines[-1] if len(lines) > len(kept) else {"step": step, "seconds": seconds}
    lost = {"lost_steps": last["step"] - step, "lost_seconds": round(max(0.0, last["seconds"] - seconds), 3)}
    return {**lost, "last_seen": round(seen, 3)}


class TimelineCallback(TrainerCallback):
    """Notes on rank 0 when this start was ready and when it had taken its first step; see timeline.py."""

    def __init__(self, directory: Path, lost: dict[str, Any]) -> None:
        """`lost` is what `cut_metrics` has returned."""
        self.directory, self.lost = directory, lost
        self._stepped = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The model is loaded, and what comes now are steps."""
        timeline.note(self.directory, "train_begin", step=state.global_step, **self.lost)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Kernels are compiled and buffers allocated."""
        if not self._stepped:
            self._stepped = True
            timeline.note(self.directory, "first_step", step=state.global_step)


class ProgressCallback(TrainerCallback):
    """A plain line now and then, which reads as well in a Slurm log as in a terminal."""

    def __init__(self, name: str, meter: Meter, every_seconds: float = 5.0) -> None:
        self.name, self.meter, self.every_seconds = name, meter, every_seconds
        self._begun = (0, 0.0)
        self._printed = float("-inf")

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Time left is estimated from this attempt's steps."""
        self._begun = (state.global_step, time.monotonic())

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Print step, loss, speed and time left, unless the last line is younger than `every_seconds`."""
        logs = kwargs["logs"]
        now = time.monotonic()
        due = now - self._printed >= self.every_seconds or state.global_step >= state.max_steps
        if "loss" not in logs or not state.is_world_process_zero or not due:
            return
        self._printed = now
        step, begun = self._begun
        left = (now - begun) / max(state.global_step - step, 1) * (state.max_steps - state.global_step)
        speed = f"{self.meter.tokens_per_second:,.0f} tokens/s"
        place = f"step {state.global_step:,}/{state.max_steps:,}"
        print(f"{self.name}: {place}, loss {logs['loss']:.4f}, {speed}, {duration(left)} left", flush=True)


@contextmanager
def needs_room(path: Path) -> Iterator[None]:
    """Turn what goes wrong on a full disk into one line. torch does not say why a write has failed: it is tried."""
    try:
        yield
    except Exception as error:
        reason = no_room(error) or _probe(path.parent)
        if reason is None:
            raise
        raise UserError(
            f"{path}: cannot be written, {reason}; the last whole checkpoint is kept. Free some room and start again to resume"
        ) from None


def _probe(folder: Path) -> str | None:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(1 << 20))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return no_room(error)
    return None


class CheckpointCallback(TrainerCallback):
    """Marks each checkpoint as whole, then removes the oldest ones."""

    def __init__(
        self, trainer: Any, directory: Path, limit: int | None, facts: Callable[[], dict[str, Any]], unlogged: Any
    ) -> None:
        """Take hold of the trainer's saves.

        Args:
            trainer: its `_save_checkpoint` is wrapped, on the instance.
            directory: where it saves.
            limit: whole checkpoints to keep.
            facts: gives what the marker says besides; called on every rank.
            unlogged: of the marker that the run is resumed from; see meter.py.
        """
        self.trainer, self.directory, self.limit, self.facts, self.unlogged = trainer, directory, limit, facts, unlogged
        self._began = 0.0
        save = trainer._save_checkpoint

        def save_checkpoint(*args: Any, **kwargs: Any) -> None:
            self._began = time.time()
            with needs_room(self._path(trainer.state)):
                save(*args, **kwargs)

        trainer._save_checkpoint = save_checkpoint

    def _path(self, state: Any) -> Path:
        return self.directory / f"checkpoint-{state.global_step}"

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A resumed state carries the intervals of the attempt that saved it; today's configuration counts."""
        state.logging_steps, state.save_steps = args.logging_steps, args.save_steps
        restore_unlogged(self.trainer, self.unlogged)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """All ranks have written their files, and these are on disk, when the marker is."""
        checkpoint, facts = self._path(state), self.facts()
        barrier()
        with needs_room(checkpoint):
            if args.local_process_index == 0:
                flush(checkpoint)
            barrier()
            if state.is_world_process_zero:
                make_readable(checkpoint)
                mark_complete(checkpoint, state.global_step, **facts)
                rotate(self.directory, self.limit)
        barrier()
        if state.is_world_process_zero:
            note_save(self.directory.parent, state.global_step, self._began)


def note_save(directory: Path, step: int, began: float) -> None:
    """A line of the timeline: the steps have stood still since `began`."""
    timeline.note(directory, "save", step=step, seconds=round(time.time() - began, 3))


class InferenceCheckpointCallback(TrainerCallback):
    """Every `every` steps a model that inference can load, `step-<n>`, whole or not there; with LoRA its adapters."""

    def __init__(self, trainer: Any, directory: Path, folder: Path, every: int, dtype: str) -> None:
        self.trainer, self.directory, self.folder, self.every, self.dtype = trainer, directory, folder, every, dtype

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Every rank takes part: under ZeRO-3 each holds a share of the weights."""
        if state.global_step % self.every:
            return
        began = time.time()
        unfinished = self.folder / f".step-{state.global_step}"
        final = self.folder / f"step-{state.global_step}"
        with needs_room(final):
            if state.is_world_process_zero:
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir(parents=True)
            barrier()
            self.trainer.save_model(str(unfinished))
            barrier()
            if state.is_world_process_zero:
                (unfinished / "training_args.bin").unlink(missing_ok=True)
                if not lora.is_adapter(unfinished):
                    cast_weights(unfinished, self.dtype)
                polish(unfinished)
                flush(unfinished)
                replace_folder(unfinished, final)
                note_save(self.directory, state.global_step, began)


def replace_folder(new: Path, target: Path) -> None:
    """Move a finished folder to its place; one that is there already (a repeated step) goes only then."""
    old = target.with_name(f".{target.name}.old.{os.getpid()}")
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)
