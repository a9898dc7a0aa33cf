"""Evaluation of a reward model: how often the better answer of a held-out pair has the higher score.

The results have the form of `Evaluator`'s for preferences: `accuracy`, and `margin`, the mean difference of the scores, which are
log-odds in nats. Datasets without pairs say nothing of a reward model.
"""

from pathlib import Path
from typing import Any

import numpy as np

from post_training.core.errors import UserError
from post_training.core.progress import Progress
from post_training.data import shapes
from post_training.data.view import open_rows
from post_training.models.loading import longest_input, padded_scores

_SIDES = ("chosen", "rejected")
Result = dict[str, Any]


class Scorer:
    """A reward model with its chat template."""

    def __init__(self, model: Any, tokenizer: Any, template: str, batch_size: int) -> None:
        self.model, self.tokenizer, self.template, self.batch_size = model, tokenizer, template, batch_size
        self.longest = longest_input(model)

    def fits(self, row: dict[str, Any]) -> bool:
        """Whether both answers of a pair stay within the model's positions."""
        return all(len(self._encode(row, side)) <= self.longest for side in _SIDES)

    def preferences(self, rows: list[dict[str, Any]]) -> tuple[Result, list[dict[str, Any]]]:
        """Share of pairs whose chosen answer has the higher score, and the mean difference; and each pair with its scores."""
        scores = self._scores([self._encode(row, side) for row in rows for side in _SIDES])
        samples = [
            {key: row[key] for key in ("prompt", *_SIDES)}
            | {"chosen_score": chosen, "rejected_score": rejected, "correct": chosen > rejected}
            for row, chosen, rejected in zip(rows, scores[::2], scores[1::2], strict=True)
        ]
        return {"kind": "preference", "rows": len(rows), **preference(scores)}, samples

    def held_out(self, mix: Path, limit: int | None) -> tuple[Result, int, int]:
        """The result on the held-out pairs of a mix; how many were used, and how many are too long for the model.

        Raises UserError when all are too long.
        """
        documents = open_rows(mix, part="eval").distinct()
        shape = shapes.of_columns(documents.columns)
        numbers = np.random.default_rng(0).permutation(len(documents))[:limit]
        rows = [[ids for _, ids, _ in shape.sequences(documents[int(number)])] for number in numbers]
        kept = [row for row in rows if max(map(len, row)) <= self.longest]
        if not kept:
            raise UserError(f"{mix}: no held-out row of {len(rows)} is short enough for the model")
        scores = self._scores([ids.tolist() for row in kept for ids in row])
        return {"kind": "preference", **preference(scores), "rows": len(kept)}, len(kept), len(rows) - len(kept)

    def _encode(self, row: dict[str, Any], side: str) -> list[int]:
        settings = {"chat_template": self.template, "tokenize": False, "tools": row.get("tools")}
        text = str(self.tokenizer.apply_chat_template(row["prompt"] + row[side], **settings))
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _scores(self, sequences: list[list[int]]) -> list[float]:
        """In batches of like lengths, so that there is little padding."""
        order = sorted(range(len(sequences)), key=lambda index: len(sequences[index]))
        found, progress = [0.0] * len(sequences), Progress("evaluate: scores", "answers", len(sequences))
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            scores = padded_scores(self.model, [sequences[index] for index in batch], self.tokenizer.pad_token_id)
            for index, score in zip(batch, scores, strict=True):
                found[index] = score
            progress.update(start + len(batch))
        return found


def preference(totals: list[float]) -> dict[str, float]:
    """Accuracy and mean margin of numbers for chosen and rejected answers in turn."""
    margins = [chosen - rejected for chosen, rejected in zip(totals[::2], totals[1::2], strict=True)]
    return {"accuracy": sum(margin > 0 for margin in margins) / len(margins), "margin": sum(margins) / len(margins)}
