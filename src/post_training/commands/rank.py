"""`python -m post_training.commands.rank TASK`: one rank, started by `post_training.launch.launcher`."""

import os
import sys
from pathlib import Path
from signal import Signals
from typing import TYPE_CHECKING

from post_training.core.secrets import mask_output
from post_training.run_dir.stop import REQUEST, die_with_parent, write_stopped
from post_training.training import compile_cache

if TYPE_CHECKING:
    from post_training.core.task import Task

# Before everything that takes time. Slurm's warning, or a Ctrl-C, may come while torch is being imported.
REQUEST.listen()


def _leave(directory: Path, number: Signals) -> None:
    write_stopped(directory, number, None)
    os._exit(1)


def decide_micro_batch(task: "Task") -> None:
    """The number for `training.per_device_train_batch_size: auto`, which rank 0 prints."""
    from post_training.config import batch

    tree = task.runtime["pipeline"]
    if tree[tree["method"]]["training"][batch.PER_DEVICE] != batch.AUTO:
        return
    from post_training.preflight.micro_batch import decide

    number = decide(task, batch.topology_from_environment())
    if os.environ.get("RANK", "0") == "0":
        print(f"training.{batch.PER_DEVICE}: {number}, by the predicted memory", flush=True)


def main() -> int:
    """Train as one rank. Returns 0 when it is done, or stopped on request; any error is written to a file of its own."""
    mask_output()
    import argparse

    from post_training.core.task import Task
    from post_training.core.unused_libraries import hide_unused
    from post_training.launch.environment import LAUNCHER
    from post_training.run_dir import failures, lock

    if LAUNCHER in os.environ:  # Slurm ends its ranks itself
        die_with_parent(int(os.environ[LAUNCHER]))
    lock.end_with_owner()
    compile_cache.remove_stale_locks()
    parser = argparse.ArgumentParser(prog="python -m post_training.commands.rank", description="One training rank.")
    parser.add_argument("task", type=Path, help="the task's file")
    task = Task.read(parser.parse_args().task)
    hide_unused(task)
    try:
        decide_micro_batch(task)
        if task.stage == "reference":
            # Its shards are complete or absent: the rank ends at once, and its exit code ends all others.
            REQUEST.act_at_once(lambda number: _leave(task.directory, number))
            from post_training.training.reference_rank import reference_rank

            reference_rank(task)
        elif task.stage == "preflight_probe":
            REQUEST.act_at_once(lambda number: _leave(task.directory, number))
            from post_training.preflight.probe import probe_rank

            probe_rank(task)
        else:
            from post_training.training.run import train_rank

            train_rank(task)
    except BaseException as error:
        failures.report(task.directory / "logs" / "failures", int(os.environ.get("RANK", "0")), error)
    else:
        return 0
    # No orderly exit: it would wait for the other ranks, which are in a collective that never ends.
    sys.stdout.flush()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
