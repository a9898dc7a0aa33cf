"""`token-stats`: a line for each dataset, from its source rows to what the mix uses of them."""

from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from post_training.core import manifest
from post_training.data.mixing.shards import Tokenized
from post_training.inspection.collect import steps_of
from post_training.plan import Plan

PERCENTILES = (50, 90, 99)


def statistics(plan: Plan, stage: str) -> list[dict[str, Any]]:
    """For each dataset of a training stage: rows, tokens, lengths, and rows dropped at each step by reason."""
    mixed = plan.mixed[stage]
    used = {entry["name"]: entry for entry in manifest.read(plan.base / mixed.manifest)["table"]}
    found = []
    for name, steps in steps_of(plan, mixed).items():
        rows, tokens = manifest.read(steps.transformed), manifest.read(steps.tokenized)
        lengths = Tokenized.open(name, steps.tokenized, mixed.config["rows"], 0).lengths
        entry = used.get(name)
        found.append(
            {
                "dataset": name,
                "source_rows": rows["rows_in"],
                "examples": rows["examples"],
                "tokenized": tokens["rows_out"],
                "tokens": tokens["tokens"],
                "trained_share": tokens["trained_tokens"] / max(tokens["tokens"], 1),
                **{f"p{p}": int(np.percentile(lengths, p)) for p in PERCENTILES},
                "longest": int(lengths.max()),
                "used_rows": entry["rows_used"] if entry else 0,
                "used_tokens": entry["tokens"] if entry else 0,
                "share": entry["share"] if entry else 0.0,
                "held_out": entry["held_out"]["rows"] if entry else tokens["rows_out"],
                "dropped": {
                    **rows["dropped"],
                    **tokens["dropped"],
                    **{reason: count["rows"] for reason, count in (entry["dropped"] if entry else {}).items()},
                },
            }
        )
    return found


_NAME = 12
_ROWS = ("dataset", "source_rows", "examples", "tokenized", "used_rows", "held_out", "share")
_TOKENS = ("dataset", "tokens", "used_tokens", "trained_share", *(f"p{p}" for p in PERCENTILES), "longest")


def as_tables(found: list[dict[str, Any]], title: str) -> Group:
    """The statistics for the terminal: rows, tokens, and what was dropped."""
    lost = [f"{entry['dataset']}: dropped {_dropped(entry['dropped'])}" for entry in found]
    return Group(_table(found, title, _ROWS), _table(found, "tokens", _TOKENS), *map(Text, lost))


def _table(found: list[dict[str, Any]], title: str, names: tuple[str, ...]) -> Table:
    # Numbers in full: names give way, on a terminal of 80 columns too.
    table = Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0)
    )
    for name in names:
        table.add_column(name.replace("_", "\n"), no_wrap=True, justify="left" if name == "dataset" else "right")
    for entry in found:
        table.add_row(_cut(entry["dataset"]), *(_cell(entry[name]) for name in names[1:]))
    return table


def _cell(value: Any) -> str:
    return f"{value:.1%}" if isinstance(value, float) else f"{value:,}"


def _cut(name: str) -> str:
    return name if len(name) <= _NAME else f"{name[: _NAME - 1]}…"


def _dropped(reasons: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in reasons.items()) or "none"
