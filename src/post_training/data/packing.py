"""Best-fit-decreasing packing of documents into rows: pure, no I/O."""

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


def best_fit(lengths: npt.NDArray[np.int64], capacity: int) -> list[Indices]:
    """Pack documents into as few rows as best-fit-decreasing finds (Ding et al. 2024, arXiv:2404.10830).

    Args:
        lengths: tokens of each document, [n], each from 1 to `capacity`.
        capacity: tokens of a row.

    Returns:
        One array of document indices a row, longest document first; their lengths sum to at most
        `capacity`, and every document is in exactly one row.

    Raises ValueError for a length out of range.

    >>> [row.tolist() for row in best_fit(np.array([3, 5, 2, 4]), 7)]
    [[1, 2], [3, 0]]
    """
    if len(lengths) and (lengths.min() < 1 or lengths.max() > capacity):
        raise ValueError(f"lengths must be from 1 to {capacity}, found {lengths.min()} to {lengths.max()}")
    rows: list[list[int]] = []
    # Rows by free space, and a bit for each size of free space that some row has: the smallest one that
    # fits is the lowest bit at or above the length, so a document costs no search over rows.
    with_space: list[list[int]] = [[] for _ in range(capacity + 1)]
    spaces = 0
    for index in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[index])
        fitting = spaces >> length
        if fitting:
            space = length + (fitting & -fitting).bit_length() - 1
            row = with_space[space].pop()
            if not with_space[space]:
                spaces &= ~(1 << space)
            rows[row].append(index)
        else:
            space, row = capacity, len(rows)
            rows.append([index])
        left = space - length
        if left:
            with_space[left].append(row)
            spaces |= 1 << left
    return [np.array(row, dtype=np.int64) for row in rows]
