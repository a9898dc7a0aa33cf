"""The trainer's view: the same rows anywhere, opened at once, and batches equal to TRL's own."""

import json
import pickle
import time

import numpy as np
import pytest
import torch
from tiny import lists_of, write_mix

from post_training.core.errors import DataError
from post_training.data import collate
from post_training.data.mixing.epochs import write_epochs
from post_training.data.view import open_rows


def sft_rows(count=12, seed=0, documents=4):
    """Packed rows of random tokens; labels are kept on about half of them."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        sizes = rng.integers(1, 16, rng.integers(1, documents + 1)).tolist()
        ids = rng.integers(0, 300, sum(sizes))
        labels = np.where(rng.random(len(ids)) < 0.5, ids, -100)
        rows.append({"input_ids": ids.tolist(), "labels": labels.tolist(), "seq_lengths": sizes})
    return rows


def pairs(count=12, seed=0):
    rng = np.random.default_rng(seed)
    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    return [{name: rng.integers(0, 300, rng.integers(1, 20)).tolist() for name in columns} for _ in range(count)]


def unpacked(rows):
    return [{name: row[name] for name in ("input_ids", "labels")} for row in rows]


@pytest.fixture
def mixed(tmp_path):
    return write_mix(tmp_path, sft_rows(), packing=True)


def test_rows_are_those_that_were_written(mixed):
    assert lists_of(mixed) == sft_rows()
    rows = open_rows(mixed)
    assert [{k: v.tolist() for k, v in pickle.loads(pickle.dumps(rows))[i].items()} for i in (3, 11)] == [
        sft_rows()[i] for i in (3, 11)
    ]
    for index in (-1, 12):
        with pytest.raises(IndexError, match=f"no row {index} of 12"):
            rows[index]


def test_workers_of_a_data_loader_see_the_same_rows(mixed):
    loader = torch.utils.data.DataLoader(open_rows(mixed), batch_size=5, num_workers=2, collate_fn=list)
    assert [{k: v.tolist() for k, v in row.items()} for batch in loader for row in batch] == sft_rows()


def test_distinct_documents(tmp_path):
    mixed = write_mix(tmp_path, pairs(), packing=False)
    rows = open_rows(mixed)
    assert rows.documents == len(rows.distinct()) == 12
    write_epochs(mixed, 30)
    rows = open_rows(mixed, 30)
    distinct = rows.distinct()
    for index in range(30):
        number = rows.document(index)
        assert all(np.array_equal(rows[index][name], distinct[number][name]) for name in rows.column_names)
        assert distinct.document(number) == number


def test_epochs_have_all_documents_in_another_order_and_packing(stages):
    conversations = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "no " * (n % 9) + "."}]}
        for n in range(300)
    ]
    mixed = stages.mix({"d": stages.tokens_of(conversations)}, max_seq_length=128)
    one = lists_of(mixed)
    write_epochs(mixed, 3 * len(one))
    rows = lists_of(mixed)
    assert len(rows) == 3 * len(one) and rows[: len(one)] == one

    def documents(rows):
        return [
            tuple(ids)
            for row in rows
            for ids in np.split(np.array(row["input_ids"]), np.cumsum(row["seq_lengths"])[:-1])
        ]

    epochs = [documents(rows[i * len(one) : (i + 1) * len(one)]) for i in range(3)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    packed = [{frozenset(documents([row])) for row in rows[i * len(one) : (i + 1) * len(one)]} for i in range(3)]
    assert len(packed[0] & packed[1]) < len(packed[0]) / 10 and len(packed[1] & packed[2]) < len(packed[0]) / 10


def test_an_epoch_that_is_not_there_is_an_error_and_not_a_repetition(mixed):
    assert len(open_rows(mixed, 9)) == 9
    with pytest.raises(DataError, match=r"epoch-00001\.npy: cannot be opened"):
        open_rows(mixed, 13)


def test_other_tokens_behind_the_index_are_refused(mixed):
    tokens = mixed.parent / "tokens" / "manifest.json"
    before = tokens.read_text()
    told = json.loads(before)
    told["files"][0]["sha256"] = "0"
    tokens.write_text(json.dumps(told))
    with pytest.raises(DataError, match=r"tokens\.arrow: is not the file that .*delete"):
        open_rows(mixed)
    tokens.write_text(before)
    shard = mixed.parent / "tokens" / "tokens.arrow"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"tokens\.arrow: is not the file"):
        open_rows(mixed)
    shard.unlink()
    with pytest.raises(DataError, match=r"tokens\.arrow: cannot be read"):
        open_rows(mixed)


def arrays(rows):
    return [{name: np.array(values, dtype=np.int32) for name, values in row.items()} for row in rows]


def assert_same(ours, theirs):
    assert set(ours) == set(theirs)
    for name, expected in theirs.items():
        if isinstance(expected, torch.Tensor):
            assert ours[name].dtype == expected.dtype and torch.equal(ours[name], expected), name
        else:
            assert ours[name] == expected and type(ours[name]) is type(expected), name


@pytest.mark.parametrize("multiple", [None, 8])
@pytest.mark.parametrize("size", [1, 4])
def test_batches_are_trls_bit_for_bit(multiple, size):
    from trl.trainer.dpo_trainer import DataCollatorForPreference
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    for seed in range(20):
        packed, preferences = sft_rows(size, seed), pairs(size, seed)
        for free, rows in ((True, packed), (True, unpacked(packed)), (False, unpacked(packed))):
            theirs = DataCollatorForLanguageModeling(7, padding_free=free, pad_to_multiple_of=multiple)
            assert_same(collate.as_fast(theirs)(arrays(rows)), theirs(rows))
        theirs = DataCollatorForPreference(7, max_length=64, pad_to_multiple_of=multiple)
        assert_same(collate.as_fast(theirs)(arrays(preferences)), theirs(preferences))
        scores = [{"ref_chosen_logps": -1.3 * n, "ref_rejected_logps": -2.7} for n in range(size)]
        scored = [
            [row | score for row, score in zip(rows, scores, strict=True)]
            for rows in (arrays(preferences), preferences)
        ]
        assert_same(collate.as_fast(theirs)(scored[0]), theirs(scored[1]))


def test_a_collator_of_another_kind_is_left_alone():
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    class Other(DataCollatorForLanguageModeling):
        pass

    for theirs in (Other(0), list, DataCollatorForLanguageModeling(0, return_position_ids=True)):
        assert collate.as_fast(theirs) is theirs


def test_a_million_documents_open_in_a_moment(tmp_path):
    """The bound is 50 ms; the median of five, with room for a busy machine."""
    from post_training.data import view
    from post_training.data.mixing import epochs

    mixed = write_mix(tmp_path, sft_rows(), packing=True)
    count = 1_000_000
    documents = np.zeros(count, view.document_type(["tokens"]))
    documents["tokens_length"], documents["tokens"] = 3, 64
    epochs.save(tmp_path / "documents.npy", documents)
    keys = np.zeros(count, epochs.KEY_TYPE)
    keys["copies"], keys["key"], keys["length"] = 1, np.arange(count), 3
    epochs.save(tmp_path / "keys.npy", keys)
    config = json.loads(mixed.read_text())["config"] | {"max_seq_length": 30}
    rows = epochs.write_epoch(mixed, 0, config)
    assert rows == count // 10
    mixed.write_text(json.dumps(json.loads(mixed.read_text()) | {"rows_out": rows}))
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        opened = open_rows(mixed)
        opened[99_999]
        seconds.append(time.perf_counter() - started)
    assert sorted(seconds)[2] < 0.05, seconds


def test_the_source_rows_of_packed_documents_are_found_in_their_shards(sft_rows):
    rows = open_rows(sft_rows)
    sources = [rows.sources(index) for index in range(3)]
    assert [len(documents) for documents in sources] == [len(rows[index]["seq_lengths"]) for index in range(3)]
    assert [text for documents in sources for text in documents] == [
        f"tokens row {n}" for n in range(sum(map(len, sources)))
    ]


def test_the_source_rows_of_pairs(dpo_rows):
    assert open_rows(dpo_rows).sources(5) == ["tokens row 5"]
