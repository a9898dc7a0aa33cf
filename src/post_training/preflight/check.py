"""One finding of the preflight, and the table of all of them."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from post_training.core.errors import ConfigError, UserError

OK, WARNING, FAILURE = "ok", "warning", "failure"
NAMES = (
    "assets.rows", "assets.model", "assets.kernel", "model.weights", "model.ids", "model.adapters", "model.chat_tokens", "model.step",
    "template.markers", "template.stop_token", "template.same_text_always", "template.prefix_stable",
    "template.generation_prompt", "template.single_ids", "template.beginning", "template.as_exported",
    "data.trained_share", "data.rows_without_trained_token", "data.longest_row", "data.dropped",
    "data.duplicates_of_held_out", "data.contradictory_pairs",
    "optimisation.batch", "optimisation.epochs", "optimisation.warmup", "optimisation.learning_rate", "optimisation.beta",
    "optimisation.schedule",
    "libraries.arguments", "libraries.number_format", "libraries.attention", "libraries.packing",
    "libraries.kernels", "libraries.quantization", "libraries.deepspeed",
    "gpu.driver", "gpu.capability", "gpu.compiler",
    "resources.memory", "resources.inference", "resources.time", "resources.checkpoint_interval", "resources.wall_time", "resources.disk",
    "resources.slurm",
)  # fmt: skip
"""Every check; docs/preflight.md says what each means."""
_WIDTH = 160
_NAMED = 2
_COLOURS = {OK: "green", WARNING: "yellow", FAILURE: "bold red"}


@dataclass(frozen=True)
class Check:
    """What was found, and what to do where it is not as it should be."""

    name: str
    """`<group>.<check>`, as `preflight.only_warn` takes it."""
    value: str
    verdict: str = OK
    remedy: str = ""
    stage: str = ""
    """The stage of the configuration that it is about; empty for all."""
    runs: tuple[str, ...] = ()
    """The runs that it is about; empty for all."""

    @property
    def where(self) -> str:
        """`dpo (beta0.1-seed0, beta0.1-seed1 and 4 more)`; without the runs where it is about all."""
        more = f" and {len(self.runs) - _NAMED} more" if len(self.runs) > _NAMED else ""
        return f"{self.stage} ({', '.join(self.runs[:_NAMED])}{more})" if self.runs else self.stage

    def line(self) -> str:
        """One line, for a terminal and a log."""
        parts = [f"preflight {self.verdict}", *([self.where] if self.stage else []), self.name, self.value]
        return ": ".join(parts) + (f"; {self.remedy}" if self.remedy else "")

    def as_json(self) -> dict[str, Any]:
        """As in `preflight.json`."""
        return asdict(self)


def check(name: str, value: str, *, fails: Any = False, warns: Any = False, remedy: str = "") -> Check:
    """A check whose verdict follows from two conditions; the remedy is kept where one holds."""
    verdict = FAILURE if fails else WARNING if warns else OK
    return Check(name, value, verdict, remedy if verdict != OK else "")


def failed(name: str, error: UserError) -> Check:
    """A failure that our own code or a library has put into a line already."""
    return Check(name, f"{error.key}: {error.problem}" if isinstance(error, ConfigError) else str(error), FAILURE)


def only_warn(checks: Iterable[Check], names: Iterable[str]) -> list[Check]:
    """Failures of the named checks become warnings."""
    allowed = set(names)
    return [replace(c, verdict=WARNING) if c.verdict == FAILURE and c.name in allowed else c for c in checks]


def merge(checks: list[Check]) -> list[Check]:
    """One check for equal findings of several runs; without names of runs for a finding of all runs of its stage."""
    runs_of_stage: dict[str, set[str]] = {}
    equal: dict[Check, list[str]] = {}
    order: dict[tuple[str, str], int] = {}
    for found in checks:
        runs_of_stage.setdefault(found.stage, set()).update(found.runs)
        equal.setdefault(replace(found, runs=()), []).extend(found.runs)
        order.setdefault((found.stage, found.name), len(order))
    merged = [
        replace(found, runs=() if set(runs) == runs_of_stage[found.stage] else tuple(runs))
        for found, runs in equal.items()
    ]
    return sorted(merged, key=lambda found: order[found.stage, found.name])


def table(checks: list[Check], width: int | None = None, *, colour: bool = False) -> str:
    """The table as text of at most that many columns, 160 where none are given; with the escapes of a terminal if asked for."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    shown.add_column("check", no_wrap=True)
    several = any(found.stage for found in checks)
    for heading in [*(["stage"] if several else []), "value", "verdict", "remedy"]:
        shown.add_column(heading, overflow="fold")
    for found in checks:
        stage = [escape(found.where)] if several else []
        verdict = f"[{_COLOURS[found.verdict]}]{found.verdict}[/]"
        shown.add_row(found.name, *stage, escape(found.value), verdict, escape(found.remedy))
    console = Console(width=width or _WIDTH, highlight=False, force_terminal=colour or None)
    with console.capture() as captured:
        console.print(shown)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())
