"""`python -m post_training.slurm.attempt`: one attempt of a job, from its first line to the record of why it ended.

The last command of the batch script, on the first node. Starts the stage's command and passes signals on.
Ranks get Slurm's warning themselves (`--signal` without `B:`); after it the launcher ends with REQUEUE, and
the job is requeued under its id, whether or not the process that submitted it still runs.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from post_training.core.errors import UserError
from post_training.run_dir import attempts
from post_training.run_dir.attempts import Attempt
from post_training.run_dir.failures import no_room
from post_training.run_dir.lock import LOCKED
from post_training.run_dir.stop import INTERRUPTED, REQUEUE, STOPPED, die_with_parent
from post_training.slurm import cluster
from post_training.slurm.cluster import State
from post_training.slurm.patience import AwayError, Patience

_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_KILLED_WITHIN_SECONDS = 120


def main() -> int:
    """Returns the job's exit code: 0 only when the stage's manifest is there. A full disk is one line."""
    try:
        return _attempt()
    except UserError as error:
        return _refuse(str(error), 1)
    except OSError as error:
        reason = no_room(error)
        if reason is None:
            raise
        return _refuse(f"{reason}; free some room, and start snakemake again", 1)


def _attempt() -> int:
    parser = argparse.ArgumentParser(prog="python -m post_training.slurm.attempt")
    parser.add_argument("--output", type=Path, required=True, help="the stage's manifest")
    parser.add_argument("--max-failures", type=int, required=True)
    parser.add_argument("--wait-seconds", type=int, default=0, help="how long Slurm may be away")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    directory = options.output.parent
    folder = attempts.folder_of(directory)
    me = attempts.this_attempt(directory)
    for stream in (sys.stdout, sys.stderr):
        print(f"{attempts.START}{me.restart} of job {me.job_id} on {me.nodes}, {me.start}", file=stream, flush=True)
    if former := attempts.current(folder):
        state = Patience(options.wait_seconds).ask(lambda: _state_of(former, me))
        if state and not state.ended:
            return _refuse(f"{directory}: Slurm job {former.job_id} works on this; job {me.job_id} ends", LOCKED)
        attempts.end_for(folder, former, state.name if state else None)
    if (count := attempts.failures(folder)) > options.max_failures:
        return _refuse(f"{directory}: failed {count} times, slurm.max_failures is {options.max_failures}", 1)
    attempts.begin(folder, me)
    code, signals = _run(options.command)
    if attempts.current(folder) != me:
        return _refuse(f"{directory}: another job owns this run now; job {me.job_id} ends", LOCKED)
    if code == REQUEUE and signal.SIGTERM in signals:
        code = STOPPED  # cancelled while it saved for its time limit: requeued, it would run again all the same
    why, failure = verdict(code, options.output, attempts.safe_steps(directory) > me.steps)
    attempts.end(folder, me, why, failure=failure)
    print(f"{directory}: job {me.job_id} ends: {why}", flush=True)
    if why == attempts.DONE:
        return 0
    if why == attempts.WALL_TIME:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Slurm's, at once; with a handler it would wait and then kill
        with contextlib.suppress(AwayError):  # then a new job resumes
            mine = cluster.states([me.job_id]).get(me.job_id)
            if mine and mine.name == "RUNNING" and cluster.requeue(me.job_id):
                time.sleep(_KILLED_WITHIN_SECONDS)
    return code or 1


def _refuse(message: str, code: int) -> int:
    print(message, file=sys.stderr, flush=True)
    return code


def verdict(code: int, output: Path, progressed: bool) -> tuple[str, bool]:
    """Why an attempt ended, and whether that is a failure.

    Args:
        code: exit code of the stage's command; negative for a signal.
        output: its manifest.
        progressed: whether more steps are saved than when it began.
    """
    if output.exists():  # written last: whatever came after it took nothing away
        return attempts.DONE, False
    if code == 0:
        return "failed: ended without its result", True
    if code == REQUEUE:
        # For ever again from the same step would cost allocations and give nothing.
        return (attempts.WALL_TIME, False) if progressed else ("failed: no step was done in a whole allocation", True)
    if code in (STOPPED, INTERRUPTED, -signal.SIGTERM, -signal.SIGINT):
        return attempts.STOPPED, False
    if code == LOCKED:
        return attempts.OWNED, False
    return f"failed: exit code {code if code > 0 else 128 - code}", True


def _state_of(former: Attempt, me: Attempt) -> State | None:
    """Slurm's state of an earlier job; None when it is this one, requeued, or forgotten."""
    if former.job_id == me.job_id:
        return None
    return cluster.states([former.job_id]).get(former.job_id)


def _run(command: list[str]) -> tuple[int, list[int]]:
    """Run a command in a process group of its own; its exit code, and the signals that came and were passed on."""
    process: subprocess.Popen[bytes] | None = None
    received: list[int] = []

    def forward(number: int, _: FrameType | None) -> None:
        received.append(number)
        if process is not None and process.poll() is None:
            process.send_signal(number)

    for forwarded in _FORWARDED:
        signal.signal(forwarded, forward)
    me = os.getpid()
    process = subprocess.Popen(command, start_new_session=True, preexec_fn=lambda: die_with_parent(me))
    for number in list(received):
        process.send_signal(number)
    return process.wait(), received


if __name__ == "__main__":
    sys.exit(main())
