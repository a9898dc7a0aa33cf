"""Evaluation of a reward model: how often the better answer of a held-out pair has the higher score.

The results have the form of `Evaluator`'s for preferences: `accuracy`, and `margin`, the mean difference of the scores, which are
log-odds in nats. Datasets without pairs say nothing of a reward model.
"""

from pathlib import Path
from typing import Any

from post_training.core.progress import Progress
from post_training.evaluation.preferences import SIDES, Result, held_out_rows, on_pairs, preference
from post_training.models.conversation import conversation_ids
from post_training.models.loading import longest_input, padded_scores


class Scorer:
    """A reward model with its chat template."""

    def __init__(self, model: Any, tokenizer: Any, template: str, batch_size: int) -> None:
        self.model, self.tokenizer, self.template, self.batch_size = model, tokenizer, template, batch_size
        self.longest = longest_input(model)

    def fits(self, row: dict[str, Any]) -> bool:
        """Whether both answers of a pair stay within the model's positions."""
        return all(len(self._encode(row, side)) <= self.longest for side in SIDES)

    def preferences(self, rows: list[dict[str, Any]]) -> tuple[Result, list[dict[str, Any]]]:
        """Share of pairs whose chosen answer has the higher score, and the mean difference; and each pair with its scores."""
        scores = self._scores([self._encode(row, side) for row in rows for side in SIDES])
        return on_pairs(rows, scores, "score")

    def held_out(self, mix: Path, limit: int | None) -> tuple[Result, int, int]:
        """The result on the held-out pairs of a mix; how many were used, and how many are too long for the model.

        Raises UserError when all are too long.
        """
        kept, dropped = held_out_rows(mix, limit, self.longest)
        scores = self._scores([ids.tolist() for row in kept for _, ids, _ in row])
        return {"kind": "preference", **preference(scores), "rows": len(kept)}, len(kept), dropped

    def _encode(self, row: dict[str, Any], side: str) -> list[int]:
        return conversation_ids(self.tokenizer, row["prompt"] + row[side], self.template, row.get("tools"))

    def _scores(self, sequences: list[list[int]]) -> list[float]:
        progress = Progress("evaluate: scores", "answers", len(sequences))
        return padded_scores(self.model, sequences, self.tokenizer.pad_token_id, self.batch_size, progress.update)
