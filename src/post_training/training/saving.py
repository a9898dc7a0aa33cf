"""Complete checkpoints to resume from, and models for inference, written while training."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from post_training.core.adapters import is_adapter_folder
from post_training.core.errors import UserError
from post_training.models.files import cast_weights, make_portable, replace_folder, set_permissions
from post_training.run_dir import timeline
from post_training.run_dir.checkpoints import checksums, flush, mark_complete, rotate
from post_training.run_dir.failures import no_room, no_room_in
from post_training.training.ranks import barrier, gather_objects


@contextmanager
def needs_room(path: Path) -> Iterator[None]:
    """Raises UserError, in one line, for a full disk. torch does not say why a write has failed: it is tried."""
    try:
        yield
    except Exception as error:
        reason = no_room(error) or no_room_in(path.parent)
        if reason is None:
            raise
        raise UserError(
            f"{path}: cannot be written, {reason}; the last complete checkpoint is kept. Free some room and start again to resume"
        ) from None


class Checkpoints:
    """Saves checkpoints, marks each one as complete, then removes the oldest ones."""

    def __init__(
        self,
        args: Any,
        directory: Path,
        limit: int | None,
        facts: Callable[[], dict[str, Any]],
        best_step: Callable[[], int | None] = lambda: None,
    ) -> None:
        """Make it on every rank.

        Args:
            args: TRL's configuration.
            directory: of the run.
            limit: complete checkpoints to keep.
            facts: content of the marker; called on every rank.
            best_step: step whose checkpoint is kept besides.
        """
        self.args, self.directory, self.limit, self.facts, self.best_step = args, directory, limit, facts, best_step

    def save(self, step: int, write: Callable[[], None], unlogged: dict[str, Any]) -> None:
        """Have `write` save the checkpoint of `step`; its marker, written when all ranks' files are on disk, has `unlogged`."""
        began, folder = time.time(), self.directory / "checkpoints"
        checkpoint = folder / f"checkpoint-{step}"
        with needs_room(checkpoint):
            write()
            facts = self.facts()
            barrier()
            if self.args.local_process_index == 0:
                flush(checkpoint)
            parts = gather_objects(checksums(checkpoint, self.args.process_index, self.args.world_size))
            if self.args.process_index == 0:
                set_permissions(checkpoint)
                sums = {name: value for part in parts for name, value in part.items()}
                mark_complete(checkpoint, step, sums, **facts, unlogged=unlogged)
                rotate(folder, self.limit, self.best_step())
        barrier()
        if self.args.process_index == 0:
            note_save(self.directory, step, began)


def note_save(directory: Path, step: int, began: float) -> None:
    """A line of the timeline: no step was taken since `began`."""
    timeline.note(directory, "save", step=step, seconds=round(time.time() - began, 3))


class InferenceCheckpointCallback(TrainerCallback):
    """Every `every` steps a model that inference can load, `step-<n>`, complete or absent; with LoRA its adapters."""

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
                if not is_adapter_folder(unfinished):
                    cast_weights(unfinished, self.dtype)
                make_portable(unfinished)
                flush(unfinished)
                replace_folder(unfinished, final)
                note_save(self.directory, state.global_step, began)
