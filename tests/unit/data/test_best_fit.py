"""Packing as a pure function."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from post_training.data.mixing import packing


def best_fit(lengths, capacity):
    members, starts = packing.best_fit(lengths, capacity)
    return np.split(members, starts[1:-1]) if len(starts) > 1 else []


cases = st.integers(1, 50).flatmap(lambda c: st.tuples(st.just(c), st.lists(st.integers(1, c), max_size=60)))


@given(cases)
def test_nothing_is_lost_doubled_or_too_long(case):
    capacity, lengths = case
    rows = best_fit(np.array(lengths, dtype=np.int64), capacity)
    assert sorted(index for row in rows for index in row.tolist()) == list(range(len(lengths)))
    assert all(0 < sum(lengths[index] for index in row) <= capacity for row in rows)


@given(cases)
def test_as_good_as_best_fit_decreasing_must_be(case):
    capacity, lengths = case
    rows = best_fit(np.array(lengths, dtype=np.int64), capacity)
    assert len(rows) == naive(lengths, capacity)
    # No two rows could have been one, which any fitting rule guarantees.
    filled = sorted(sum(lengths[index] for index in row) for row in rows)
    assert len(filled) < 2 or filled[0] + filled[1] > capacity


def naive(lengths, capacity):
    """Best fit decreasing as the books have it."""
    spaces = []
    for length in sorted(lengths, reverse=True):
        fitting = [index for index, space in enumerate(spaces) if space >= length]
        if fitting:
            best = min(fitting, key=lambda index: spaces[index])
            spaces[best] -= length
        else:
            spaces.append(capacity - length)
    return len(spaces)


def test_deterministic_and_longest_first():
    lengths = np.random.default_rng(0).integers(1, 300, 1000)
    once, again = best_fit(lengths, 512), best_fit(lengths.copy(), 512)
    assert [row.tolist() for row in once] == [row.tolist() for row in again]
    assert all((np.diff(lengths[row]) <= 0).all() for row in once)


def test_lengths_out_of_range():
    for lengths in ([0, 1], [1, 9]):
        with pytest.raises(ValueError, match="from 1 to 8"):
            best_fit(np.array(lengths), 8)
    assert best_fit(np.zeros(0, dtype=np.int64), 8) == []


def test_a_hundred_thousand_documents_in_a_moment():
    """The bound is 0.2 s on two free cores; five times that is allowed for a busy machine."""
    lengths = np.clip(np.random.default_rng(0).lognormal(5.6, 0.8, 100_000).astype(np.int64), 1, 2048)
    started = time.perf_counter()
    rows = best_fit(lengths, 2048)
    assert time.perf_counter() - started < 1.0
    assert lengths.sum() / (len(rows) * 2048) > 0.999
