"""Reasons of the validator, one by one."""

import pytest

from post_training.data.rows import InvalidRow, Rules, checker


def validate(row, shape, last_turn="reject"):
    try:
        return checker(shape)(row, Rules(last_turn)), ""
    except InvalidRow as bad:
        return None, bad.reason


USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
SYSTEM, CALL = {"role": "system", "content": "s"}, {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
RESULT = {"role": "tool", "content": ""}


@pytest.mark.parametrize(
    "turns",
    [
        [USER, ANSWER],
        [SYSTEM, USER, ANSWER, USER, ANSWER],
        [USER, CALL, RESULT, RESULT, ANSWER],
        [USER, {"role": "assistant", "content": "let me see", "tool_calls": [{"name": "f"}]}, RESULT, ANSWER],
        [USER, CALL],
        [USER, CALL, RESULT, USER, ANSWER],
    ],
)
def test_good_conversations(turns):
    row, reason = validate({"messages": turns, "source": "x"}, "messages")
    assert not reason and set(row) == {"messages"}
    assert [turn["role"] for turn in row["messages"]] == [turn["role"] for turn in turns]
    assert validate({"messages": turns}, "any")[0] == row


@pytest.mark.parametrize(
    "row, reason",
    [
        ({}, "missing_column"),
        ({"messages": None}, "missing_column"),
        ({"messages": "hello"}, "wrong_type"),
        ({"messages": []}, "empty_conversation"),
        ({"messages": ["hello"]}, "wrong_type"),
        ({"messages": [USER, {"role": "assistant", "content": ["a"]}]}, "wrong_type"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, "wrong_type"),
        ({"messages": [USER, {"role": "assistant"}]}, "wrong_type"),
        ({"messages": [USER, {"role": "assistant", "content": "a", "tool_calls": "f()"}]}, "bad_tool_call"),
        ({"messages": [{"role": "user", "content": "q", "tool_calls": [{"name": "f"}]}, ANSWER]}, "wrong_type"),
        ({"messages": [USER, ANSWER], "tools": "f"}, "wrong_type"),
        ({"messages": [USER, {"role": "assistant", "content": ""}]}, "empty_content"),
        ({"messages": [USER, {"role": "assistant", "content": " \n"}]}, "empty_content"),
        ({"messages": [{"role": "user", "content": ""}, ANSWER]}, "empty_content"),
        ({"messages": [{"content": "q"}, ANSWER]}, "unknown_role"),
        ({"messages": [{"role": "human", "content": "q"}, ANSWER]}, "unknown_role"),
        ({"messages": [{"role": ["user"], "content": "q"}, ANSWER]}, "unknown_role"),
        ({"messages": [{"role": "developer", "content": "q"}, USER, ANSWER]}, "unknown_role"),
        ({"messages": [ANSWER]}, "role_order"),
        ({"messages": [USER, SYSTEM, ANSWER]}, "role_order"),
        ({"messages": [USER, USER, ANSWER]}, "role_order"),
        ({"messages": [USER, ANSWER, ANSWER]}, "role_order"),
        ({"messages": [USER, ANSWER, RESULT, ANSWER]}, "role_order"),
        ({"messages": [USER]}, "no_assistant_turn"),
        ({"messages": [USER, ANSWER, USER]}, "last_turn_not_assistant"),
        ({"messages": [USER, CALL, RESULT]}, "last_turn_not_assistant"),
        ({"messages": [USER, RESULT, USER, ANSWER]}, "role_order"),
    ],
)
def test_bad_conversations(row, reason):
    assert validate(row, "messages") == (None, reason)


def pair(**changes):
    return {"prompt": [USER], "chosen": [ANSWER], "rejected": [{"role": "assistant", "content": "b"}]} | changes


def test_good_pairs():
    assert validate(pair(margin=2), "preference") == (pair(margin=2.0), "")
    assert validate(pair(score=2), "preference") == (pair(), "")
    assert validate(pair(), "any")[0] == pair()
    long = pair(chosen=[ANSWER, USER, ANSWER])
    assert validate(long, "preference")[0] == long


@pytest.mark.parametrize(
    "row, reason",
    [
        (pair(prompt=None), "missing_column"),
        (pair(prompt=[]), "empty_conversation"),
        (pair(chosen="a"), "wrong_type"),
        (pair(rejected=[ANSWER]), "identical_pair"),
        (pair(rejected=[{"role": "assistant", "content": ""}]), "empty_content"),
        (pair(prompt=[USER, ANSWER]), "role_order"),
        (pair(chosen=[USER, ANSWER]), "role_order"),
        (pair(chosen=[ANSWER, USER]), "last_turn_not_assistant"),
    ],
)
def test_bad_pairs(row, reason):
    assert validate(row, "preference") == (None, reason)


def test_null_keys_that_parquet_fills_in_are_left_out():
    turns = [{**USER, "tool_calls": None, "name": None}, {**ANSWER, "tool_calls": None}]
    assert validate({"messages": turns, "tools": None}, "messages")[0] == {"messages": [USER, ANSWER]}


def test_every_reason_is_in_the_list_and_every_listed_one_is_given():
    """The table of docs/troubleshooting.md is made from the list."""
    import re

    from post_training.data.reasons import REASONS
    from post_training.data.registry import PACKAGE

    texts = [
        path.read_text()
        for path in (PACKAGE / "data").rglob("*.py")
        if path.name != "reasons.py" and "filters" not in path.parts
    ]
    code = re.sub(r"\(\n\s+", "(", "\n".join(texts))
    given = set(re.findall(r'(?:InvalidRow|Problem)\(\s*"(\w+)"', code))
    given |= set(re.findall(r'(?:ValueError|Skip)\(f?"(\w+): ', code)) | set(re.findall(r'dropped\["(\w+)"\]', code))
    assert given - {"reason"} <= set(REASONS)
    assert {name for name in REASONS if f'"{name}' not in code} == set()
