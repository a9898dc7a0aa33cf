import json
import random

import numpy as np
import pytest
import torch

from post_training.core.errors import UserError
from post_training.data.deal import Dealing
from post_training.training.step_samples import (
    KEY,
    MicroBatches,
    SamplesLog,
    Seen,
    read_samples,
    row_digest,
    step_hash,
)


class Rows(list):
    def tokens(self, indices):
        return np.array([len(self[index]["input_ids"]) for index in indices])


def rows(count=8):
    drawn = random.Random(0)
    lengths = [drawn.randrange(1, 9) for _ in range(count)]
    return Rows({"input_ids": np.array([drawn.randrange(99) for _ in range(n)], dtype=np.int32)} for n in lengths)


def seen_by(ranks, per_micro_batch):
    """What each rank has seen of a step of 8 rows, and how many tokens."""

    def pad(examples):
        width = max(len(row["input_ids"]) for row in examples)
        masks = [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in examples]
        mask = torch.tensor(masks)
        return {"input_ids": torch.zeros_like(mask), "attention_mask": mask, "labels": torch.where(mask > 0, 5, -100)}

    dealing = Dealing(ranks, 8 // ranks // per_micro_batch, per_micro_batch)
    totals = []
    for rank in range(ranks):
        micro = MicroBatches(rows(), dealing, rank, pad)
        assert len(micro) == dealing.accumulation
        totals.append(sum((micro[number][KEY] for number in range(len(micro))), Seen()))
    assert (
        sum(seen.tokens for seen in totals)
        == sum(seen.trained_tokens for seen in totals)
        == rows().tokens(range(8)).sum()
    )
    return totals


def test_a_steps_hash_does_not_depend_on_how_rows_are_spread():
    hashes = {step_hash([seen.digest for seen in seen_by(ranks, size)]) for ranks in (1, 2, 4) for size in (1, 2)}
    assert len(hashes) == 1
    assert len(hashes.pop()) == 16
    assert sorted(row for seen in seen_by(2, 2) for row in seen.rows) == list(range(8))


@pytest.mark.parametrize("change", [{0: [1, 0]}, {2: [9] * 5}])
def test_another_row_or_another_token_is_another_hash(change):
    one = [row_digest(n, row) for n, row in enumerate(rows())]
    other = [row_digest(n, {"input_ids": change.get(n, row["input_ids"])}) for n, row in enumerate(rows())]
    assert step_hash(one) != step_hash(other)


def test_integer_type_and_log_probabilities_do_not_count():
    row = {"a": np.array([1, 2], dtype=np.int32)}
    assert row_digest(3, row) == row_digest(3, {"a": [1, 2], "ref_chosen_logps": np.float32(0.5)})
    assert row_digest(3, row) != row_digest(4, row)
    assert row_digest(3, {"a": [1, 2], "b": [3]}) != row_digest(3, {"a": [1], "b": [2, 3]})


def test_a_step_taken_again_must_have_seen_the_same(tmp_path):
    path = tmp_path / "samples.jsonl"
    log = SamplesLog(path)
    for step in (1, 2, 3):
        log.add(step, 8, [step, -1])
    path.write_text(path.read_text() + '{"step": 4, "ha')  # cut off by a kill
    again = SamplesLog(path)
    again.add(2, 8, [1, 0])  # the same sum, spread otherwise
    again.add(4, 8, [4])
    assert [line["step"] for line in read_samples(path)] == [1, 2, 3, 4]
    assert json.loads(path.read_text().splitlines()[0]) == {"step": 1, "rows": 8, "hash": "0" * 16}
    with pytest.raises(
        UserError, match=r"step 3 saw other rows than before this run was resumed \(hash 0{15}7, was 0{15}2\)"
    ):
        again.add(3, 8, [7])
