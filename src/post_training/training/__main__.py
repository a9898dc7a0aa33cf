"""`python -m post_training.training --task FILE`: one rank, started by `post_training.launch`."""

import argparse
import ctypes
import os
import signal
import sys
import traceback
from pathlib import Path

from post_training.errors import UserError
from post_training.launch import LAUNCHER, read_task


def die_with_launcher() -> None:
    """Have the kernel kill this rank when its local launcher dies. Slurm ends its ranks itself."""
    launcher = os.environ.get(LAUNCHER)
    if launcher is None:
        return
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    except (OSError, AttributeError):
        return  # not Linux
    if os.getppid() != int(launcher):
        os._exit(1)  # it died before the call


def main() -> int:
    """Train as one rank; a person's mistake is one line and exit code 1."""
    die_with_launcher()
    parser = argparse.ArgumentParser(prog="python -m post_training.training", description="One training rank.")
    parser.add_argument("--task", type=Path, required=True, help="the launcher's logs/task.json")
    task = read_task(parser.parse_args().task)
    # Signal handlers belong here, before the slow imports: the default action of USR1 kills.
    try:
        if task.stage == "reference":
            from post_training.training.reference_rank import reference_rank as run_rank
        else:
            from post_training.training.run import train_rank as run_rank

        run_rank(task)
    except UserError as error:
        print(error, file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        os._exit(128 + signal.SIGINT)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    else:
        return 0
    # No orderly exit: it would wait for the other ranks, which are in a collective that never ends.
    sys.stdout.flush()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
