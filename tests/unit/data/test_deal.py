"""How the rows of a step are dealt to ranks and micro-batches."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from post_training.data.deal import BY_LENGTH, BY_TOKENS, IN_ORDER, Dealing, imbalance, row_tokens

sizes = st.integers(1, 6)


@pytest.mark.parametrize("kind", [BY_TOKENS, BY_LENGTH, IN_ORDER])
@given(ranks=sizes, accumulation=sizes, per_device=sizes, seed=st.integers(0, 1000))
def test_every_row_lies_in_one_micro_batch_and_none_is_larger_than_equal_rows_would_make_it(
    kind, ranks, accumulation, per_device, seed
):
    dealing = Dealing(ranks, accumulation, per_device, kind)
    tokens = np.random.default_rng(seed).integers(1, 50, dealing.rows)
    dealt = [dealing.deal(tokens, rank) for rank in range(ranks)]
    assert [len(own) for own in dealt] == [accumulation] * ranks
    micro = [part for own in dealt for part in own]
    assert sorted(row for part in micro for row in part) == list(range(dealing.rows))
    assert all(part == sorted(part) and len(part) >= 1 for part in micro)
    loads = [int(tokens[part].sum()) for part in micro]
    assert max(loads) <= per_device * tokens.max()
    if kind == BY_TOKENS:  # the guarantee of longest first: at most 4/3 of the best
        assert max(loads) <= max(tokens.max(), 4 / 3 * tokens.sum() / len(loads) + tokens.max() / 3)
    else:
        assert {len(part) for part in micro} == {per_device}


def test_in_order_a_micro_batch_does_not_depend_on_the_number_of_ranks():
    tokens = np.arange(12)[::-1]
    one = Dealing(1, 6, 2, IN_ORDER).deal(tokens, 0)
    three = [Dealing(3, 2, 2, IN_ORDER).deal(tokens, rank) for rank in range(3)]
    assert one == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11]]
    assert one == [three[number % 3][number // 3] for number in range(6)]


def test_ranks_have_about_equal_tokens():
    tokens = np.random.default_rng(0).lognormal(5, 1, 64).astype(np.int64)
    dealing = Dealing(4, 4, 4)
    dealt = imbalance([int(sum(tokens[part].sum() for part in dealing.deal(tokens, rank))) for rank in range(4)])
    in_order = imbalance(tokens.reshape(4, 16).sum(1).tolist())
    assert dealt < 1.02 < in_order


def test_a_prompt_counts_with_each_of_its_answers():
    pair = {"prompt_ids": np.array([10, 1]), "chosen_ids": np.array([3, 1]), "rejected_ids": np.array([4, 1])}
    assert row_tokens(pair).tolist() == [27, 4]
    judged = {"prompt_ids": np.array([10]), "completion_ids": np.array([3]), "label": np.array([1])}
    assert row_tokens(judged).tolist() == [13]
    assert row_tokens({"input_ids": np.array([7])}).tolist() == [7]
