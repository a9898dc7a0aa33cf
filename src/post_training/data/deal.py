"""Which rows of an optimizer step are in which micro-batch of which rank.

The rows of a step are the mix's; which of them are computed together does not change a loss that is a sum over rows. So they
are dealt to micro-batches of about equal numbers of tokens, that ranks do not wait for each other: the longest first, each to the
micro-batch that has the fewest so far. None of them gets more tokens than that many rows of the greatest length would have.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from post_training.data.shapes import VALUES

Counts = npt.NDArray[np.int64]

BY_TOKENS, BY_LENGTH, IN_ORDER = "by tokens", "by length", "in order"


@dataclass(frozen=True)
class Dealing:
    """How the rows of every step are dealt."""

    ranks: int
    accumulation: int
    """Micro-batches of a rank."""
    per_device: int
    """Rows of a micro-batch, on average."""
    kind: str = BY_TOKENS
    """`by tokens`; `by length`, as many rows in each, of like lengths, where they are padded; or `in order`, as many rows in each
    in the mix's order, for losses that compare the rows of a micro-batch."""

    @property
    def rows(self) -> int:
        """Rows of a step."""
        return self.ranks * self.accumulation * self.per_device

    def deal(self, tokens: Counts, rank: int) -> list[list[int]]:
        """The rank's micro-batches, each as the places of its rows in the step, in ascending order.

        Args:
            tokens: of each row of the step, int64 `[rows]`.
            rank: from 0 on.
        """
        parts = self._parts(tokens)
        own = []
        for number in range(self.accumulation):
            # There and back, so that no rank always has the largest.
            back = number % 2 and self.kind != IN_ORDER
            place = self.ranks - 1 - rank if back else rank
            own.append(sorted(parts[number * self.ranks + place]))
        return own

    def _parts(self, tokens: Counts) -> list[list[int]]:
        """The micro-batches of all ranks, the largest first."""
        count = self.ranks * self.accumulation
        if self.kind == IN_ORDER:
            return np.arange(self.rows).reshape(count, -1).tolist()
        longest_first = np.argsort(-tokens, kind="stable")
        if self.kind == BY_LENGTH:
            return longest_first.reshape(count, -1).tolist()
        parts: list[list[int]] = [[] for _ in range(count)]
        loads = [(0, number) for number in range(count)]
        for row, size in zip(longest_first.tolist(), tokens[longest_first].tolist(), strict=True):
            load, number = loads[0]
            parts[number].append(row)
            heapq.heapreplace(loads, (load + size, number))
        order = sorted((-load, number) for load, number in loads)
        return [parts[number] for _, number in order]


def row_tokens(lengths: dict[str, npt.NDArray[Any]]) -> Counts:
    """Tokens that the model computes for each of some documents, int64 `[documents]`: a prompt once with each of its answers.

    Args:
        lengths: of the documents' columns by name, as in the shapes of `data/shapes`.
    """
    sizes = {name: np.asarray(size, dtype=np.int64) for name, size in lengths.items() if name not in VALUES}
    prompt: Any = sizes.pop("prompt_ids", 0)
    return np.asarray(np.sum([size + prompt for size in sizes.values()], axis=0))


def imbalance(tokens: Sequence[float]) -> float:
    """The largest of the ranks' tokens over their mean: what a step takes beside what it could take."""
    return max(tokens) * len(tokens) / max(sum(tokens), 1)
