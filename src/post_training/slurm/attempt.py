"""`python -m post_training.slurm.attempt`: one start of a job, from its first line to why it ended.

Runs on the first node as the batch script's last word. Starts the stage's command and passes signals on.
Ranks get Slurm's warning themselves (`--signal` without `B:`); after it the launcher ends with REQUEUE, and
the job starts again under its id, whether or not the process that submitted it is still there.
"""

import argparse
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from post_training.run_dir import attempts, fence
from post_training.run_dir.attempts import Attempt
from post_training.run_dir.lock import LOCKED
from post_training.run_dir.stop import INTERRUPTED, REQUEUE, STOPPED
from post_training.slurm import cluster
from post_training.slurm.cluster import State

_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_KILLED_WITHIN_SECONDS = 120


def main() -> int:
    """Returns the job's exit code: 0 only when the stage's manifest is there."""
    parser = argparse.ArgumentParser(prog="python -m post_training.slurm.attempt")
    parser.add_argument("--output", type=Path, required=True, help="the stage's manifest")
    parser.add_argument("--max-failures", type=int, required=True)
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    directory = options.output.parent
    folder = attempts.folder_of(directory)
    me = attempts.this_attempt(directory)
    for stream in (sys.stdout, sys.stderr):
        print(f"{attempts.START}{me.restart} of job {me.job_id} on {me.nodes}, {me.start}", file=stream, flush=True)
    former = attempts.current(folder)
    if former:
        state = _state_of(former, me)
        if state and not state.ended:
            owner = former.job_id
            print(
                f"{directory}: Slurm job {owner} works on this; job {me.job_id} leaves it alone",
                file=sys.stderr,
                flush=True,
            )
            return LOCKED
        attempts.end_for(folder, former, state.name if state else None)
    if attempts.failures(folder) > options.max_failures:
        count = attempts.failures(folder)
        print(
            f"{directory}: failed {count} times, slurm.max_failures is {options.max_failures}",
            file=sys.stderr,
            flush=True,
        )
        return 1
    attempts.begin(folder, me)
    if former:
        # Its ranks, if their node lives on after all, must have seen that they are no longer wanted.
        time.sleep(fence.WAIT_SECONDS)
    code, signals = _run(
        options.command, {**os.environ, fence.VARIABLE: f"{me.token}:{folder.resolve() / 'segment.json'}"}
    )
    if not fence.holds(me.token, folder / "segment.json"):
        print(f"{directory}: another job owns this run now; job {me.job_id} ends", file=sys.stderr, flush=True)
        return LOCKED
    if code == REQUEUE and signal.SIGTERM in signals:
        code = STOPPED  # cancelled while it saved for its time limit: requeued, it would run again all the same
    why, failure = verdict(code, options.output, attempts.safe_steps(directory) > me.steps)
    attempts.end(folder, me, why, failure=failure)
    print(f"{directory}: job {me.job_id} ends: {why}", flush=True)
    if why == attempts.DONE:
        return 0
    if why == attempts.WALL_TIME:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Slurm's, at once; with a handler it would wait and then kill
        mine = (cluster.states([me.job_id]) or {}).get(me.job_id)
        if mine and mine.name == "RUNNING" and cluster.requeue(me.job_id):
            time.sleep(_KILLED_WITHIN_SECONDS)
    return code or 1


def verdict(code: int, output: Path, progressed: bool) -> tuple[str, bool]:
    """Why a segment ended, and whether that is a failure.

    Args:
        code: exit code of the stage's command; negative for a signal.
        output: its manifest.
        progressed: whether more steps are safe than when it began.
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
    """What Slurm says of an earlier job; None when it is this one, started again, or forgotten."""
    if former.job_id == me.job_id:
        return None
    states = cluster.states([former.job_id])
    return State("UNKNOWN") if states is None else states.get(former.job_id)


def _run(command: list[str], environment: dict[str, str]) -> tuple[int, list[int]]:
    """Run a command in a process group of its own; its exit code, and the signals that came and were passed on."""
    libc = ctypes.CDLL(None)

    def with_us() -> None:
        libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG

    process: subprocess.Popen[bytes] | None = None
    received: list[int] = []

    def forward(number: int, _: FrameType | None) -> None:
        received.append(number)
        if process is not None and process.poll() is None:
            process.send_signal(number)

    for forwarded in _FORWARDED:
        signal.signal(forwarded, forward)
    process = subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=with_us)
    for number in list(received):
        process.send_signal(number)
    return process.wait(), received


if __name__ == "__main__":
    sys.exit(main())
