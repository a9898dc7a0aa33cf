"""A preflight's findings on the terminal: problems and what it will cost, or every check."""

from collections import Counter
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from post_training.core.format import duration, gib, size
from post_training.preflight.check import FAILURE, OK, WARNING, Check, table

_COLOURS = {WARNING: "yellow", FAILURE: "bold red"}
_DISK = ("checkpoints_bytes", "inference_checkpoints_bytes", "export_bytes")


def print_findings(facts: dict[str, Any], console: Console, *, everything: bool = False) -> None:
    """Print the content of a `preflight.json`; all checks with `everything`, else warnings and failures."""
    checks = [Check(**{**check, "runs": tuple(check["runs"])}) for check in facts["checks"]]
    if everything:
        console.print(
            table(checks, console.width if console.is_terminal else None, colour=console.is_terminal), soft_wrap=True
        )
    else:
        for check in checks:
            if check.verdict != OK:
                console.print(check.line(), style=_COLOURS[check.verdict], markup=False, soft_wrap=True)
    counts = Counter(check.verdict for check in checks)
    problems = [
        f"{counts[verdict]} {verdict}{'s' * (counts[verdict] != 1)}"
        for verdict in (FAILURE, WARNING)
        if counts[verdict]
    ]
    console.print(f"preflight: {len(checks)} checks, {', '.join(problems) or 'all passed'}", markup=False)
    print_costs(facts, console)


def print_costs(facts: dict[str, Any], console: Console) -> None:
    """Memory, time, tokens and disk of each training, as predicted."""
    shown = Table(box=SIMPLE_HEAD)
    shown.add_column("predicted", no_wrap=True, overflow="ellipsis")
    for heading in ("memory of a device", "time", "tokens", "disk"):
        shown.add_column(heading, justify="right")
    for training in list(facts["trainings"].values())[:_MOST]:
        cost = training["predicted"]
        hours, runs = cost.get("hours"), training["runs"]
        name = training["stage"] + (f" ({runs[0]})" if len(facts["trainings"]) > 3 and runs else "")
        disk = sum(cost.get(key) or 0 for key in _DISK)
        time = duration(hours * 3600) if hours is not None else "unknown"
        shown.add_row(name, gib(cost["peak_memory_bytes"]), time, f"{cost['tokens']:,}", size(disk))
    console.print(shown)
    if len(facts["trainings"]) > _MOST:
        console.print(f"and {len(facts['trainings']) - _MOST:,} more trainings")


_MOST = 12
"""Trainings that are shown, of a sweep with many runs."""
