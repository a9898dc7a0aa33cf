"""Lines and the live panel of the console."""

import re
import textwrap
import time
from collections.abc import Mapping

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from post_training.console.jobs import Board, Job
from post_training.core.format import duration

_MARKS = {"done": ("✓", "green"), "failed": ("✗", "bold red")}
_LABEL = 22
_SHOWN = 12
"""Running jobs in the panel; there may be hundreds under Slurm."""
_BAR = 30


def label_of(wildcards: Mapping[str, str] | None) -> str:
    """A rule's wildcard without its fingerprint."""
    return re.sub(r"[-@][0-9a-f]{8}$", "", next(iter((wildcards or {}).values()), ""))


def label_width(planned: Mapping[str, Job]) -> int:
    """Columns for the labels of these jobs."""
    return min(_LABEL, max((len(job.label) for job in planned.values()), default=0))


def kind_width(planned: Mapping[str, Job]) -> int:
    """Columns for their kinds."""
    return max((len(job.kind) for job in planned.values()), default=0)


def job_line(console: Console, verdict: str, job: Job, took: float, text: str, planned: Mapping[str, Job]) -> Text:
    """`✓ train        sft-llama        1:12  700 steps`; with words instead of signs where no terminal is."""
    mark, style = _MARKS[verdict]
    kinds, width = kind_width(planned), label_width(planned)
    line = Text(mark if console.is_terminal and not console.options.ascii_only else f"{verdict:<6}", style=style)
    label = cut(job.label, width) if console.is_terminal else job.label
    line.append(f" {job.kind:<{kinds}} {label:<{width}} {duration(took):>6}  ", style="default")
    if console.is_terminal and verdict == "done":  # all of it, below itself; why a job failed is said again at the end
        below = "\n" + " " * len(line)
        text = below.join(textwrap.wrap(text, max(20, console.width - len(line))))
    return line.append(text, style="dim" if verdict == "done" else "default")


def panel(console: Console, board: Board) -> RenderableType:
    """A line for each running job, and the bar over all of them."""
    kinds, width = kind_width(board.jobs), label_width(board.jobs)
    lines = []
    running = [(output, began) for output, began in board.running.items() if output in board.jobs]
    for output, began in running[:_SHOWN]:
        job = board.jobs[output]
        line = Text(f"· {job.kind:<{kinds}} {cut(job.label, width):<{width}} {duration(_since(began)):>6}  ")
        lines.append(line.append(_says(board, output, job), style="cyan"))
    if len(running) > _SHOWN:
        lines.append(Text(f"  and {len(running) - _SHOWN:,} more running"))
    for line in lines:
        line.no_wrap, line.overflow = True, "ellipsis"
    total, done = len(board.jobs), len(board.finished)
    left = board.seconds_left()
    text = f"{duration(_since(board.began))}" + (f", about {duration(left)} left" if left is not None else "")
    counted = f"{done:,} of {total:,} jobs"
    bar_width = max(5, min(_BAR, console.width - len(counted) - len(text) - 6))
    head = Table.grid(padding=(0, 1))
    head.add_row(counted, ProgressBar(total=max(total, 1), completed=done, width=bar_width), text)
    return Group(*lines, head)


def plain_progress(board: Board) -> list[str]:
    """The same for a log: a line for each running job, with the count of all."""
    counted = f"{len(board.finished):,} of {len(board.jobs):,} jobs done"
    return [
        f"running {job.kind} {job.label} {duration(_since(began))} ({counted})  {_says(board, output, job)}".rstrip()
        for output, began in list(board.running.items())[:_SHOWN]
        if (job := board.jobs.get(output))
    ]


def plan_lines(planned: list[tuple[str, str]]) -> list[str]:
    """What a dry run prints: how many jobs of each kind, and of what."""
    kinds: dict[str, list[str]] = {}
    for rule, label in planned:
        kinds.setdefault(rule, []).append(label)
    lines = ["", f"{'rule':<17} jobs"]
    for rule, labels in kinds.items():
        shown = list(dict.fromkeys(labels))
        more = f" and {len(shown) - 3:,} more" if len(shown) > 3 else ""
        lines.append(f"{rule:<17} {len(labels):>4,}  {', '.join(shown[:3])}{more}".rstrip())
    total = f"{len(planned):,} jobs would run. Nothing was made (dry run); with -p, all about each job"
    return [*lines, total]


def _says(board: Board, output: str, job: Job) -> str:
    slurm_job, state = board.slurm.get(output, (None, ""))
    said = job.said(slurm_job)
    if slurm_job is None:
        return said
    return f"job {slurm_job} {state}" + (f": {said}" if said and state.startswith("RUNNING") else "")


def cut(text: str, width: int) -> str:
    """A text of this many characters at most."""
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _since(began: float) -> float:
    return time.monotonic() - began
