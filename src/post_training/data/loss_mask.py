"""Token ids and the mask of those that are trained on as one int32 column: the sign bit is set where one is not.

Half the bytes of ids beside labels, on disk and in the page cache.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

COLUMN = "tokens"
IGNORED = -100
"""The label of a token that is not trained on, as torch's cross entropy has it."""
Ids = npt.NDArray[np.int32]
_SIGN, _REST = np.int32(-(2**31)), np.int32(2**31 - 1)


def with_loss_mask(ids: Ids, trained: npt.NDArray[np.bool_]) -> Ids:
    """Ids and their loss mask as one column."""
    return np.where(trained, ids, ids | _SIGN)


def ids_of(tokens: Ids) -> Ids:
    """The token ids."""
    return tokens & _REST


def labels_of(tokens: Ids) -> Ids:
    """The token ids, and -100 where nothing is trained on."""
    return np.maximum(tokens, np.int32(IGNORED))


def input_ids_and_labels(columns: dict[str, Any]) -> dict[str, Any]:
    """The columns of a training row: `input_ids` and `labels` from the masked column, all others unchanged."""
    if COLUMN not in columns:
        return columns
    tokens = columns.pop(COLUMN)
    return {"input_ids": ids_of(tokens), "labels": labels_of(tokens), **columns}
