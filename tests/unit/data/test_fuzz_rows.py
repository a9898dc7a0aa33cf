"""Rows of every format with faults in any place: a row goes in or is rejected with a listed reason, and the counts add up.

`POST_TRAINING_FUZZ_EXAMPLES=100000 python -m pytest tests/unit/data/test_fuzz_rows.py` tries other faults, for minutes.
"""

import copy
import json
import os
from collections import Counter
from pathlib import Path

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from post_training.core.errors import DataError
from post_training.data import registry
from post_training.data.apply_transform import Application, BlockResult
from post_training.data.reading.records import Block
from post_training.data.reasons import REASONS
from post_training.data.row_groups import apply_to_groups
from post_training.data.tokens.blocks import Settings, Tokenization

EXAMPLES = int(os.environ.get("POST_TRAINING_FUZZ_EXAMPLES", "40"))
USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
CALL = {
    "role": "assistant",
    "tool_calls": [{"function": {"name": "f", "arguments": {"x": None, "y": 1}}}],
    "train": True,
}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"y": {"type": "integer"}}}}}
TURNS = [USER, CALL, {"role": "tool", "content": [{"type": "text", "value": "r"}]}, ANSWER]
SHAREGPT = [{"from": "human", "value": "q"}, {"from": "function_call", "value": '{"name": "f", "arguments": {}}'}]
SHAREGPT += [{"from": "observation", "value": "r"}, {"from": "gpt", "value": "a"}]
TREE = {
    "role": "prompter",
    "text": "q",
    "replies": [{"role": "assistant", "text": t, "rank": r} for t, r in (("a", 0), ("b", 1))],
}
# Transform -> (arguments, a good row).
FORMATS = {
    "messages": ({"system": "sys"}, {"messages": TURNS, "tools": [TOOL], "sys": "s", "images": []}),
    "sharegpt": ({}, {"conversations": SHAREGPT, "tools": json.dumps([TOOL]), "system": "s"}),
    "alpaca": ({}, {"instruction": "i", "input": "x", "output": "o", "system": "s", "history": [["q", "a"]]}),
    "question_answer": ({"question": "{q} {more[0].x}"}, {"q": "1", "more": [{"x": "2"}], "answer": "a"}),
    "task_dialogue": ({"opening": "hi"}, {"utterances": [{"speaker": s, "text": "t"} for s in ("USER", "SYSTEM")]}),
    "nested_tree": ({"paths": "all"}, {"prompt": TREE}),
    "message_tree": ({}, {"message_id": 1, "parent_id": None, "message_tree_id": 1, "text": "t", "role": "prompter", "rank": 0}),
    "preference": ({"system": "sys"}, {"prompt": [USER], "chosen": [ANSWER], "rejected": "b", "sys": "s", "tools": [TOOL]}),
    "unpair_preference": ({}, {"chosen": [USER, ANSWER], "rejected": [USER, {**ANSWER, "content": "b"}]}),
    "preference_transcripts": ({}, {side: f"\n\nHuman: q\n\nAssistant: {side}" for side in ("chosen", "rejected")}),
    "preference_votes": ({"votes": ["v", "w"]}, {"prompt": "q", "response1": "a", "response2": "b", "v": 1, "w": 0}),
    "preference_ranking": ({}, {"prompt": "q", "completions": [{"response": t, "overall_score": n} for n, t in enumerate("ab")], "history": []}),
    "unpaired_preference": ({}, {"prompt": "q", "completion": "a", "label": True}),
}  # fmt: skip
VALUES = [
    None, True, False, 0, -1, 2, 0.5, 1e300, 10**30, "", " ", "\u200b", "\0", "\ud83d", "\ufdd0", "<|im_end|>", "<image>", "user", "{}", "[1]",
    "{x", "{0}", "[0]", "a.b", [], {}, [[]], [None], [{}], {"": None}, {"role": []}, {"type": {}, "text": 1}, USER, ANSWER, [USER, ANSWER], TURNS,
    "x" * 5000, [[[[[[[["deep"]]]]]]]],
]  # fmt: skip


def places(value, path=()):
    """Every place of a JSON value."""
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from places(child, (*path, key))


def changed(row, place, kind, value):
    """The row with one fault at a place."""
    row = copy.deepcopy(row)
    if not place:
        return value if kind == "replace" else row
    holder = row
    for key in place[:-1]:
        holder = holder[key]
    key = place[-1]
    if kind == "replace":
        holder[key] = value
    elif kind == "remove":
        del holder[key]
    elif kind == "wrap":
        holder[key] = [holder[key]]
    elif kind == "as_text":
        holder[key] = json.dumps(holder[key])
    elif isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    else:
        holder[f"{key} "] = value
    return row


@st.composite
def rows_of(draw, good):
    made = []
    for _ in range(draw(st.integers(1, 4))):
        row = good
        for _ in range(draw(st.integers(0, 3))):
            if not isinstance(row, dict | list):
                break
            place = draw(st.sampled_from(list(places(row))))
            kind = draw(st.sampled_from(["replace", "replace", "remove", "wrap", "as_text", "more"]))
            row = changed(row, place, kind, draw(st.sampled_from(VALUES)))
        made.append(row)
    return made


def encoded(row):
    text = json.dumps(row)  # with lone surrogates as escapes, and integers of any size
    return text.encode()


@pytest.fixture(scope="module")
def tokenization(bpe_folder):
    text = registry.chat_template_text("chatml")
    return {shape: Tokenization(bpe_folder, Settings(text, shape)) for shape in ("messages", "preference", "unpaired")}


@pytest.mark.parametrize("name", FORMATS)
def test_any_row_goes_in_or_is_rejected_with_a_listed_reason(tmp_path_factory, tokenization, name):
    arguments, good = FORMATS[name]
    source = registry.transform_names([])[name]
    shape = source.gives[0]
    folder = tmp_path_factory.mktemp("fuzz")
    reasons: Counter[str] = Counter()

    @settings(max_examples=EXAMPLES, deadline=None, derandomize=EXAMPLES <= 40, suppress_health_check=list(HealthCheck))
    @given(rows=rows_of(good), last_turn=st.sampled_from(["trim", "reject"]))
    def check(rows, last_turn):
        config = {"transform": name, "arguments": arguments, "rows": shape, "last_turn": last_turn}
        application = Application(config, source.file)
        block = Block(Path("x.jsonl"), 1, len(rows), b"\n".join(map(encoded, rows)), len(rows))
        total = BlockResult()
        grouped = application.transform.keys is not None
        for done in apply_to_groups(application, iter([block]), folder) if grouped else [application.block(block)]:
            total.add(done)
            total.lines += done.lines
            total.rejects += done.rejects
        assert total.rows_in == len(rows) == total.rows_out + total.dropped.total()
        assert total.lines.count(b"\n") == total.examples
        rejects = [orjson.loads(line) for line in total.rejects.splitlines()]
        assert len(rejects) == total.dropped.total() + total.dropped_examples.total()
        reasons.update(entry["reason"] for entry in rejects)
        assert all(1 <= entry["row"] == entry["line"] <= len(rows) for entry in rejects)
        (folder / "rows.jsonl").write_bytes(total.lines)
        total.nulls.settle(folder / "rows.jsonl")
        lines = (folder / "rows.jsonl").read_bytes().splitlines()
        made = tokenization[shape].block(lines)
        assert made.rows_in == len(lines) == len(made.rows) + made.dropped.total() == len(made.rows) + len(made.rejects)
        reasons.update(made.dropped)
        try:
            total.read.check(arguments, "x.jsonl")
        except DataError as error:
            assert "\n" not in str(error)
        total.read.summary()

    check()
    assert set(reasons) <= set(REASONS), set(reasons) - set(REASONS)
    assert "transform_error" not in reasons, "a fault of a row that the transform did not expect"
