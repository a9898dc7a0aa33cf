"""Best-fit-decreasing packing of documents into rows: pure, no I/O."""

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


def best_fit(lengths: Indices, capacity: int) -> tuple[Indices, Indices]:
    """Pack documents into as few rows as best-fit-decreasing finds (Ding et al. 2024, arXiv:2404.10830).

    Args:
        lengths: tokens of each document, [n], each from 1 to `capacity`.
        capacity: tokens of a row.

    Returns:
        `members` [n], the documents of one row after the other, longest first within a row; and `starts`
        [rows + 1]: row r holds `members[starts[r]:starts[r + 1]]`. Every document is in exactly one row,
        and the lengths of a row's documents sum to at most `capacity`. Documents of equal length are
        taken in their order, so another order of the documents is another packing.

    Raises ValueError for a length out of range.
    """
    if len(lengths) and (lengths.min() < 1 or lengths.max() > capacity):
        raise ValueError(f"lengths must be from 1 to {capacity}, found {lengths.min()} to {lengths.max()}")
    order = np.argsort(-lengths, kind="stable")
    row_of = np.empty(len(lengths), dtype=np.int64)
    rows = placed = 0
    # Rows by free space, and a bit for each size of free space that some row has: the smallest one that
    # fits is the lowest bit at or above the length, so nothing is searched.
    with_space: list[list[int]] = [[] for _ in range(capacity + 1)]
    spaces = 0
    counts = np.bincount(lengths, minlength=1).tolist()
    for length in range(len(counts) - 1, 0, -1):
        left = counts[length]
        while left:
            fitting = spaces >> length
            if fitting:
                space = length + (fitting & -fitting).bit_length() - 1
                same = with_space[space]
            else:
                space = capacity
                same = list(range(rows, rows - -left // (capacity // length)))
                rows += len(same)
            # After one document of this length a row is the best fit for the next one, as long as it fits:
            # so all rows of this space are filled at once.
            each = space // length
            used = min(len(same), -(-left // each))
            taken = same[len(same) - used :]
            del same[len(same) - used :]
            full, rest = divmod(left, each) if used * each > left else (used, 0)
            row_of[placed : placed + full * each] = np.repeat(taken[:full], each)
            if rest:
                row_of[placed + full * each : placed + left] = taken[full]
            done = min(left, used * each)
            placed, left = placed + done, left - done
            if not same:
                spaces &= ~(1 << space)
            for some, documents in ((taken[:full], each), (taken[full:], rest)):
                free = space - documents * length
                if some and free:
                    with_space[free] += some
                    spaces |= 1 << free
    by_row = np.argsort(row_of, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(row_of, minlength=rows))]).astype(np.int64)
    return order[by_row], starts
