"""A good row of every transform, and rows with faults in any place."""

import copy
import json

from hypothesis import strategies as st

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
    "transcript": ({"system": "sys", "strip": "</s>"}, {"text": "Human: q\n\nAssistant: a </s>", "sys": "s"}),
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
def rows_of(draw, good, most=4):
    made = []
    for _ in range(draw(st.integers(1, most))):
        row = good
        for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2, 3]))):
            if not isinstance(row, dict | list):
                break
            place = draw(st.sampled_from(list(places(row))))
            kind = draw(st.sampled_from(["replace", "replace", "remove", "wrap", "as_text", "more"]))
            row = changed(row, place, kind, draw(st.sampled_from(VALUES)))
        made.append(row)
    return made
