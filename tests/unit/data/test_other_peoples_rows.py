"""Rows as other people write them: each kind goes in whole, or is refused with the row, the column and what to do."""

import json
from decimal import Decimal
from pathlib import Path

import datasets
import pytest

from post_training.core.errors import DataError
from post_training.data import registry
from post_training.data.apply_transform import Application
from post_training.data.reading.records import Block

CASES = Path(__file__).resolve().parents[3] / ".." / "shared" / "cases" / "rows"
USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def write(folder, rows, name="x.jsonl"):
    (folder / name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return folder / name


def made(stages, file, transform, rows="messages", **arguments):
    """The manifest, the rows and the rejects."""
    manifest = stages.transform(
        file, transform_name=transform, rows=rows, arguments=arguments, max_reject_fraction=1.0, name=file.stem[:20]
    )
    found = json.loads(manifest.read_text())
    texts = [(manifest.parent / f"{part}.jsonl").read_text() for part in ("rows", "rejects")]
    parts = [[json.loads(line) for line in text.split("\n")[:-1]] for text in texts]
    assert found["rows_in"] == found["rows_out"] + sum(found["dropped"].values())
    return found, *parts


def said(turns):
    return [turn["content"] for turn in turns]


@pytest.mark.parametrize(
    "transform, arguments, row, column",
    [
        ("alpaca", {"input": "inputs"}, {"instruction": "i", "input": "x", "output": "o"}, "inputs"),
        ("alpaca", {"history": "past"}, {"instruction": "i", "history": [], "output": "o"}, "past"),
        ("sharegpt", {"tools": "tool"}, {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, "tool"),
        ("messages", {"system": "sys"}, {"messages": [USER, ANSWER]}, "sys"),
        ("question_answer", {"question": "{quesion}?"}, {"question": "q", "answer": "a"}, "quesion"),
        ("question_answer", {"question": ["question", "contxt"]}, {"question": "q", "answer": "a", "context": "c"}, "contxt"),
        ("question_answer", {"answer": "parts[0].text"}, {"question": "q", "parts": [{"txt": "a"}]}, "parts[0].text"),
        ("preference", {"prompt": "promt"}, {"prompt": "q", "chosen": "a", "rejected": "b"}, "promt"),
        ("preference_ranking", {"history": "past"}, {"prompt": "q", "completions": ["a", "b"]}, "past"),
        ("task_dialogue", {"turns": "lines"}, {"utterances": []}, "lines"),
    ],
)  # fmt: skip
def test_a_column_that_the_user_names_and_no_row_has(stages, tmp_path, transform, arguments, row, column):
    shape = "preference" if transform.startswith("preference") else "messages"
    with pytest.raises(DataError) as caught:
        made(stages, write(tmp_path, [row] * 3), transform, shape, **arguments)
    (argument,) = arguments
    message = str(caught.value)
    assert f"no row has a column {column!r}, which the transform's argument {argument} names" in message
    assert message.startswith(f"{tmp_path}/x.jsonl: ") and "\n" not in message


def test_a_named_column_that_some_rows_have_and_columns_that_are_not_used(stages, tmp_path, capsys):
    rows = [
        {"instruction": "i", "more": "x", "output": "o", "id": 1},
        {"instruction": "i", "output": "o", "tag": None},
    ] * 2
    found, out, _ = made(stages, write(tmp_path, rows), "alpaca", input="more")
    assert found["columns"] == {
        "used": ["instruction", "more", "output"],
        "unused": ["id", "tag"],
        "partly": {"more": 2},
    }
    said = capsys.readouterr().out
    assert "column 'more': in 2 of 4 rows" in said and "columns not used: id, tag" in said
    assert len(out) == 4


DEPTHS = [200, 254, 255, 600, 990, 1023, 1030, 100_000]


@pytest.mark.parametrize("transform", ["question_answer", "message_tree"])
def test_a_deeply_nested_column_costs_its_row_at_most(stages, tmp_path, transform):
    lines = []
    for n, depth in enumerate([*DEPTHS, *[1] * 8]):
        row = {
            "question": "q",
            "answer": "a",
            "message_id": n,
            "parent_id": None,
            "text": "t",
            "role": "prompter",
            "message_tree_id": n,
        }
        lines.append(json.dumps(row)[:-1] + f', "more": {"[" * depth}{"]" * depth}}}')
        row |= {"message_id": -n - 1, "parent_id": n, "role": "assistant"}
        lines.append(json.dumps(row))
    (tmp_path / "x.jsonl").write_text("\n".join(lines) + "\n")
    found, out, rejects = made(stages, tmp_path / "x.jsonl", transform)
    assert found["rows_in"] == 32 and all(1 < entry["row"] <= 2 * len(DEPTHS) for entry in rejects)
    assert {entry["reason"] for entry in rejects} - {"no_parent"} == {"nested_too_deeply", "undecodable_line"}
    if transform == "question_answer":  # what is not used may be nested as deeply as the parser goes
        assert {1, 3, 5, 7} <= {row["row"] for row in out}


def test_a_vote_for_a_tie_counts(stages, tmp_path):
    names = ["judge0", "judge1", "judge2"]
    votes = {(0, 0, 1): "", (0, 1, 1): "A", (0, 0, 2): "", (1, 1, 2): "A", (0, 1, 2): "", (2, 2, 0): "B", (0, 0, 0): ""}
    rows = [{"q": "?", "a": "A", "b": "B", **dict(zip(names, cast, strict=True))} for cast in votes]
    arguments = {"prompt": "q", "first": "a", "second": "b", "votes": names}
    _, out, rejects = made(stages, write(tmp_path, rows), "preference_votes", "preference", **arguments)
    winners = {row["row"]: row["chosen"][0]["content"] for row in out}
    assert [winners.get(n, "") for n in range(1, len(votes) + 1)] == list(votes.values())
    assert {entry["reason"] for entry in rejects} == {"tie"}


def test_speakers_alternate_where_none_is_named(stages, tmp_path):
    texts = ("q1", "a1", "q2", "a2")
    file = write(tmp_path, [{"lines": list(texts)}, {"lines": [{"utterance": text, "facts": []} for text in texts]}])
    _, out, _ = made(stages, file, "task_dialogue", turns="lines", speaker=None, text="utterance")
    expected = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]
    assert [row["messages"] for row in out] == [expected] * 2


@pytest.mark.parametrize("path", ["examples[-1][target]", "examples.0.target", "dotted.name"])
def test_a_path_into_nested_values_in_any_column_argument(stages, tmp_path, path):
    row = {"task": "t", "examples": [{"source": "s", "target": "x"}], "deep": {"er": {"text": "x"}}, "dotted.name": "x"}
    file = write(tmp_path, [row])
    _, out, _ = made(stages, file, "question_answer", question="{task} {examples[0][source]}", answer=path)
    assert said(out[0]["messages"]) == ["t s", "x"]
    _, out, _ = made(stages, file, "alpaca", instruction="task", input=path, output="examples[0].source")
    assert said(out[0]["messages"]) == ["t\n\nx", "s"]
    (tmp_path / "y.jsonl").write_text(json.dumps({**row, "bad": 1, "good": "z"}) + "\n")
    _, out, _ = made(
        stages, tmp_path / "y.jsonl", "preference", "preference", prompt=["task", path], chosen="good", rejected=path
    )
    assert said(out[0]["prompt"]) == ["t\n\nx"] and said(out[0]["chosen"] + out[0]["rejected"]) == ["z", "x"]


def test_answers_without_scores_are_ranked_by_their_order(stages, tmp_path):
    rows = [
        {"prompt": "q", "context": "", "earlier": [["hi", "hello"], ["so", "yes"]], "answers": ["best", "good", "bad"], "tools": [{"name": "f"}]},
        {"prompt": "q", "context": "c", "earlier": [], "answers": ["best", "bad"]},
        {"prompt": "q", "context": "c", "earlier": None, "answers": ["only"]},
    ]  # fmt: skip
    arguments = {"answers": "answers", "prompt": ["prompt", "context"], "history": "earlier"}
    _, out, rejects = made(stages, write(tmp_path, rows), "preference_ranking", "preference", **arguments)
    assert [said(row["prompt"]) for row in out] == [["hi", "hello", "so", "yes", "q"], ["q\n\nc"]]
    assert [said(row["chosen"] + row["rejected"]) for row in out] == [["best", "bad"]] * 2
    assert "tools" in out[0] and [entry["reason"] for entry in rejects] == ["tie"]
    _, out, _ = made(stages, write(tmp_path, rows[:1]), "preference_ranking", "preference", **arguments, choice="all")
    assert [said(row["chosen"] + row["rejected"]) for row in out] == [
        ["best", "good"],
        ["best", "bad"],
        ["good", "bad"],
    ]


CALL = {"name": "clock", "arguments": {"city": "Oslo"}}


@pytest.mark.parametrize(
    "blocks",
    [
        [{"type": "reasoning", "value": "hm"}, {"type": "tool_call", "value": json.dumps(CALL)}],
        [{"type": "thinking", "thinking": "hm"}, {"type": "tool_call", "value": CALL}],
        [
            {"type": "reasoning", "text": "hm"},
            {"type": "tool_use", "id": "1", "name": "clock", "input": {"city": "Oslo"}},
        ],
        [{"type": "reasoning", "content": "hm"}, {"type": "tool_call", "tool_call": CALL}],
    ],
)
def test_blocks_of_text_reasoning_and_calls_in_their_spellings(stages, tmp_path, blocks):
    turns = [
        {"role": "user", "content": [{"type": "text", "value": "time?"}]},
        {"role": "assistant", "content": blocks},
        {"role": "tool", "content": [{"type": "tool_result", "content": "14:05"}]},
        {
            "role": "assistant",
            "content": [{"type": "text", "text": "it is"}, {"type": "output_text", "text": " five past"}],
        },
    ]
    _, (row,), _ = made(stages, write(tmp_path, [{"messages": turns}]), "messages")
    assert said(row["messages"]) == ["time?", "", "14:05", "it is five past"]
    call = row["messages"][1]
    assert call["reasoning_content"] == "hm" and call["tool_calls"][0]["function"] == CALL


def test_blocks_that_are_no_text_are_refused_by_name(stages, tmp_path):
    kinds = ["image", "image_url", "input_audio", "video", "file", None, 3, []]
    rows = [{"messages": [{"role": "user", "content": [{"type": kind, "value": "x"}]}, ANSWER]} for kind in kinds]
    _, _, rejects = made(stages, write(tmp_path, [*rows, {"messages": [USER, ANSWER]}]), "messages")
    assert [entry["reason"] for entry in rejects] == ["unsupported_content"] * len(kinds)
    assert all("messages[0].content[0]" in entry["detail"] for entry in rejects)


INVISIBLE = [
    "",
    " ",
    "\u200b",
    " \u200b\n",
    "\ufeff\u200d",
    "\u2060",
    "\u3164",
    "\u00ad",
    "\u2800",
    "\U000e0041",
    "\ufe0f",
    "\x01\x1f",
]


def test_what_nobody_sees_is_empty(stages, tmp_path):
    size = len(INVISIBLE)
    answers = [*INVISIBLE, *(f"{text}x{text}" for text in INVISIBLE), "\u200bé", "👩\u200d👧"]
    _, out, rejects = made(
        stages, write(tmp_path, [{"question": "q", "answer": text} for text in answers]), "question_answer"
    )
    assert [(entry["row"], entry["reason"]) for entry in rejects] == [(n + 1, "empty_content") for n in range(size)]
    assert [row["row"] for row in out] == list(range(size + 1, 2 * size + 3))


def test_nul_is_refused_by_its_place_and_spelled_out_is_not(stages, tmp_path):
    call = {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"x": ["a\0"]}}]}
    rows = [
        {"messages": [USER, {"role": "assistant", "content": "a\0b"}]},
        {"messages": [USER, call, {"role": "tool", "content": "r"}, ANSWER]},
        {"messages": [USER, {"role": "assistant", "content": "write \\u0000 for it"}]},
    ]
    _, out, rejects = made(stages, write(tmp_path, rows), "messages")
    assert [entry["reason"] for entry in rejects] == ["nul_character"] * 2 and [row["row"] for row in out] == [3]
    assert "messages[1].content" in rejects[0]["detail"] and "arguments.x[0]" in rejects[1]["detail"]


def test_answers_that_differ_in_blanks_alone_are_one(stages, tmp_path):
    same = [
        ("Four.", "Four. "),
        ("Four.\n", "Four."),
        ("Four.", "  Four."),
        ("a  b", "a b"),
        ("a\n\nb", "a\nb"),
        ("a \nb", "a\nb"),
    ]
    same += [("x", text + "x") for text in ("\u200b", " \u200b\n", "\ufeff\u200d", "\u2060", "\u00ad")]
    other = [("Four.", "Five."), ("if x:\n  y", "if x:\ny"), ("ab", "a b")]
    rows = [{"prompt": "q", "chosen": one, "rejected": another} for one, another in [*same, *other]]
    found, out, _ = made(stages, write(tmp_path, rows), "preference", "preference")
    assert found["dropped"] == {"identical_pair": len(same)} and len(out) == len(other)


def test_transcripts_with_other_line_ends(stages, tmp_path):
    text = "\n\nHuman: one\n\nAssistant: two\n\nHuman: three\n\nAssistant: "
    rows = [{"chosen": text + "a", "rejected": text + "b"}, {"chosen": text + "a", "rejected": text + "b"}]
    rows[1] = {key: value.replace("\n", "\r\n") for key, value in rows[1].items()}
    _, out, _ = made(stages, write(tmp_path, rows), "preference_transcripts", "preference")
    assert {**out[0], "row": 0} == {**out[1], "row": 0}


def union_of(folder, form):
    """Calls of two functions, as `datasets` gives them back from a union of their arguments."""

    def row(name, arguments, properties):
        call = {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"type": "function", "function": {"name": name, "arguments": arguments}}],
        }
        tool = {
            "type": "function",
            "function": {"name": name, "parameters": {"type": "object", "properties": properties}},
        }
        return {"messages": [USER, call, {"role": "tool", "content": "r"}, ANSWER], "tools": [tool]}

    rows = [
        row("weather", {"city": "Bergen", "day": "today"}, {"city": {"type": "string"}, "day": {"type": "string", "enum": ["today"]}}),
        row("sum", {"a": 2, "b": 3}, {"a": {"type": "integer"}, "b": {"type": "integer"}}),
    ]  # fmt: skip
    if form.startswith("Json"):
        features = datasets.Features({"messages": datasets.Json(), "tools": datasets.List(datasets.Json())})
        made = datasets.Dataset.from_list(rows, features=features)
    else:
        made = datasets.Dataset.from_list(rows)
    kind = form.split()[-1]
    if kind == "save_to_disk":
        made.save_to_disk(folder / "saved")
        return rows, next((folder / "saved").glob("*.arrow"))
    path = folder / f"union.{kind}"
    made.to_json(path) if kind == "jsonl" else made.to_parquet(path)
    return rows, path


FORMS = [f"{kind} {file}" for kind in ("union", "Json") for file in ("jsonl", "parquet", "save_to_disk")]


@pytest.mark.parametrize("form, with_tools", [*((form, True) for form in FORMS), ("union jsonl", False)])
def test_nulls_of_a_union_are_nobodys_arguments(stages, tmp_path, form, with_tools):
    rows, path = union_of(tmp_path, form)
    arguments = {} if with_tools else {"tools": "none"}
    if not with_tools:
        arguments = {}
        rows = [{"messages": row["messages"]} for row in rows]
        if path.suffix == ".jsonl":
            path = write(tmp_path, [{"messages": json.loads(line)["messages"]} for line in path.open()], "bare.jsonl")
    found, out, _ = made(stages, path, "messages", **arguments)
    calls = [turn["function"] for row in out for m in row["messages"] for turn in m.get("tool_calls", [])]
    assert [call["arguments"] for call in calls] == [{"city": "Bergen", "day": "today"}, {"a": 2, "b": 3}]
    if with_tools:
        assert [row["tools"] for row in out] == [row["tools"] for row in rows]
    assert found["null_rows"] == (2 if form == "union jsonl" else 0)
    entry = next(entry for entry in found["files"] if entry["path"] == "rows.jsonl")
    rows_file = stages.base / "data" / "transform" / path.stem[:20] / "rows.jsonl"
    assert entry["bytes"] == rows_file.stat().st_size


def test_a_null_that_was_meant_stays(stages, tmp_path):
    def row(name, arguments, **more):
        call = {"role": "assistant", "content": "", "tool_calls": [{"name": name, "arguments": arguments}]}
        return {"messages": [USER, call, {"role": "tool", "content": "r"}, ANSWER], **more}

    tool = {
        "name": "f",
        "parameters": {
            "type": "object",
            "properties": {"x": {"type": ["string", "null"], "default": None}, "y": {"enum": [None, 1]}},
        },
    }
    rows = [
        row("f", {"x": None, "y": None}, tools=[tool]),
        row("g", {"z": None}),
        row("h", {"w": None}),
        row("h", {"w": 1}),
        row("i", {"w": None}),
    ]
    found, out, _ = made(stages, write(tmp_path, rows), "messages")
    assert [r["messages"][1]["tool_calls"][0]["function"]["arguments"] for r in out] == [
        {"x": None, "y": None},
        {"z": None},
        {"w": None},
        {"w": 1},
        {},
    ]
    assert out[0]["tools"][0]["function"] == tool and found["null_rows"] == 1


@pytest.mark.parametrize("control", ["", "<|im_end|>"])
def test_flags_of_turns_decide_what_is_trained_on(stages, tmp_path, bpe, tokens, control):
    cases = [
        ({"train": False}, {"train": True}, "two"),
        ({"loss": 0}, {}, "two"),
        ({"weight": 1}, {"weight": 0}, "one"),
    ]
    cases += [
        ({"weight": 0.0}, {"weight": 1.0}, "two"),
        ({"loss": True}, {"loss": None}, "one two"),
        ({}, {}, "one two"),
    ]
    rows = []
    for first, second, _ in cases:
        answers = [
            {"role": "assistant", "content": f"one{control}", **first},
            {"role": "assistant", "content": "two", **second},
        ]
        rows.append({"messages": [USER, answers[0], USER, answers[1]]})
    for row, (_, _, trained) in zip(tokens(stages.tokens_of(rows)), cases, strict=True):
        shown = [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
        text = bpe.decode(shown, skip_special_tokens=False)
        assert [word for word in ("one", "two") if word in text] == trained.split()


def test_flags_that_cannot_be_followed_are_refused_and_unknown_keys_are_said(stages, tmp_path, capsys):
    off = {**ANSWER, "train": False}
    pair = {"prompt": [USER], "chosen": [{**ANSWER, "content": "x", "train": False}], "rejected": [ANSWER]}
    _, _, (entry,) = made(
        stages, write(tmp_path, [pair, {"prompt": "q", "chosen": "a", "rejected": "b"}]), "preference", "preference"
    )
    assert entry["reason"] == "train_flag"
    rows = [{"messages": [USER, off, USER, ANSWER]}, {"messages": [USER, {**ANSWER, "mask": 1}]}]
    found, _, _ = made(stages, write(tmp_path, rows, "y.jsonl"), "messages")
    assert (
        found["turn_keys"] == {"mask": 1}
        and "keys of turns that only a template may use: mask 1" in capsys.readouterr().out
    )
    transformed = stages.base / "data" / "transform" / "y" / "manifest.json"
    dropped = json.loads(stages.tokenize(transformed, name="y", train_on="all").read_text())
    assert dropped["dropped"] == {"train_flag": 1}
    listed = [json.loads(line) for line in (stages.base / "data" / "tokenize" / "y" / "rejects.jsonl").open()]
    assert [(entry["row"], entry["reason"]) for entry in listed] == [(1, "train_flag")]


def test_a_place_for_a_picture_is_refused_where_there_is_one(stages, tmp_path):
    places = ["<image>", "<|image|>", "<video>", "[IMG]", "<image_1>"]
    turns = [[{"role": "user", "content": f"{place} what?"}, ANSWER] for place in places]
    rows = [{"messages": asked, "images": ["x.png"]} for asked in turns]
    rows += [{"messages": turns[0], "images": []}, {"messages": [USER, ANSWER], "images": ["x.png"]}]
    _, out, rejects = made(stages, write(tmp_path, rows), "messages")
    assert [entry["reason"] for entry in rejects] == ["unsupported_content"] * 5 and [row["row"] for row in out] == [
        6,
        7,
    ]
    assert all(
        place in entry["detail"] and "column 'images'" in entry["detail"]
        for place, entry in zip(places, rejects, strict=True)
    )


def test_what_is_said_of_rows_that_cannot_be_used(stages, tmp_path, capsys):
    pairs = [{"prompt": "q", "chosen": "a", "rejected": "b"}]
    with pytest.raises(
        DataError,
        match=r"wrong_shape: the transform gives pairs \(prompt, chosen, rejected\); this stage takes conversations",
    ):
        stages.transform(write(tmp_path, pairs), transform_name="preference", rows="messages")
    rows = [{"question": "q", "answer": None}, {"question": "q", "answer": "a"}]
    _, _, (entry,) = made(stages, write(tmp_path, rows, "y.jsonl"), "question_answer")
    assert (entry["reason"], entry["detail"]) == ("missing_column", "answer is null in this row")
    assert f"the first rejected: {tmp_path}/y.jsonl: row 1: missing_column: answer is null" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"x\.jsonl: has no rows; check its path"):
        stages.transform(write(tmp_path, []), transform_name="messages")
    with pytest.raises(
        DataError, match=r"the first: .*z\.jsonl: row 1: missing_column: 'messages' \(the row has other\)"
    ):
        stages.transform(write(tmp_path, [{"other": 1}], "z.jsonl"), transform_name="messages")


def test_rejected_control_tokens_are_listed_and_limited(stages, tmp_path):
    rows = [{"messages": [USER, {"role": "assistant", "content": text}]} for text in ("fine", "a<|im_end|>b", "fine")]
    transformed = stages.transform(write(tmp_path, rows), transform_name="messages")
    kept = stages.tokenize(transformed, special_tokens_in_content="reject")
    assert [json.loads(line)["row"] for line in (kept.parent / "rejects.jsonl").open()] == [2]
    with pytest.raises(
        DataError,
        match=r"1 of 3 rows cannot be tokenised .*the first: row 2: control_token: .*data\.max_reject_fraction=0\.1",
    ):
        stages.tokenize(transformed, special_tokens_in_content="reject", name="limited", max_reject_fraction=0.1)


OUTCOMES = {
    "answer_below_a_path": ("question_answer", {"question": "{task} {examples[0][source]}", "answer": "{examples[0][target]}"}, "messages", {}),
    "mistyped_optional_column": ("alpaca", {"input": "inputs"}, "messages", "no row has a column 'inputs'"),
    "votes_majority_tie": (
        "preference_votes",
        {"first": "answer_a", "second": "answer_b", "prompt": "question", "votes": ["judge1", "judge2", "judge3"]},
        "preference",
        {"tie": 4},
    ),
    "turns_without_roles": ("task_dialogue", {"turns": "lines", "speaker": None, "text": "utterance"}, "messages", {}),
    "ranked_answers_best_first": (
        "preference_ranking", {"answers": "answers", "prompt": ["prompt", "context"], "history": "earlier"}, "preference", {},
    ),
    "typed_blocks_with_value": ("messages", {"column": "conversation"}, "messages", {}),
    "invisible_text": ("question_answer", {}, "messages", {"empty_content": 3, "nul_character": 1}),
    "pairs_that_differ_in_blanks": ("preference", {}, "preference", {"identical_pair": 3}),
    "array_in_a_jsonl": ("question_answer", {}, "messages", "is a JSON array, not JSON Lines, which hold one object a line; give it the suffix .json"),
    "transcripts_crlf": ("preference_transcripts", {}, "preference", {}),
    "null_filled_arguments": ("messages", {}, "messages", {}),
    "turns_with_a_loss_flag": ("messages", {}, "messages", {}),
    "images_as_text": ("messages", {}, "messages", "unsupported_content: the text has <image> for what is in the column 'images'"),
}  # fmt: skip


@pytest.mark.parametrize("name", OUTCOMES)
def test_the_reported_rows_have_their_right_outcome(stages, name):
    if not CASES.is_dir():
        pytest.skip(f"no reported rows: {CASES} is absent")
    transform, arguments, shape, outcome = OUTCOMES[name]
    if isinstance(outcome, str):
        with pytest.raises(DataError) as caught:
            made(stages, CASES / f"{name}.jsonl", transform, shape, **arguments)
        assert outcome in str(caught.value)
        return
    found, out, _ = made(stages, CASES / f"{name}.jsonl", transform, shape, **arguments)
    assert found["dropped"] == outcome and "null" not in json.dumps(out)


W = {"type": "function", "function": {"name": "w", "arguments": {"c": "x"}}}
SCHEMA = {"type": "object", "properties": {"c": {"type": "string"}}}
ASKED, SAID = [USER], [ANSWER]
RESULT = {"role": "tool", "content": "4", "tool_call_id": "1"}
CALLED = {"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [{"id": "1", **W}]}, RESULT, ANSWER]}
PAIRED = {"prompt": ASKED, "chosen": SAID, "rejected": [{**ANSWER, "content": "b"}]}
LABELLED = {"prompt": ASKED, "completion": SAID, "label": True}
WHOLE = [ASKED + SAID, [USER, {**ANSWER, "content": "b"}]]
# Transform, its arguments, a row as a public dataset or an API has it, and what becomes of it.
FORMS = {
    "Anthropic": ("messages", {}, {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "w", "input": {"c": "x"}}]}, {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "4"}]}]}, ANSWER], "tools": [{"name": "w", "input_schema": SCHEMA}]}, {**CALLED, "tools": [{"type": "function", "function": {"name": "w", "parameters": SCHEMA}}]}),
    "Anthropic, a result and a word": ("messages", {}, {"messages": [USER, {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "w", "input": {"c": "x"}}]}, {"role": "user", "content": [{"type": "text", "text": "q"}, {"type": "tool_result", "tool_use_id": "1", "content": "4"}]}, ANSWER]}, {"messages": [*CALLED["messages"][:3], USER, ANSWER]}),
    "Bedrock": ("messages", {"system": "system"}, {"system": [{"text": "s"}], "messages": [{"role": "user", "content": [{"text": "q"}]}, {"role": "assistant", "content": [{"reasoningContent": {"reasoningText": {"text": "hm"}}}, {"text": "a"}]}]}, {"messages": [{"role": "system", "content": "s"}, USER, {**ANSWER, "reasoning_content": "hm"}]}),
    "Bedrock's calls": ("messages", {}, {"messages": [USER, {"role": "assistant", "content": [{"toolUse": {"toolUseId": "1", "name": "w", "input": {"c": "x"}}}]}, {"role": "user", "content": [{"toolResult": {"toolUseId": "1", "content": [{"json": 4}]}}]}, ANSWER], "tools": [{"toolSpec": {"name": "w", "inputSchema": {"json": SCHEMA}}}]}, {**CALLED, "tools": [{"type": "function", "function": {"name": "w", "parameters": SCHEMA}}]}),
    "Gemini": ("messages", {"column": "contents", "content": "parts", "roles": {"model": "assistant"}, "system": "systemInstruction.parts[0].text"}, {"systemInstruction": {"parts": [{"text": "s"}]}, "contents": [{"role": "user", "parts": [{"text": "q"}]}, {"role": "model", "parts": [{"text": "hm", "thought": True}, {"text": "a"}]}]}, {"messages": [{"role": "system", "content": "s"}, USER, {**ANSWER, "reasoning_content": "hm"}]}),
    "Gemini's calls": ("messages", {"column": "contents", "content": "parts", "roles": {"model": "assistant"}}, {"contents": [{"role": "user", "parts": [{"text": "q"}]}, {"role": "model", "parts": [{"functionCall": {"id": "1", "name": "w", "args": {"c": "x"}}}]}, {"role": "user", "parts": [{"functionResponse": {"id": "1", "response": {"t": 4}}}]}, {"role": "model", "parts": [{"text": "a"}]}], "tools": [{"functionDeclarations": [{"name": "w"}]}]}, {"messages": [*CALLED["messages"][:2], {**RESULT, "content": '{"t":4}'}, ANSWER], "tools": [{"type": "function", "function": {"name": "w"}}]}),
    "rounds": ("task_dialogue", {"turns": "conversation", "speaker": None, "text": ["input", "output"]}, {"conversation": [{"input": "q", "output": "a"}] * 2}, {"messages": [*ASKED, *SAID] * 2}),
    "xLAM": ("question_answer", {"question": "query", "calls": "answers", "tools": "tools"}, {"query": "q", "answers": '[{"name": "w", "arguments": {"c": "x"}}]', "tools": '[{"name": "w"}]'}, {"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [W]}], "tools": [{"type": "function", "function": {"name": "w"}}]}),
    "TRL's prompt and completion": ("question_answer", {"question": "prompt", "answer": "completion"}, {"prompt": ASKED, "completion": SAID}, {"messages": ASKED + SAID}),
    "messages as text": ("preference", {}, {"prompt": "q", "chosen": json.dumps(WHOLE[0]), "rejected": json.dumps(WHOLE[1])}, PAIRED),
    "messages as Python writes them": ("preference", {}, {"prompt": "q", "chosen": str(WHOLE[0]), "rejected": str(WHOLE[1])}, "not_json: text of the assistant that begins like a list of messages is not JSON"),
    "a text about lists": ("preference", {}, {"prompt": "q", "chosen": "[a]", "rejected": '[{"key": 1}]'}, {"prompt": ASKED, "chosen": [{**ANSWER, "content": "[a]"}], "rejected": [{**ANSWER, "content": '[{"key": 1}]'}]}),
    "UltraFeedback's ratings": ("preference_ranking", {"scores": "annotations.help.Rating"}, {"prompt": "q", "completions": [{"response": text, "annotations": {"help": {"Rating": score}}} for text, score in (("b", "2"), ("a", "4"))]}, PAIRED),
    "Nectar's ranks": ("preference_ranking", {"answers": "answers", "answer": "answer", "ranks": "rank"}, {"prompt": "q", "answers": [{"answer": text, "rank": rank} for text, rank in (("b", 7.0), ("a", 1.0))]}, PAIRED),
    "lists in CSV": ("preference_ranking", {"scores": "scores"}, {"prompt": "q", "completions": '["b", "a"]', "scores": "[10, 9.5]"}, {**PAIRED, "chosen": PAIRED["rejected"], "rejected": SAID}),
    "a null score": ("preference_ranking", {"scores": "scores"}, {"prompt": "q", "completions": ["a", "b"], "scores": [1, None]}, "wrong_type: scores holds 1 nulls or NaN"),
    "a scale of votes": ("preference_votes", {"votes": "v", "first_wins": [-2, -1], "second_wins": [1, 2]}, {"prompt": "q", "response1": "a", "response2": "b", "v": -2}, PAIRED),
    "votes of 0 and 1": ("preference_votes", {"votes": "v", "first_wins": 0, "second_wins": 1}, {"prompt": "q", "response1": "a", "response2": "b", "v": 0}, PAIRED),
    "a labelled conversation": ("unpaired_preference", {"completion": "messages"}, {"messages": ASKED + SAID, "label": True}, LABELLED),
    "a label of CSV": ("unpaired_preference", {}, {"prompt": "q", "completion": "a", "label": "TRUE"}, LABELLED),
    "an empty label": ("unpaired_preference", {}, {"prompt": "q", "completion": "a", "label": ""}, "missing_column: label is"),
    "calls in the text": ("sharegpt", {}, {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "<tool_call>{}"}, {"from": "tool", "value": "4"}, {"from": "gpt", "value": "a"}]}, "role_order: turn 2: tool after assistant: it calls no tool; where calls are written in its text, name the transform's roles: {tool: user}"),
    "OpenAI's Responses": ("messages", {"column": "input"}, {"input": [USER, {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}, {"type": "function_call", "call_id": "1", "name": "w", "arguments": '{"c": "x"}'}, {"type": "function_call", "call_id": "2", "name": "w", "arguments": "{}"}, {"type": "function_call_output", "call_id": "1", "output": "4"}, {"type": "message", "id": "m", "role": "assistant", "content": [{"type": "output_text", "text": "a", "annotations": []}]}], "tools": [{"type": "function", "name": "w"}]}, {"messages": [USER, {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [{"id": "1", **W}, {"id": "2", "type": "function", "function": {"name": "w", "arguments": {}}}]}, RESULT, ANSWER], "tools": [{"type": "function", "function": {"name": "w"}}]}),
    "Responses in two columns": ("question_answer", {"question": "input", "answer": "output"}, {"input": ASKED, "output": [{"type": "reasoning", "summary": [], "encrypted_content": "x"}, {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a"}]}]}, {"messages": ASKED + SAID}),
    "a search of Responses": ("messages", {}, {"messages": [USER, {"type": "web_search_call", "id": "1"}, ANSWER]}, "unknown_role: messages[1] has no role (it has type, id)"),
    "ShareGPT's keys": ("messages", {}, {"messages": [{"from": "human", "value": "q"}]}, "unknown_role: messages[0] has no role (it has from, value)"),
    "a name with a blank": ("question_answer", {}, {"question": "q", " answer": "a"}, "missing_column: 'answer' (the row has question, ' answer')"),
    "Guanaco": ("transcript", {"separator": "###"}, {"text": "### Human: q### Assistant: a### Human: q### Assistant: a"}, {"messages": (ASKED + SAID) * 2}),
    "Glaive's functions": ("transcript", {"column": "chat", "user": ["USER:", "FUNCTION RESPONSE:"], "assistant": "ASSISTANT:", "strip": "<|endoftext|>", "system": "system"}, {"system": "s", "chat": "USER: q\n\n\nASSISTANT: a <|endoftext|>\n\n\nFUNCTION RESPONSE: q\n\n\nASSISTANT: a <|endoftext|>\n\n\n"}, {"messages": [{"role": "system", "content": "s"}, *(ASKED + SAID) * 2]}),
    "Baize": ("transcript", {"user": "[|Human|]", "assistant": "[|AI|]", "separator": "\n", "preface": "drop"}, {"text": "They talk.\r\n[|Human|] q\r\n[|AI|] a\r\n[|Human|] "}, {"messages": ASKED + SAID}),
    "Llama 2's format": ("transcript", {"user": "[INST]", "assistant": "[/INST]", "separator": "", "strip": ["<s>", "</s>"]}, {"text": "<s>[INST] q [/INST] a </s><s>[INST] q [/INST] a </s>"}, {"messages": (ASKED + SAID) * 2}),
    "Alpaca's prompt in one text": ("transcript", {"user": "Instruction:", "assistant": "Response:", "separator": "###", "preface": "system"}, {"text": "s\n\n### Instruction:\nq\n\n### Response:\na"}, {"messages": [{"role": "system", "content": "s"}, *ASKED, *SAID]}),
    "a text before the first mark": ("transcript", {}, {"text": "s\n\nHuman: q\n\nAssistant: a"}, "not_a_transcript: text does not begin with one of Human:, Assistant:"),
    "lists of a Sequence": ("messages", {}, {"messages": {"role": ["user", "assistant"], "content": ["q", "a"]}}, {"messages": ASKED + SAID}),
    "lists of calls and tools": ("messages", {}, {"messages": {"role": ["user", "assistant", "tool", "assistant"], "content": ["q", None, "4", "a"], "tool_calls": [None, {"id": ["1"], "function": [W["function"]]}, None, None], "tool_call_id": [None, None, "1", None]}, "tools": {"type": ["function"], "function": [{"name": "w"}]}}, {**CALLED, "tools": [{"type": "function", "function": {"name": "w"}}]}),
    "lists of blocks": ("messages", {}, {"messages": [{"role": "user", "content": {"type": ["text", "text"], "text": ["q", "r"]}}, ANSWER]}, {"messages": [{**USER, "content": "qr"}, ANSWER]}),
    "lists under other keys": ("messages", {"role": "who", "content": "said", "roles": {"a": "user", "b": "assistant"}}, {"messages": {"who": ["a", "b"], "said": ["q", "a"]}}, {"messages": ASKED + SAID}),
    "lists of ShareGPT": ("sharegpt", {}, {"conversations": {"from": ["human", "gpt"], "value": ["q", "a"]}}, {"messages": ASKED + SAID}),
    "lists of MultiWOZ": ("task_dialogue", {"turns": "turns", "text": "utterance", "roles": {"0": "user", "1": "assistant"}}, {"turns": {"turn_id": ["0", "1"], "speaker": [0, 1], "utterance": ["q", "a"], "frames": [{}, {}]}}, {"messages": ASKED + SAID}),
    "lists of a pair": ("preference", {}, {"chosen": {"role": ["user", "assistant"], "content": ["q", "a"]}, "rejected": {"role": ["user", "assistant"], "content": ["q", "b"]}}, PAIRED),
    "lists of a prompt": ("unpaired_preference", {}, {"prompt": {"role": ["user"], "content": ["q"]}, "completion": {"role": ["assistant"], "content": ["a"]}, "label": 1}, LABELLED),
    "lists of answers": ("preference_ranking", {}, {"prompt": "q", "completions": {"response": ["b", "a"], "overall_score": [1, 2]}}, PAIRED),
    "lists that are no turns": ("question_answer", {"question": "{context[text][0]}", "answer": "answers.text[0]"}, {"context": {"title": ["t"], "text": ["q"]}, "answers": {"text": ["a"], "answer_start": [3]}}, {"messages": ASKED + SAID}),
    "lists of different lengths": ("messages", {}, {"messages": {"role": ["user", "assistant"], "content": ["q"]}}, "wrong_type: messages is dict, expected a list of messages"),
    "Nectar's transcripts": ("preference_ranking", {"answers": "answers", "answer": "answer", "ranks": "rank"}, {"prompt": "\n\nHuman: q\n\nAssistant: a\n\nHuman: q\n\nAssistant: ", "answers": [{"answer": text, "rank": rank, "model": "m"} for text, rank in (("b", 7.0), ("a", 1.0))]}, {**PAIRED, "prompt": ASKED + SAID + ASKED}),
    "a transcript that is asked": ("question_answer", {"question": "prompt", "answer": "response", "system": "s"}, {"prompt": "Human: q\r\n\r\nAssistant:", "response": "a"}, {"messages": [{"role": "system", "content": "s"}, USER, ANSWER]}),
    "a text about a transcript": ("question_answer", {}, {"question": "Human: and Assistant:", "answer": "a"}, {"messages": [{**USER, "content": "Human: and Assistant:"}, ANSWER]}),
    "a transcript of nothing": ("question_answer", {}, {"question": "Human: \n\nAssistant:", "answer": "a"}, "empty_content: messages[0]"),
    "a prompt, and conversations with a system prompt": ("preference", {}, {"prompt": "q", **{key: [{"role": "system", "content": "s"}, *turns] for key, turns in zip(("chosen", "rejected"), WHOLE, strict=True)}}, {**PAIRED, "prompt": [{"role": "system", "content": "s"}, USER]}),
    "a system prompt of its own, and conversations without": ("preference", {"system": "system"}, {"system": "s", "prompt": "q", "chosen": WHOLE[0], "rejected": WHOLE[1]}, {**PAIRED, "prompt": [{"role": "system", "content": "s"}, USER]}),
    "the last question, and conversations of several": ("preference", {}, {"prompt": "q", **{key: [*ASKED, *SAID, *turns] for key, turns in zip(("chosen", "rejected"), WHOLE, strict=True)}}, {**PAIRED, "prompt": [*ASKED, *SAID, *ASKED]}),
    "a question, and a labelled conversation of several": ("unpaired_preference", {}, {"prompt": "q", "completion": [{"role": "system", "content": "s"}, *WHOLE[0]], "label": True}, {**LABELLED, "prompt": [{"role": "system", "content": "s"}, USER]}),
    "another question than the conversations'": ("preference", {}, {"prompt": "p", "chosen": WHOLE[0], "rejected": WHOLE[1]}, "role_order: turn 1: user after user"),
    "OpenAI's preferences": ("preference", {"prompt": "input.messages", "chosen": "preferred_output", "rejected": "non_preferred_output", "tools": "input.tools"}, {"input": {"messages": ASKED, "tools": []}, "preferred_output": SAID, "non_preferred_output": PAIRED["rejected"]}, PAIRED),
    "LLaMA-Factory's pairs": ("preference", {"prompt": "conversations"}, {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}}, PAIRED),
    "the arena's votes": ("preference_votes", {"first": "conversation_a", "second": "conversation_b", "first_wins": "model_a", "second_wins": "model_b", "ties": ["tie", "tie (bothbad)"]}, {"conversation_a": WHOLE[0], "conversation_b": WHOLE[1], "winner": "model_a"}, PAIRED),
    "summaries": ("preference_votes", {"prompt": "info.post", "first": "summaries.text[0]", "second": "summaries.text[1]", "votes": "choice", "first_wins": 0, "second_wins": 1}, {"info": {"post": "q"}, "summaries": {"text": ["b", "a"], "policy": ["x", "y"]}, "choice": 1}, PAIRED),
    "a result that is an object": ("messages", {}, {"messages": [*CALLED["messages"][:2], {**RESULT, "content": {"t": [4]}}, ANSWER]}, {"messages": [*CALLED["messages"][:2], {**RESULT, "content": '{"t":[4]}'}, ANSWER]}),
    "one block that is no list": ("messages", {}, {"messages": [{"role": "user", "content": {"type": "text", "text": "q"}}, ANSWER]}, {"messages": ASKED + SAID}),
    "a result that has a type": ("messages", {}, {"messages": [*CALLED["messages"][:2], {**RESULT, "content": {"type": "weather", "t": 4}}, ANSWER]}, {"messages": [*CALLED["messages"][:2], {**RESULT, "content": '{"type":"weather","t":4}'}, ANSWER]}),
    "a prompt, and transcripts that repeat it": ("preference", {}, {"prompt": "Human: q\n\nAssistant:", "chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}, "no_shared_prefix: both answers are transcripts, Human: ... Assistant: ..."),
    "keys of turns that nobody named": ("sharegpt", {}, {"conversations": [{"user": "human", "text": "q"}]}, "unknown_role: messages[0] has no role (it has user, text)"),
    "a number for messages": ("messages", {}, {"messages": 3}, "wrong_type: found int, expected a list"),
    "a prompt as text": ("prompt", {}, {"prompt": json.dumps(ASKED)}, {"prompt": ASKED, "columns": {}}),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_a_form_of_a_public_dataset(name):
    transform, arguments, row, expected = FORMS[name]
    source = registry.transform_names([])[transform]
    config = {"transform": transform, "arguments": arguments, "rows": source.gives[0], "last_turn": "trim"}
    done = Application(config, source.file).block(
        Block(Path("x.jsonl"), 1, 1, json.dumps(row, ensure_ascii=False).encode(), 1)
    )
    if isinstance(expected, str):
        assert done.first_rejection.startswith(f"x.jsonl: row 1: {expected}"), done
    else:
        assert done.rows_out == 1, done.first_rejection
        assert json.loads(done.lines) == {"row": 1, **expected}


def test_a_tree_in_a_table_of_text(stages, tmp_path):
    """CSV has no nulls, numbers or flags: ranks are compared as numbers, an empty parent is none, `False` is not deleted."""
    lines = ["message_id,parent_id,message_tree_id,role,text,rank,deleted", "1,,1,prompter,q,,False"]
    lines += ["2,1,1,assistant,worse,10,False", "3,1,1,assistant,better,9,False", "4,1,1,assistant,gone,0,True"]
    (tmp_path / "x.csv").write_text("\n".join(lines))
    _, out, rejects = made(stages, tmp_path / "x.csv", "message_tree")
    assert [said(row["messages"]) for row in out] == [["q", "better"]]
    assert {entry["row"]: entry["reason"] for entry in rejects} == {2: "other_path", 4: "deleted"}
    _, out, _ = made(stages, tmp_path / "x.csv", "message_tree", "preference", pairs="all")
    assert [said(row["chosen"] + row["rejected"]) for row in out] == [["better", "worse"]]


def test_a_table_with_a_date_beyond_the_calendar_names_the_column(stages, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"question": ["q", "q"], "when": pa.array([2**60, 1], pa.timestamp("us")), "answer": ["a", "a"]}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    _, out, rejects = made(stages, tmp_path / "x.parquet", "question_answer")
    assert [row["row"] for row in out] == [2]
    assert rejects[0]["detail"].startswith("column 'when': ") and "'answer': 'a'" in rejects[0]["excerpt"]


def test_maps_are_objects_and_decimals_are_numbers(stages, tmp_path, capsys):
    """In columns that a transform reads, or keeps for rewards; a key that is there twice costs its row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    text, turns = pa.map_(pa.string(), pa.string()), [[*USER.items()], [*ANSWER.items()]]
    columns = {"messages": pa.array([turns, turns, [[("role", "user"), ("role", "tool")]]], pa.list_(text))}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    _, out, rejects = made(stages, tmp_path / "x.parquet", "messages")
    assert [row["messages"] for row in out] == [[USER, ANSWER]] * 2
    assert [(entry["row"], entry["reason"]) for entry in rejects] == [(3, "duplicate_key")]
    much = pa.array([Decimal("1.50"), Decimal("2.00")])
    pq.write_table(pa.table({"prompt": ["q", "r"], "much": much}), tmp_path / "y.parquet")
    _, out, _ = made(stages, tmp_path / "y.parquet", "prompt", "prompts")
    assert [row["columns"] for row in out] == [{"much": 1.5}, {"much": 2}]
    pq.write_table(pa.table({"prompt": ["q"], "more": [[{"x": b"\xff"}]]}), tmp_path / "z.parquet")
    with pytest.raises(DataError, match=r"not_json: columns\.more\.0\.x: b'\\xff' is bytes, which JSON does not have"):
        made(stages, tmp_path / "z.parquet", "prompt", "prompts")


def test_text_that_is_stored_as_bytes(stages, tmp_path):
    """In a column or below one; bytes that are no text, such as a picture's, cost nothing where nothing reads them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    turns = [{key.encode(): value.encode() for key, value in turn.items()} for turn in (USER, ANSWER)]
    turn = pa.struct([("role", pa.binary()), ("content", pa.large_binary())])
    columns = {
        "messages": pa.array([[{k.decode(): v for k, v in one.items()} for one in turns]] * 3, pa.list_(turn)),
        "answer": pa.array([b"a", "é".encode(), b"\xff"], pa.binary()),
        "picture": [{"bytes": b"\x89PNG\xff", "path": None}] * 3,
    }
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    _, out, _ = made(stages, tmp_path / "x.parquet", "messages")
    assert [row["messages"] for row in out] == [[USER, ANSWER]] * 3
    _, out, rejects = made(stages, tmp_path / "x.parquet", "question_answer", question="messages[0].content")
    assert [row["messages"][1]["content"] for row in out] == ["a", "é"]
    assert [(entry["row"], entry["detail"]) for entry in rejects] == [(3, "answer is bytes, expected text")]


def test_a_module_of_a_user_gets_what_the_source_has(stages, tmp_path):
    module = tmp_path / "own.py"
    module.write_text(
        "from post_training.data.transforms import register_transform\n\n\n"
        "@register_transform('own')\ndef own(row):\n"
        "    turns = zip(row['messages']['role'], row['messages']['content'])\n"
        "    return {'messages': [{'role': role, 'content': content} for role, content in turns]}\n"
    )
    file = write(tmp_path, [{"messages": {"role": ["user", "assistant"], "content": ["q", "a"]}}])
    manifest = stages.transform(file, transform_name="own", source=module)
    assert json.loads((manifest.parent / "rows.jsonl").read_text())["messages"] == [USER, ANSWER]


@pytest.mark.parametrize(
    "rows, transform, remedy",
    [
        ([{"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}], "preference", "choose preference_transcripts"),
        ([{"question": "q", "answer": 4}], "question_answer", "a number becomes text in a template, such as '{answer}'"),
        ([{"messages": [{"from": "human", "value": "q"}]}], "messages", "such as {name: messages, role: from, content: value}"),
        (["text"], "messages", "a row is an object with the names of its columns"),
        ([{"messages": "hi"}], "messages", "best written again as JSON Lines or Parquet"),
        ([{"messages": [USER]}], "messages", "; look at these rows"),
    ],
)  # fmt: skip
def test_the_remedy_fits_what_most_rows_have(stages, tmp_path, rows, transform, remedy):
    with pytest.raises(DataError) as caught:
        made(stages, write(tmp_path, rows), transform, "preference" if transform == "preference" else "messages")
    assert str(caught.value).count("nothing is left; the first: ") == 1 and remedy in str(caught.value)


def test_column_names_that_are_not_utf8(stages, tmp_path):
    (tmp_path / "x.csv").write_bytes("question,größe,answer\nq,1,a\n".encode("latin-1"))
    with pytest.raises(DataError, match="line 1: the names of the columns are not UTF-8; save the file as UTF-8"):
        made(stages, tmp_path / "x.csv", "question_answer")
