"""The last lines of a call that did not make all it was to make: what failed and why, what was stopped, and how to resume."""

from dataclasses import dataclass, field
from pathlib import Path

from post_training.console.jobs import Job, last_line
from post_training.core.task import error_of
from post_training.run_dir.checkpoints import newest_complete
from post_training.run_dir.stop import read_stopped

_MOST_LINES = 24


@dataclass
class Failed:
    """A job that has ended without its result."""

    job: Job | None
    rule: str
    message: str = ""
    """What the executor says, of a job under Slurm."""
    logs: list[str] = field(default_factory=list)


def why(failed: Failed) -> list[str]:
    """Its message, a line each; what it printed last where it was killed before it could say."""
    own = error_of(failed.job.task_file) if failed.job else ""
    lines = [line for line in (failed.message.strip() or own).splitlines() if line.strip()]
    if not lines:
        last = next((line for line in map(last_line, map(Path, failed.logs)) if line), "")
        lines = [f"ended without a message (killed? out of memory?){f'; it said last: {last}' if last else ''}"]
    if len(lines) > _MOST_LINES:
        lines = [*lines[: _MOST_LINES - 1], f"... and {len(lines) - _MOST_LINES + 1} more lines in the log"]
    return lines


def stopped(failed: Failed) -> str | None:
    """`sft-llama: stopped at step 63, saved`; None for a job that has not been stopped."""
    if failed.job is None or failed.message:  # an executor's message says more: which job was cancelled, by whom
        return None
    found = read_stopped(failed.job.output.parent)
    if found is None:
        return None
    if found.step is not None:
        return f"{failed.job.name}: stopped at step {found.step:,}, saved"
    newest = newest_complete(failed.job.output.parent / "checkpoints").chosen
    saved = f"the checkpoint of step {newest.step:,} is kept" if newest else "before its first step"
    return f"{failed.job.name}: stopped, {saved}"
