"""What evaluations of a model that answers and of a reward model share: the held-out rows of a mix, and results on pairs."""

from pathlib import Path
from typing import Any

import numpy as np

from post_training.core.errors import UserError
from post_training.data import shapes
from post_training.data.view import open_rows

SIDES = ("chosen", "rejected")
Result = dict[str, Any]
"""`kind`, `rows` (how many examples), and the measures of that kind."""


def held_out_rows(mix: Path, limit: int | None, longest: int) -> tuple[list[Any], int]:
    """Sequences of the held-out rows of a mix, each row once, at most `limit`; and how many have more than `longest` tokens.

    Raises UserError when all are too long.
    """
    documents = open_rows(mix, part="eval").distinct()
    shape = shapes.of_columns(documents.columns)
    numbers = np.random.default_rng(0).permutation(len(documents))[:limit]
    rows = [shape.sequences(documents[int(number)]) for number in numbers]
    kept = [row for row in rows if max(len(ids) for _, ids, _ in row) <= longest]
    if not kept:
        raise UserError(f"{mix}: no held-out row of {len(rows)} is short enough for the model")
    return kept, len(rows) - len(kept)


def on_pairs(rows: list[dict[str, Any]], totals: list[float], name: str) -> tuple[Result, list[dict[str, Any]]]:
    """The result on pairs, and each with its two numbers.

    Args:
        rows: `prompt`, `chosen` and `rejected` of each pair.
        totals: numbers of chosen and rejected answers in turn, higher = better.
        name: what they are, `logp` or `score`.
    """
    samples = [
        {key: row[key] for key in ("prompt", *SIDES)}
        | {f"chosen_{name}": chosen, f"rejected_{name}": rejected, "correct": chosen > rejected}
        for row, chosen, rejected in zip(rows, totals[::2], totals[1::2], strict=True)
    ]
    return {"kind": "preference", "rows": len(rows), **preference(totals)}, samples


def preference(totals: list[float]) -> dict[str, float]:
    """Accuracy and mean margin of numbers for chosen and rejected answers in turn."""
    margins = [chosen - rejected for chosen, rejected in zip(totals[::2], totals[1::2], strict=True)]
    return {"accuracy": sum(margin > 0 for margin in margins) / len(margins), "margin": sum(margins) / len(margins)}
