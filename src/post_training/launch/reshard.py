"""Whether a checkpoint can be resumed on today's devices, and its conversion for them.

Plain data parallelism keeps one full copy, which any number of ranks can load. ZeRO keeps a share a rank;
for another number of ranks DeepSpeed rewrites it as a universal checkpoint, parameter by parameter. Examples
and batches are the same in any case: the order is in the mix, and accumulation follows from the devices.
"""

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from post_training.config.deepspeed import PLAIN
from post_training.core.errors import ConfigError, UserError
from post_training.core.fingerprint import write_atomically
from post_training.launch.processes import run_together
from post_training.run_dir.checkpoints import Checkpoint
from post_training.run_dir.stop import REQUEST


@dataclass(frozen=True)
class Resume:
    """How a checkpoint is to be loaded."""

    universal: bool
    note: str
    """For the line that says where training starts; empty when nothing has changed."""


def how_to_resume(checkpoint: Checkpoint, strategy: str, world_size: int) -> Resume:
    """Compare the checkpoint's marker with today's devices.

    Raises:
        ConfigError: when it was written with another DeepSpeed strategy. Training never starts afresh by itself.
    """
    before, ranks = checkpoint.facts.get("strategy", strategy), checkpoint.facts.get("world_size", world_size)
    if before != strategy:
        then = "without DeepSpeed" if before == PLAIN else f"with DeepSpeed stage {before[-1]}"
        now = "is off now" if strategy == PLAIN else f"has stage {strategy[-1]} now"
        raise ConfigError(
            "deepspeed.config_path",
            f"{checkpoint.path} was written {then}, and DeepSpeed {now}; set it as it was to resume, "
            f"or move {checkpoint.path.parent} away to start from step 0",
        )
    if ranks == world_size:
        return Resume(False, "")
    note = f", written by {ranks} rank{'s' if ranks > 1 else ''} and continued on {world_size}"
    return Resume(strategy != PLAIN, note + (" through a universal checkpoint" if strategy != PLAIN else ""))


def has_universal(checkpoint: Path) -> bool:
    """Whether it was converted to the end: the file that DeepSpeed reads first is written last."""
    return (checkpoint / "latest_universal").is_file()


def make_universal(checkpoint: Path, log: Path) -> None:
    """Rewrite a ZeRO checkpoint for any number of ranks, beside what it holds. Done once; a part is begun again.

    A stop request ends it at once. DeepSpeed's own output goes to `log`.

    Raises:
        UserError: when DeepSpeed's converter fails.
    """
    if has_universal(checkpoint):
        return
    final = checkpoint / f"{_tag(checkpoint)}_universal"
    unfinished = final.with_name(f".{final.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.rmtree(final, ignore_errors=True)
    print(f"{checkpoint}: is rewritten for another number of ranks", flush=True)
    workers = str(min(4, len(os.sched_getaffinity(0))))
    command = [
        sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal",
        "--input_folder", str(checkpoint / _tag(checkpoint)), "--output_folder", str(unfinished),
        "--num_extract_workers", workers, "--num_merge_workers", workers,
        "--inject_missing_state",  # an empty table of tensor-parallel layouts, of which there are none
    ]  # fmt: skip
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    ended = run_together(
        [command], [environment], REQUEST, abandoned=lambda: "stops" if REQUEST.received else None, log=log
    )
    if REQUEST.wanted:
        return
    if ended.first is not None:
        raise UserError(f"{checkpoint}: DeepSpeed cannot rewrite it for another number of ranks; {log} says why")
    unfinished.rename(final)
    write_atomically(checkpoint / "latest_universal", final.name)


def _tag(checkpoint: Path) -> str:
    try:
        return (checkpoint / "latest").read_text(encoding="utf-8").strip()
    except OSError as error:
        raise UserError(f"{checkpoint}: has no DeepSpeed checkpoint ({error})") from None
