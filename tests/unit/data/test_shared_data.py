"""Real data in its own formats, through all stages: the counts add up."""

import pytest
from tiny import lists_of

CASES = {
    "gsm8k": ("sft/gsm8k_train.jsonl", "question_answer", "messages", 3500),
    "gpteacher": ("sft/gpteacher_roleplay_alpaca.jsonl", "alpaca", "messages", 2608),
    "ultrafeedback": ("dpo/ultrafeedback_binarized.parquet", "preference", "preference", 1000),
}


def assert_adds_up(manifest):
    assert manifest["rows_in"] == manifest["rows_out"] + sum(manifest["dropped"].values())


@pytest.mark.parametrize("name", CASES)
def test_every_row_is_accounted_for(stages, shared, read, name):
    file, transform, shape, rows = CASES[name]
    transformed = stages.transform(shared / file, transform_name=transform, rows=shape, name=name)
    assert read(transformed)["rows_in"] == rows
    assert_adds_up(read(transformed))
    tokenized = stages.tokenize(transformed, shape=shape, name=name, num_proc=None)
    assert read(tokenized)["rows_in"] == read(transformed)["rows_out"]
    assert_adds_up(read(tokenized))
    mixed = stages.mix({name: tokenized}, shape=shape, max_seq_length=1024)
    found = read(mixed)
    assert found["rows_in"] == read(tokenized)["rows_out"] == found["documents"] + sum(found["dropped"].values())
    rows = lists_of(mixed)
    assert len(rows) == found["rows_out"] > 0
    if shape == "messages":
        assert sum(len(row["seq_lengths"]) for row in rows) == found["documents"]
        assert sum(sum(row["seq_lengths"]) for row in rows) == found["tokens"]


def test_two_sources_with_weights(stages, shared, read):
    tokenized = {}
    for name in ("gsm8k", "gpteacher"):
        file, transform, *_ = CASES[name]
        tokenized[name] = stages.tokenize(
            stages.transform(shared / file, transform_name=transform, name=name), name=name
        )
    found = read(stages.mix(tokenized, max_seq_length=2048, weights={"gpteacher": 0.5}))
    used = {entry["name"]: entry["rows_used"] for entry in found["table"]}
    available = {entry["name"]: entry["rows_available"] for entry in found["table"]}
    assert used == {"gsm8k": available["gsm8k"], "gpteacher": round(available["gpteacher"] / 2)}
