"""`token-stats`: a line for each dataset, from its source rows to what the mix uses of them."""

from typing import Any

import numpy as np
from rich.table import Table

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


def as_table(found: list[dict[str, Any]], title: str) -> Table:
    """The statistics for the terminal."""
    table = Table(title=title, title_justify="left")
    for name in found[0]:
        number = name not in ("dataset", "dropped")
        table.add_column(name.replace("_", " "), overflow="fold", justify="right" if number else "left")
    for entry in found:
        dropped = ", ".join(f"{reason} {count:,}" for reason, count in entry["dropped"].items())
        cells = [f"{v:.1%}" if isinstance(v, float) else f"{v:,}" for v in list(entry.values())[1:-1]]
        table.add_row(entry["dataset"], *cells, dropped or "none")
    return table
