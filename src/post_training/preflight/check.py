"""One thing that was looked at, and the table of all of them. Light."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from post_training.core.errors import ConfigError, UserError

OK, WARNING, FAILURE = "ok", "warning", "failure"
NAMES = (
    "assets.rows", "assets.model",
    "template.markers", "template.stop_token", "template.same_text_always", "template.prefix_stable",
    "template.generation_prompt", "template.single_ids", "template.as_exported",
    "data.trained_share", "data.rows_without_trained_token", "data.longest_row", "data.dropped",
    "data.duplicates_of_held_out", "data.contradictory_pairs",
    "optimisation.batch", "optimisation.epochs", "optimisation.warmup", "optimisation.learning_rate", "optimisation.beta",
    "optimisation.schedule",
    "libraries.arguments", "libraries.number_format", "libraries.attention", "libraries.kernels", "libraries.deepspeed",
    "resources.memory", "resources.time", "resources.checkpoint_interval", "resources.wall_time", "resources.disk",
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
        where = f"{self.where}: " if self.stage else ""
        return f"preflight {self.verdict}: {where}{self.name}: {self.value}" + (
            f"; {self.remedy}" if self.remedy else ""
        )

    def as_json(self) -> dict[str, Any]:
        """As it stands in `preflight.json`."""
        return asdict(self)


def judged(
    name: str, value: str, *, fails: Any = False, warns: Any = False, remedy: str = "", stage: str = ""
) -> Check:
    """A check whose verdict follows from two conditions; the remedy is kept where one holds."""
    verdict = FAILURE if fails else WARNING if warns else OK
    return Check(name, value, verdict, remedy if verdict != OK else "", stage)


def refused(name: str, error: UserError, stage: str = "") -> Check:
    """A failure that our own code or a library has put into a line already."""
    if isinstance(error, ConfigError):
        return Check(name, f"{error.key}: {error.problem}", FAILURE, "", stage)
    return Check(name, str(error), FAILURE, "", stage)


def only_warn(checks: Iterable[Check], names: Iterable[str]) -> list[Check]:
    """Failures of the named checks become warnings."""
    allowed = set(names)
    return [
        replace(check, verdict=WARNING) if check.verdict == FAILURE and check.name in allowed else check
        for check in checks
    ]


def together(checks: list[Check]) -> list[Check]:
    """What was found alike in several runs as one, and what was found in all runs of a stage without their names."""
    every: dict[str, set[str]] = {}
    alike: dict[Check, list[str]] = {}
    places: dict[tuple[str, str], int] = {}
    for check in checks:
        every.setdefault(check.stage, set()).update(check.runs)
        alike.setdefault(replace(check, runs=()), []).extend(check.runs)
        places.setdefault((check.stage, check.name), len(places))
    merged = [
        replace(check, runs=() if set(runs) == every[check.stage] else tuple(runs)) for check, runs in alike.items()
    ]
    return sorted(merged, key=lambda check: places[check.stage, check.name])


def table(checks: list[Check]) -> str:
    """The table as text of at most 160 columns; in colour on a terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    shown.add_column("check", no_wrap=True)
    several = any(check.stage for check in checks)
    if several:
        shown.add_column("stage", overflow="fold")
    for heading in ("value", "verdict", "remedy"):
        shown.add_column(heading, overflow="fold")
    for check in checks:
        stage = [_plain(check.where)] if several else []
        verdict = f"[{_COLOURS[check.verdict]}]{check.verdict}[/]"
        shown.add_row(check.name, *stage, _plain(check.value), verdict, _plain(check.remedy))
    console = Console(width=_WIDTH, highlight=False)
    with console.capture() as captured:
        console.print(shown)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _plain(text: str) -> str:
    """Text whose brackets rich leaves alone."""
    return text.replace("[", r"\[")
