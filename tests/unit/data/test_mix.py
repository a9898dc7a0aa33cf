"""Which rows are chosen, in what order, and what is written."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import lists_of

from post_training.core.errors import DataError
from post_training.data.shapes.preference import margin
from post_training.data.view import open_rows


def conversation(name, n, words=None):
    turns = {"user": f"{name} {n}?", "assistant": " ".join(["no"] * (n % 7 + 1 if words is None else words))}
    return {"messages": [{"role": role, "content": content} for role, content in turns.items()]}


def pair(n):
    return {"prompt": f"q {n}", "chosen": "yes " * (n % 5 + 1), "rejected": "no " * (n % 3 + 1)}


@pytest.fixture(scope="module")
def datasets(module_stages):
    """Three tokenised datasets of conversations: a of 300, b of 200, c of 100 rows."""
    sizes = {"a": 300, "b": 200, "c": 100}
    return {
        name: module_stages.tokens_of([conversation(name, n) for n in range(k)], name=name) for name, k in sizes.items()
    }


@pytest.fixture(scope="module")
def pairs(module_stages):
    return module_stages.tokens_of([pair(n) for n in range(50)], shape="preference", name="p")


@pytest.fixture(scope="module")
def document(datasets, tokens):
    """Token ids -> (dataset, row number)."""
    return {
        tuple(row["input_ids"]): (name, row["row"]) for name, manifest in datasets.items() for row in tokens(manifest)
    }


def documents_of(manifest, document):
    """What a mix holds, in order: (dataset, row number) of every document."""
    found = []
    for row in lists_of(manifest):
        start = 0
        for size in row.get("seq_lengths") or [len(row["input_ids"])]:
            found.append(document[tuple(row["input_ids"][start : start + size])])
            start += size
        assert start == len(row["input_ids"]) == len(row["labels"])
    return found


def order_of(stages, document, datasets, weights=None, **config):
    mixed = stages.mix(datasets, packing=False, weights=weights or {}, **config)
    return documents_of(mixed, document)


def only(order, name):
    return [row for dataset, row in order if dataset == name]


def test_every_row_once_in_a_mixed_order(stages, datasets, document):
    order = order_of(stages, document, datasets)
    assert sorted(order) == sorted(
        (name, n) for name, k in (("a", 300), ("b", 200), ("c", 100)) for n in range(1, k + 1)
    )
    assert {name for name, _ in order[:20]} == {"a", "b", "c"}
    assert only(order, "a") != sorted(only(order, "a"))
    assert order == order_of(stages, document, datasets)
    assert order != order_of(stages, document, datasets, seed=43)


def test_another_dataset_or_weight_moves_no_other_row(stages, datasets, document):
    alone = order_of(stages, document, {"a": datasets["a"]}, {"a": 0.5})
    two = order_of(stages, document, {"a": datasets["a"], "b": datasets["b"]}, {"a": 0.5, "b": 1.0})
    three = order_of(stages, document, datasets, {"a": 0.5, "b": 0.25, "c": 3.0})
    assert only(alone, "a") == only(two, "a") == only(three, "a")
    assert [row for row in only(two, "b") if row in set(only(three, "b"))] == only(three, "b")


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(0.02, 3), st.floats(0.02, 3))
def test_a_larger_weight_only_adds_rows(stages, datasets, document, one, other):
    small, large = sorted((one, other))
    data = {"a": datasets["a"]}
    fewer, more = (order_of(stages, document, data, {"a": weight}) for weight in (small, large))
    assert len(fewer) == int(small) * 300 + round(small % 1 * 300)
    assert not Counter(fewer) - Counter(more)
    copies = Counter(fewer).values()
    assert set(copies) <= {int(small), int(small) + 1}


def test_whole_weights_are_whole_copies(stages, datasets, document):
    order = order_of(stages, document, {"c": datasets["c"]}, {"c": 2.0})
    assert Counter(order) == dict.fromkeys((("c", n) for n in range(1, 101)), 2)


@pytest.mark.parametrize("capacity", [24, 64, 500])
def test_packing_loses_and_doubles_nothing(stages, datasets, document, tokens, read, capacity):
    manifest = stages.mix(datasets, max_seq_length=capacity)
    rows, found = lists_of(manifest), read(manifest)
    fitting = [d for ids, d in document.items() if len(ids) <= capacity]
    assert sorted(documents_of(manifest, document)) == sorted(fitting)
    labels = {tuple(row["input_ids"]): row["labels"] for name in datasets for row in tokens(datasets[name])}
    for row in rows:
        assert sum(row["seq_lengths"]) == len(row["input_ids"]) <= capacity
        start = 0
        for size in row["seq_lengths"]:
            assert row["labels"][start : start + size] == labels[tuple(row["input_ids"][start : start + size])]
            start += size
    assert found["rows_out"] == len(rows) and found["documents"] == len(fitting)
    assert found["tokens"] == sum(len(row["input_ids"]) for row in rows)
    assert found["trained_tokens"] == sum(label != -100 for row in rows for label in row["labels"])
    assert found["packing_efficiency"] == pytest.approx(found["tokens"] / (len(rows) * capacity), abs=1e-5)


def test_columns_and_types(stages, datasets, pairs):
    packed, plain = stages.mix(datasets), stages.mix(datasets, packing=False, name="plain")
    paired = stages.mix({"p": pairs}, shape="preference", name="paired")
    for mixed, columns in (
        (packed, ["input_ids", "labels", "seq_lengths"]),
        (plain, ["input_ids", "labels"]),
        (paired, ["prompt_ids", "chosen_ids", "rejected_ids"]),
    ):
        rows = open_rows(mixed)
        assert list(rows[0]) == rows.column_names == columns
        assert {values.dtype for row in rows for values in row.values()} == {np.dtype(np.int32)}
    assert sorted(path.name for path in packed.parent.iterdir()) == [
        "documents.npy", "epoch-00000.npy", "keys.npy", "manifest.json",
    ]  # fmt: skip


def test_a_margin_stays_with_its_pair_and_pairs_without_one_have_none(stages, pairs, read):
    margins = [*(n / 10 - 1 for n in range(40)), 1e39, None]
    rows = [pair(100 + n) | {"margin": value} for n, value in enumerate(margins)]
    given = stages.tokens_of(rows, shape="preference", name="given", transform="preference_margin")
    assert read(given)["rows_in"] == 40  # without null, and what is beyond float32
    mixed = stages.mix({"p": pairs, "given": given}, shape="preference", name="both", eval_fraction=0.5)
    expected = {f"given row {n}": np.float32(value) for n, value in enumerate(margins[:40], 1)}
    for part in ("train", "eval"):
        opened = open_rows(mixed, part=part)
        found = {opened.sources(n)[0]: margin(opened[n]) for n in range(len(opened))}
        assert found == {name: expected.get(name, 0.0) for name in found}
        assert 0 < sum(name in expected for name in found) < len(found) and opened.lengths().max() < 60


def test_long_rows_are_counted_with_their_tokens(stages, read):
    rows = [conversation("x", n, words=n) for n in range(1, 60)]
    manifest = stages.tokens_of(rows)
    lengths = read(manifest)
    found = read(mixed := stages.mix({"d": manifest}, max_seq_length=40, weights={"d": 2.0}))
    (entry,) = found["table"]
    long = entry["dropped"]["too_long"]
    assert 0 < long["rows"] < 59 and found["dropped"] == {"too_long": long["rows"]}
    assert entry["rows_available"] + long["rows"] == 59 == found["rows_in"]
    assert entry["rows_used"] == 2 * entry["rows_available"] == 2 * found["documents"]
    assert entry["tokens"] == found["tokens"] == 2 * (lengths["tokens"] - long["tokens"])
    assert max(size for row in lists_of(mixed) for size in row["seq_lengths"]) <= 40


def test_a_table_of_what_was_used(stages, datasets, read):
    found = read(stages.mix(datasets, weights={"a": 0.5, "b": 1.5, "c": 0.001}))
    keys = ("name", "weight", "rows_available", "rows_used", "rows_left_out", "documents")
    assert [tuple(e[key] for key in keys) for e in found["table"]] == [
        ("a", 0.5, 300, 150, 150, 150), ("b", 1.5, 200, 300, 0, 200), ("c", 0.001, 100, 0, 100, 0),
    ]  # fmt: skip
    assert found["rows_in"] == 600 and sum(e["share"] for e in found["table"]) == pytest.approx(1, abs=1e-4)
    for key in ("tokens", "trained_tokens"):
        assert sum(entry[key] for entry in found["table"]) == found[key]


def test_pairs(stages, pairs, tokens, read):
    found = read(mixed := stages.mix({"p": pairs}, shape="preference"))
    rows = lists_of(mixed)
    columns = ["prompt_ids", "chosen_ids", "rejected_ids"]
    expected = [{name: row[name] for name in columns} for row in tokens(pairs)]
    assert sorted(map(str, rows)) == sorted(map(str, expected))
    assert found["packing_efficiency"] is None and found["rows_out"] == found["documents"] == 50
    assert found["tokens"] == sum(len(ids) for row in expected for ids in row.values())
    assert found["trained_tokens"] == sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in expected)


def test_a_pair_is_as_long_as_its_longer_answer(stages, pairs, tokens, read):
    lengths = [len(r["prompt_ids"]) + max(len(r["chosen_ids"]), len(r["rejected_ids"])) for r in tokens(pairs)]
    limit = sorted(lengths)[30]
    found = read(stages.mix({"p": pairs}, shape="preference", max_seq_length=limit))
    long = [length for length in lengths if length > limit]
    gone = found["table"][0]["dropped"]["too_long"]
    assert gone == {"rows": len(long), "tokens": read(pairs)["tokens"] - found["tokens"]}
    assert found["rows_out"] == 50 - len(long)


def test_pairs_whose_prompt_alone_is_too_long_are_counted_apart(stages, tokens, read):
    some = [{"prompt": "no " * (n + 1), "chosen": "yes " * (n % 7 + 1), "rejected": "no"} for n in range(40)]
    rows = tokens(manifest := stages.tokens_of(some, shape="preference", name="varied"))
    prompts = [len(row["prompt_ids"]) for row in rows]
    lengths = [len(r["prompt_ids"]) + max(len(r["chosen_ids"]), len(r["rejected_ids"])) for r in rows]
    limit = sorted(prompts)[30]
    found = read(stages.mix({"p": manifest}, shape="preference", max_seq_length=limit, name="short"))
    alone = sum(size >= limit for size in prompts)
    long = sum(length > limit for length in lengths) - alone
    assert alone and long and found["dropped"] == {"prompt_too_long": alone, "too_long": long}
    assert found["rows_out"] == 40 - alone - long > 0


def test_nothing_left_is_refused(stages, datasets):
    for config in ({"max_seq_length": 3}, {"weights": dict.fromkeys(datasets, 0.0001)}):
        with pytest.raises(DataError, match=r"no row to train on: .*raise one of them"):
            stages.mix(datasets, **config)
        assert not (stages.base / "data" / "mix" / "m" / "manifest.json").exists()


def test_several_shards_are_one_dataset(stages, datasets, monkeypatch, read):
    from post_training.data.tokens import shards

    whole = stages.mix({"a": datasets["a"]})
    monkeypatch.setattr(shards, "LEAST_BYTES", 9000)
    shards = stages.tokens_of([conversation("a", n) for n in range(300)], name="a")
    assert len(read(shards)["files"]) > 3
    again = stages.mix({"a": shards}, name="again")
    assert len(read(again)["shards"]) == len(read(shards)["files"]) and lists_of(again) == lists_of(whole)


def test_missing_and_damaged_files_are_named(stages, tmp_path):
    manifest = stages.tokens_of([conversation("x", n) for n in range(5)])
    shard = manifest.parent / "tokens-00000.arrow"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-50])
    with pytest.raises(DataError, match=r"tokens-00000\.arrow: cannot be read .*delete .*manifest\.json"):
        stages.mix({"d": manifest})
    shard.unlink()
    with pytest.raises(DataError, match=r"tokens-00000\.arrow: cannot be read"):
        stages.mix({"d": manifest})
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "manifest.json").write_text(json.dumps({"config": {"packing": True}, "rows_out": 1}))
    with pytest.raises(DataError, match=r"documents\.npy: cannot be opened .*delete"):
        open_rows(empty / "manifest.json")


def test_so_many_rows(stages, datasets, document, read):
    few, many = (
        order_of(stages, document, {"c": datasets["c"]}, amounts={"c": {"rows": n}}, name=str(n)) for n in (30, 250)
    )
    assert len(few) == len(set(few)) == 30 and not Counter(few) - Counter(many)
    assert len(many) == 250 and set(Counter(many).values()) == {2, 3}


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 9000))
def test_the_fewest_rows_that_hold_so_many_tokens(stages, datasets, read, wanted):
    found = read(stages.mix({"c": datasets["c"]}, amounts={"c": {"tokens": wanted}}))
    assert wanted <= found["tokens"] < wanted + 128
    (entry,) = found["table"]
    assert entry["tokens"] == found["tokens"] and entry["name"] == "c" and "weight" not in entry


def ids_of(manifest, part="train"):
    """Every document of a mix, as a tuple of its tokens."""
    rows = [{k: v.tolist() for k, v in row.items()} for row in open_rows(manifest, part=part)]
    cuts = [(row, np.cumsum([0, *row.get("seq_lengths", [len(row["input_ids"])])])) for row in rows]
    return [tuple(row["input_ids"][a:b]) for row, ends in cuts for a, b in itertools.pairwise(ends)]


def labels_of(manifest):
    found = []
    for row in lists_of(manifest):
        cuts = np.cumsum([0, *row["seq_lengths"]])
        found += [row["labels"][a:b] for a, b in itertools.pairwise(cuts)]
    return found


@pytest.mark.parametrize("packing", [True, False])
def test_long_rows_are_cut_where_that_is_asked_for(stages, tokens, read, packing):
    manifest = stages.tokens_of([conversation("x", n, words=n) for n in range(1, 60)])
    whole = {tuple(row["input_ids"]): row["labels"] for row in tokens(manifest)}
    long = [ids for ids in whole if len(ids) > 40]
    cut = stages.mix({"d": manifest}, max_seq_length=40, overlong="truncate", packing=packing, name="cut")
    split = stages.mix({"d": manifest}, max_seq_length=40, overlong="split", packing=packing, name="split")
    windows = {ids[:40] for ids in long}
    assert sorted(ids_of(cut)) == sorted([*(ids for ids in whole if len(ids) <= 40), *windows])
    (entry,) = read(cut)["table"]
    assert entry["cut"] == {
        "rows": len(long), "tokens": sum(map(len, long)), "tokens_lost": sum(len(ids) - 40 for ids in long),
    }  # fmt: skip
    assert entry["rows_used"] == 59 and not entry["dropped"]
    # Windows without anything to train on are gone, and only those: the newline after the answer.
    expected = []
    for ids, labels in whole.items():
        for start in range(0, len(ids), 40):
            part = labels[start : start + 40]
            if any(label != -100 for label in part[1 if len(ids) > 40 else 0 :]):
                expected.append((ids[start : start + 40], part))
    assert sorted(ids_of(split)) == sorted(ids for ids, _ in expected)
    if packing:
        assert sorted(labels_of(split)) == sorted(labels for _, labels in expected)
    (entry,) = read(split)["table"]
    lost = read(manifest)["tokens"] - sum(len(ids) for ids, _ in expected)
    assert entry["cut"]["tokens_lost"] == lost and entry["documents"] == len(expected)


def test_a_window_with_nothing_to_train_on_is_dropped_and_counted(stages, read):
    rows = [
        {"messages": [{"role": "user", "content": "no " * words}, {"role": "assistant", "content": "yes"}]}
        for words in (1, 90)
    ]
    found = read(stages.mix({"d": stages.tokens_of(rows)}, max_seq_length=40, overlong="truncate"))
    (entry,) = found["table"]
    assert found["dropped"] == {"no_trained_token": 1} and entry["rows_used"] == 1
    assert found["rows_in"] == 2 == entry["rows_used"] + entry["dropped"]["no_trained_token"]["rows"]


def test_held_out_rows_are_trained_on_nowhere(stages, datasets, document, read):
    """Row 5 of `a` stands in `b` too; a fraction holds both out, or none of them."""
    texts = [f"{n} of them?" for n in range(200)]

    def rows(numbers):
        answer = {"role": "assistant", "content": "yes"}
        return [{"messages": [{"role": "user", "content": texts[n]}, answer]} for n in numbers]

    a = stages.tokens_of(rows([*range(100), 5]), name="a")
    b = stages.tokens_of(rows(range(50, 200)), name="b")
    alone = stages.mix({"a": a}, eval_fraction=0.2, name="alone")
    both = stages.mix({"a": a, "b": b}, eval_fraction=0.2, name="both")
    for mixed in (alone, both):
        train, held = set(ids_of(mixed)), set(ids_of(mixed, "eval"))
        assert not train & held and held
        facts = read(mixed)
        assert facts["held_out"]["documents"] == len(ids_of(mixed, "eval"))
        for entry in facts["table"]:
            assert entry["rows_in"] == entry["rows_available"] + entry["held_out"]["rows"]
    assert len(set(ids_of(both)) | set(ids_of(both, "eval"))) == 200
    assert 20 <= len(set(ids_of(both, "eval"))) <= 60
    # Another dataset moves no other's choice.
    assert set(ids_of(alone, "eval")) <= set(ids_of(both, "eval"))
    assert not set(ids_of(alone)) & set(ids_of(both, "eval"))

    split = stages.mix({"a": a, "eval:b": b}, name="split")
    assert set(ids_of(split, "eval")) == set(ids_of(stages.mix({"b": b}, name="b")))
    (entry,) = read(split)["table"]
    assert entry["held_out"]["rows"] == 50 and len(ids_of(split)) == 51

    with pytest.raises(DataError, match="mix has no rows for eval"):
        open_rows(stages.mix({"a": a}), part="eval")
    with pytest.raises(DataError, match=r"data\.eval_fraction=1e-09 holds out none of 101 rows"):
        stages.mix({"a": a}, eval_fraction=1e-9)
    # Where no row fits, the share that is held out is not the cause.
    with pytest.raises(
        DataError, match=r"longer than max_seq_length=2 \(the shortest has \d+ tokens\).*raise max_seq_length"
    ):
        stages.mix({"a": a}, eval_fraction=0.1, max_seq_length=2)


def test_pairs_of_one_prompt_are_held_out_together(stages, read):
    rows = [{"prompt": f"q {n // 4}", "chosen": f"yes {n}", "rejected": f"no {n}"} for n in range(200)]
    mixed = stages.mix({"p": stages.tokens_of(rows, shape="preference")}, shape="preference", eval_fraction=0.2)
    train, held = (
        {tuple(row["prompt_ids"].tolist()) for row in open_rows(mixed, part=part)} for part in ("train", "eval")
    )
    assert not train & held and len(train) + len(held) == 50 and 2 <= len(held) <= 22
    assert read(mixed)["held_out"]["documents"] == 4 * len(held)


def test_the_epochs_of_the_planned_training_are_there(stages, datasets, read):
    one = read(stages.mix(datasets))["rows_out"]
    for runtime, epochs in (
        ({"epochs": 2.5, "batch": 1}, 3),
        ({"epochs": 1, "batch": one + 1}, 2),
        ({"steps": 7, "batch": one}, 7),
    ):
        mixed = stages.mix(datasets, name=str(epochs), runtime=runtime)
        assert len(open_rows(mixed)) == epochs * one and len(list(mixed.parent.glob("epoch-*"))) == epochs
