"""`token-stats`: a line a dataset, from source rows to what the mix uses of them."""

from typing import Any

import numpy as np
from rich.table import Table

from post_training.core import manifest
from post_training.data.mixing.shards import Tokenized
from post_training.inspection.collect import datasets_of
from post_training.plan import Plan

PERCENTILES = (50, 90, 99)


def statistics(plan: Plan, method: str) -> list[dict[str, Any]]:
    """For each dataset of a stage: rows, tokens, lengths, and what was dropped at which step."""
    mixed = plan.mixed[method]
    used = {entry["name"]: entry for entry in manifest.read(plan.base / mixed.manifest)["table"]}
    found = []
    for name, (_, transformed, tokenized) in datasets_of(plan, mixed).items():
        told, tokens = (manifest.read(plan.base / stage.manifest) for stage in (transformed, tokenized))
        opened = Tokenized.open(name, plan.base / tokenized.manifest, mixed.config["rows"], 0)
        own = used.get(name)
        dropped = {**told["dropped"], **tokens["dropped"]}
        if own:
            dropped |= {reason: count["rows"] for reason, count in own["dropped"].items()}
        quantiles = np.percentile(opened.lengths, PERCENTILES).astype(int).tolist()
        found.append(
            {
                "dataset": name,
                "source_rows": told["rows_in"],
                "examples": told["examples"],
                "tokenized": tokens["rows_out"],
                "tokens": tokens["tokens"],
                "trained_share": tokens["trained_tokens"] / max(tokens["tokens"], 1),
                **{f"p{p}": value for p, value in zip(PERCENTILES, quantiles, strict=True)},
                "longest": int(opened.lengths.max()),
                "dropped": dropped,
                "used_rows": own["rows_used"] if own else 0,
                "used_tokens": own["tokens"] if own else 0,
                "share": own["share"] if own else 0.0,
                "held_out": own["held_out"]["rows"] if own else tokens["rows_out"],
            }
        )
    return found


def as_table(found: list[dict[str, Any]], title: str) -> Table:
    """For the terminal."""
    table = Table(title=title, title_justify="left")
    table.add_column("dataset", overflow="fold")
    columns = (
        "source_rows",
        "examples",
        "tokenized",
        "tokens",
        "trained_share",
        *(f"p{p}" for p in PERCENTILES),
        "longest",
    )
    for name in (*columns, "used_rows", "used_tokens", "share", "held_out"):
        table.add_column(name.replace("_", " "), justify="right")
    table.add_column("dropped", overflow="fold")
    for entry in found:
        cells = [
            f"{value:.1%}" if isinstance(value, float) else f"{value:,}"
            for value in (entry[column] for column in (*columns, "used_rows", "used_tokens", "share", "held_out"))
        ]
        dropped = ", ".join(f"{reason} {count:,}" for reason, count in entry["dropped"].items())
        table.add_row(entry["dataset"], *cells, dropped or "none")
    return table
