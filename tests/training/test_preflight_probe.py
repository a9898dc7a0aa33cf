"""Predicted against measured memory, in real processes: the probe of a model of 13 million parameters on the CPU."""

import json
import random

import pytest
from tiny import build_task, pipeline_of, task, write_mix

WIDE = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 1024,
}
LENGTH = 512


@pytest.fixture(scope="module")
def wide(tmp_path_factory, corpus):
    from post_training.models import build

    output = tmp_path_factory.mktemp("wide") / "scratch" / "manifest.json"
    build.run(build_task(output, corpus, config=WIDE))
    return output


def ids(count):
    return random.Random(count).choices(range(256), k=count)


def packed(length=LENGTH):
    parts = [length // 4] * 4
    return [{"input_ids": ids(length), "labels": ids(length), "seq_lengths": parts} for _ in range(4)]


def pairs(length=LENGTH // 2):
    half = length // 2
    return [
        {"prompt_ids": ids(half), "chosen_ids": ids(half + 1)[: half - n], "rejected_ids": ids(half - 9)}
        for n in range(4)
    ]


def probed(folder, model, template, rows, method="sft", **changes):
    """`preflight.json` of a probe of two steps of two micro-batches."""
    from post_training.preflight import probe

    mix = folder / "mix"
    mix.mkdir()
    changes = {
        f"{method}__max_seq_length": 1024,
        "training__per_device_train_batch_size": 1,
        "training__effective_batch_size": 4,
    } | changes
    runtime = {"pipeline": pipeline_of(template, method, **changes).frozen(method)}
    inputs = {"model": model, "data": write_mix(mix, rows, packing="seq_lengths" in rows[0])}
    output = folder / "probe" / "manifest.json"
    assert probe.run(task("preflight_probe", {"steps": 2}, runtime, inputs, output)) == 0
    assert json.loads(output.read_text())["stage"] == "preflight_probe"
    return json.loads((output.parent / "preflight.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    "method,rows,changes",
    [
        ("sft", packed, {}),
        ("sft", packed, {"training__gradient_checkpointing": True}),
        ("dpo", pairs, {}),
    ],
    ids=["sft", "checkpointing", "dpo"],
)
def test_memory_is_predicted_within_a_fifth(tmp_path, wide, template, method, rows, changes):
    told = probed(tmp_path, wide, template, rows(), method, **changes)
    predicted, measured = (told[side]["peak_memory_bytes"] for side in ("predicted", "measured"))
    assert 0.8 * measured <= predicted <= 1.2 * measured, (predicted / measured, told["predicted"]["memory"])
    assert measured > 200 << 20  # most of it are tensors
    assert told["measured"]["steps"] == 2 and told["measured"]["tokens_per_second"] > 0
    assert told["measured"]["first_step_seconds"] > 0 and told["measured"]["hardware"] == "CPU"


def test_the_longest_rows_come_first(tmp_path):
    from post_training.preflight.probe import longest_rows

    rows = [{"input_ids": ids(n), "labels": ids(n)} for n in (5, 40, 17, 60)]
    found = longest_rows(write_mix(tmp_path, rows, packing=False), 3)
    assert [len(found[index]["input_ids"]) for index in range(3)] == [60, 40, 17]
    folder = tmp_path / "pairs"
    folder.mkdir()
    few = longest_rows(write_mix(folder, pairs(40), packing=False), 2)
    assert [len(few[index]["chosen_ids"]) for index in range(2)] == [20, 19]
    assert [few.document(index) for index in range(2)] == [0, 1]


def test_the_longest_packed_row(tmp_path):
    from post_training.preflight.probe import longest_rows

    rows = [{"input_ids": ids(n), "labels": ids(n), "seq_lengths": [n - 4, 4]} for n in (20, 44, 30)]
    found = longest_rows(write_mix(tmp_path, rows, packing=True), 4)
    assert [len(found[index]["input_ids"]) for index in range(4)] == [44, 30, 20, 44]
