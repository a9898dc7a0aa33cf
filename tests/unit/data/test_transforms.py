"""The shipped transforms, and how one is found and loaded."""

import doctest
import importlib
import json

import pytest

from post_training.core.errors import DataError
from post_training.data import registry
from post_training.data.transforms import Skip, load_transform


def load(name, **arguments):
    return load_transform(name, registry.transform_names([])[name].file, arguments)


def said(messages):
    return [(turn["role"], turn["content"]) for turn in messages]


@pytest.mark.parametrize("name", sorted(registry.transform_names([])))
def test_the_examples_in_the_docstrings(name):
    module = importlib.import_module(f"post_training.data.transforms.{registry.transform_names([])[name].file.stem}")
    results = doctest.testmod(module)
    assert results.attempted and not results.failed


def test_alpaca():
    row = {"instruction": "Add.", "input": "1 1", "output": "2", "system": "s", "history": [["q", "a"]]}
    assert said(load("alpaca")(row)["messages"]) == [
        ("system", "s"), ("user", "q"), ("assistant", "a"), ("user", "Add.\n\n1 1"), ("assistant", "2"),
    ]  # fmt: skip
    row = {"instruction": "Add.", "input": "", "response": "2", "system": None, "history": None}
    made = load("alpaca", output="response")(row)
    assert said(made["messages"]) == [("user", "Add."), ("assistant", "2")]


def test_question_answer_and_messages():
    made = load("question_answer", question="q", answer="a", system="s")({"q": "1", "a": "2"})
    assert said(made["messages"]) == [("system", "s"), ("user", "1"), ("assistant", "2")]
    assert load("messages", column="chat", tools="fns")({"chat": [1], "fns": [2]}) == {"messages": [1], "tools": [2]}


def turn(role, content):
    return {"role": role, "content": content}


def test_preference_shapes():
    transform = load("preference")
    expected = {"prompt": [turn("user", "q")], "chosen": [turn("assistant", "a")], "rejected": [turn("assistant", "b")]}
    whole = {
        "chosen": [turn("user", "q"), turn("assistant", "a")],
        "rejected": [turn("user", "q"), turn("assistant", "b")],
    }
    assert transform({"prompt": "q", "chosen": "a", "rejected": "b"}) == expected
    assert transform(expected) == expected
    assert transform(whole) == expected
    assert transform({"prompt": "q", **whole}) == expected
    assert transform({"prompt": [], **whole}) == expected
    # Identical transcripts keep their last turn, so that the validator can say what is wrong with them.
    same = transform({"chosen": whole["chosen"], "rejected": whole["chosen"]})
    assert same["chosen"] == same["rejected"] == [turn("assistant", "a")]
    with pytest.raises(ValueError, match="no_shared_prefix"):
        transform({"chosen": [turn("user", "x"), turn("assistant", "a")], "rejected": whole["rejected"]})
    with pytest.raises(TypeError):
        transform({"prompt": "q", "chosen": 1, "rejected": "b"})


def module(folder, text, name="mine"):
    path = folder / f"{name}.py"
    path.write_text("from post_training.data.transforms import register_transform\n" + text)
    return path


def test_answers_that_are_judged_one_by_one():
    unpaired = load("unpaired_preference")
    made = unpaired({"prompt": "1+1?", "completion": [{"role": "assistant", "content": "2"}], "label": False})
    assert made == {"prompt": [turn("user", "1+1?")], "completion": [turn("assistant", "2")], "label": False}
    assert unpaired({"prompt": "q", "completion": "a", "label": 1})["label"] is True
    for verdict in ("yes", 2, 0.5, []):
        with pytest.raises(TypeError, match=r"label is .*, expected true, false, 1 or 0"):
            unpaired({"prompt": "1+1?", "completion": "2", "label": verdict})
    better, worse = load("unpair_preference")(
        {"chosen": [turn("user", "q"), turn("assistant", "a")], "rejected": [turn("user", "q"), turn("assistant", "b")]}
    )
    assert better == {"prompt": [turn("user", "q")], "completion": [turn("assistant", "a")], "label": True}
    assert worse == {"prompt": [turn("user", "q")], "completion": [turn("assistant", "b")], "label": False}


def test_a_users_module_with_neighbours_and_dataclasses(tmp_path):
    (tmp_path / "neighbour_of_mine.py").write_text("ROLE = 'user'\n")
    path = tmp_path / "mine.py"
    path.write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from neighbour_of_mine import ROLE\n"
        "from post_training.data.transforms import register_transform\n"
        "@dataclass\nclass Turn:\n    role: str = ROLE\n"
        "@register_transform('mine')\ndef mine(row, n=1):\n    return {'messages': [Turn().role] * n}\n"
    )
    assert load_transform("mine", path, {"n": 2})({}) == {"messages": ["user", "user"]}


def test_a_file_that_was_edited_is_read_again(tmp_path):
    path = module(tmp_path, "@register_transform('edited')\ndef f(row):\n    return 1\n")
    assert load_transform("edited", path, {})({}) == 1
    path = module(tmp_path, "# more\n# lines\n@register_transform('edited')\ndef f(row):\n    return 22\n")
    assert load_transform("edited", path, {})({}) == 22


@pytest.mark.parametrize(
    "text, said",
    [
        ("@register_transform('twice')\ndef f(row): ...\n@register_transform('twice')\ndef g(row): ...\n", "registered twice"),
        ("@register_transform('other')\ndef f(row): ...\n", "does not register a transform named 'bad'"),
        ("import no_such_module_anywhere\n", "ModuleNotFoundError"),
        ("1 / 0\n", "ZeroDivisionError"),
        ("def f(:\n", "SyntaxError"),
        ("@register_transform('bad')\ndef f(row, other): ...\n", "transform 'bad': "),
    ],
)  # fmt: skip
def test_modules_that_cannot_be_used(tmp_path, text, said):
    with pytest.raises(DataError) as caught:
        load_transform("bad", module(tmp_path, text), {})
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_argument_names_transform_and_argument():
    with pytest.raises(
        DataError, match=r"transform 'alpaca': .*'outptu'.*its arguments are: instruction, input, output"
    ):
        load("alpaca", outptu="x")


def test_transforms_are_light():
    """The planner's process may import them: no library of the data stages comes along."""
    import subprocess
    import sys

    code = "import sys, post_training.data.transforms.preference as p; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "pyarrow", "orjson", "torch", "datasets"} & set(loaded)


def test_messages_of_openai_in_other_spellings():
    row = {
        "chat": [{"by": "bot", "said": "a"}, {"by": "person", "said": "q", "name": "x"}],
        "sys": "s",
        "functions": [{"name": "f"}],
    }
    made = load(
        "messages", column="chat", role="by", content="said", roles={"bot": "assistant", "person": "user"}, system="sys"
    )
    assert made(row) == {
        "messages": [turn("system", "s"), turn("assistant", "a"), {**turn("user", "q"), "name": "x"}],
        "tools": [{"name": "f"}],
    }
    old = {"messages": [turn("developer", "s"), turn("function", "1"), turn("narrator", "x")]}
    assert [message["role"] for message in load("messages")(old)["messages"]] == ["system", "tool", "narrator"]
    assert load("messages")({"messages": '[{"role": "user", "content": "q"}]'})["messages"] == [turn("user", "q")]


def test_sharegpt_with_calls():
    row = {
        "conversations": [
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
            {"from": "observation", "value": "1"},
            {"from": "gpt", "value": "a"},
        ],
        "tools": '[{"name": "f"}]',
        "system": "s",
    }
    made = load("sharegpt")(row)
    assert said(made["messages"]) == [
        ("system", "s"),
        ("user", "q"),
        ("assistant", ""),
        ("tool", "1"),
        ("assistant", "a"),
    ]
    assert made["messages"][2]["tool_calls"] == [{"name": "f", "arguments": {"x": 1}}] and made["tools"] == row["tools"]
    with pytest.raises(ValueError, match="bad_tool_call: "):
        load("sharegpt")({"conversations": [{"from": "function_call", "value": "{"}]})
    alias = load("sharegpt", role="who", content="text", roles={"poet": "assistant"})
    assert said(alias({"conversations": [{"who": "poet", "text": "a"}]})["messages"]) == [("assistant", "a")]


def test_templates_of_columns():
    row = {"context": ["one", ["two"]], "question": "why?", "n": 3, "answer": "so"}
    made = load("question_answer", question="{context}\n\n{question} {{{n}}}")(row)
    assert said(made["messages"])[0] == ("user", "one\ntwo\n\nwhy? {3}")
    made = load("question_answer", question=["context", "question"])(row)
    assert said(made["messages"])[0] == ("user", "one\ntwo\n\nwhy?")
    with pytest.raises(KeyError, match="questoin"):
        load("question_answer", question="{questoin}")(row)
    with pytest.raises(TypeError, match="n is int"):
        load("question_answer", question="n")(row)


def test_task_dialogues():
    row = {"turns": [{"speaker": "AGENT", "utterance": "hello"}, {"speaker": "customer", "utterance": "a"}] * 2}
    row["turns"].insert(0, {"speaker": "agent", "utterance": "welcome"})
    made = load("task_dialogue", turns="turns", text="utterance", opening="(rings)", system="s")(row)
    assert said(made["messages"]) == [
        ("system", "s"), ("user", "(rings)"), ("assistant", "welcome\nhello"), ("user", "a"), ("assistant", "hello"),
        ("user", "a"),
    ]  # fmt: skip
    made = load("task_dialogue", turns="dialog", speaker=None)({"dialog": ["q", "a", "q2"]})
    assert said(made["messages"]) == [("user", "q"), ("assistant", "a"), ("user", "q2")]


def test_pairs_in_sharegpt_and_with_tools_and_system():
    row = {
        "conversations": [{"from": "human", "value": "q"}],
        "chosen": {"from": "gpt", "value": "a"},
        "rejected": {"from": "gpt", "value": "b"},
        "tools": [{"name": "f"}],
        "sys": "s",
    }
    assert load("preference", prompt="conversations", system="sys")(row) == {
        "prompt": [turn("system", "s"), turn("user", "q")],
        "chosen": [turn("assistant", "a")],
        "rejected": [turn("assistant", "b")],
        "tools": [{"name": "f"}],
    }


def test_transcripts():
    begun = "\n\nHuman: one\n\nstill one\n\nAssistant: two\n\nHuman: three\n\nAssistant:"
    made = load("preference_transcripts")(
        {"chosen": f"{begun} a", "rejected": f"{begun} b\n\nHuman: x\n\nAssistant: y"}
    )
    assert said(made["prompt"]) == [("user", "one\n\nstill one"), ("assistant", "two"), ("user", "three")]
    assert said(made["chosen"]) == [("assistant", "a")]
    assert said(made["rejected"]) == [("assistant", "b"), ("user", "x"), ("assistant", "y")]
    with pytest.raises(ValueError, match="not_a_transcript"):
        load("preference_transcripts")({"chosen": "hello", "rejected": "hello"})
    with pytest.raises(ValueError, match="no_shared_prefix"):
        load("preference_transcripts")({"chosen": "Human: a\n\nAssistant: b", "rejected": "Human: x\n\nAssistant: b"})


def test_votes():
    row = {"prompt": "q", "response1": "a", "response2": "b", "v1": 1, "v2": 2, "v3": 2}
    assert said(load("preference_votes", votes=["v1", "v2", "v3"])(row)["chosen"]) == [("assistant", "b")]
    with pytest.raises(Skip, match="tie: v1=1, v2=2"):
        load("preference_votes", votes=["v1", "v2"])(row)
    with pytest.raises(ValueError, match="unknown_vote: v1 is 7"):
        load("preference_votes", votes="v1")({**row, "v1": 7})
    arena = load(
        "preference_votes",
        first="response1",
        second="response2",
        first_wins="model_a",
        second_wins="model_b",
        ties=["tie", "both bad"],
    )
    assert said(arena({**row, "winner": "model_a"})["chosen"]) == [("assistant", "a")]
    with pytest.raises(Skip):
        arena({**row, "winner": "both bad"})


@pytest.mark.parametrize(
    "choice, expected",
    [("best_worst", ["ad"]), ("best_rest", ["ab", "ac", "ad"]), ("all", ["ab", "ac", "ad", "bd", "cd"])],
)
def test_rankings(choice, expected):
    """a > b = c > d, told by scores in objects, in a list, in columns, and by verdicts."""
    scores = {"a": 9, "b": 5, "c": 5, "d": 1}
    verdicts = [1, 1, 1, 0, 1, 1]  # ab ac ad bc bd cd
    made = [
        load("preference_ranking", choice=choice)(
            {"prompt": "q", "completions": [{"response": k, "overall_score": v} for k, v in scores.items()]}
        ),
        load("preference_ranking", choice=choice, scores="grades")(
            {"prompt": "q", "completions": list(scores), "grades": list(scores.values())}
        ),
        load("preference_ranking", choice=choice, answers=["w", "x", "y", "z"], scores=["1", "2", "3", "4"])(
            {"prompt": "q", **dict(zip("wxyz", scores, strict=True)), **dict(zip("1234", scores.values(), strict=True))}
        ),
        load("preference_ranking", choice=choice, preferences="verdicts")(
            {"prompt": "q", "completions": list(scores), "verdicts": verdicts}
        ),
    ]
    for pairs in made:
        assert sorted(p["chosen"][0]["content"] + p["rejected"][0]["content"] for p in pairs) == expected


def test_rankings_that_decide_nothing():
    with pytest.raises(Skip, match="tie"):
        load("preference_ranking", scores="s", margin=1)({"prompt": "q", "completions": ["a", "b"], "s": [1, 2]})
    with pytest.raises(ValueError, match="wrong_number_of_scores"):
        load("preference_ranking", scores="s")({"prompt": "q", "completions": ["a", "b"], "s": [1]})
    with pytest.raises(ValueError, match="unknown_choice"):
        load("preference_ranking", scores="s", choice="some")({"prompt": "q", "completions": ["a", "b"], "s": [1, 2]})


def message(id, parent, text, rank=None, deleted=False):
    role = "prompter" if text.startswith("q") else "assistant"
    return {
        "message_id": id,
        "parent_id": parent,
        "text": text,
        "role": role,
        "rank": rank,
        "deleted": deleted,
        "message_tree_id": 1,
    }


TREE = [
    message(1, None, "q"), message(2, 1, "a-worse", 1), message(3, 1, "a-better", 0), message(4, 3, "q2"),
    message(5, 4, "a2"), message(6, 2, "q3"), message(7, 1, "a-deleted", 0, deleted=True), message(8, 99, "q-orphan"),
    message(3, 1, "a-twice"), message(9, 7, "q-below"),
]  # fmt: skip


def used_and_reasons(**arguments):
    examples, reasons = [], {}
    for indices, made in load("message_tree", **arguments)(TREE):
        if isinstance(made, ValueError):
            reasons |= {index: (str(made).partition(":")[0], isinstance(made, Skip)) for index in indices}
        else:
            examples.append(made)
    return examples, reasons


def test_trees():
    faults = {6: ("deleted", True), 7: ("no_parent", False), 8: ("duplicate_id", False), 9: ("deleted", True)}
    examples, reasons = used_and_reasons()
    assert [[text for _, text in said(e["messages"])] for e in examples] == [["q", "a-better", "q2", "a2"]]
    assert reasons == faults | {1: ("other_path", True), 5: ("no_answer", True)}
    examples, reasons = used_and_reasons(paths="all", tree=None)
    assert [said(e["messages"])[-1][1] for e in examples] == ["a2", "a-worse"]
    assert reasons == faults | {5: ("no_answer", True)}
    examples, reasons = used_and_reasons(pairs="all")
    assert [(p["chosen"][0]["content"], p["rejected"][0]["content"]) for p in examples] == [("a-better", "a-worse")]
    assert reasons == faults | {3: ("no_pair", True), 4: ("no_pair", True), 5: ("no_answer", True)}


def test_nested_trees():
    nested = {"text": "q", "role": "prompter", "replies": [
        {"text": "a-worse", "role": "assistant", "rank": 1},
        {"text": "a-better", "role": "assistant", "rank": 0, "replies": [{"text": "q2", "role": "prompter", "replies": []}]},
    ]}  # fmt: skip
    assert [said(e["messages"])[-1][1] for e in load("nested_tree")({"prompt": nested})] == ["a-better"]
    assert [said(e["messages"])[-1][1] for e in load("nested_tree", paths="all")({"prompt": nested})] == [
        "a-better",
        "a-worse",
    ]
    assert load("nested_tree", pairs="all")({"prompt": nested})[0]["rejected"] == [turn("assistant", "a-worse")]
    with pytest.raises(Skip, match="no_answer"):
        load("nested_tree")({"prompt": {"text": "q", "role": "prompter"}})


def test_a_tree_may_be_anywhere_in_the_files(stages, tmp_path, read):
    """Three trees in rows and files that are shuffled: by their names or by their parents, the same conversations."""
    rows = []
    for tree in range(3):
        ids = [f"{tree}-{n}" for n in range(3)]
        texts = zip(ids, [None, *ids], ["q", "a", "q2"], strict=False)
        rows += [{**message(id, parent, text), "message_tree_id": tree} for id, parent, text in texts]
    order = [4, 8, 0, 2, 7, 3, 1, 6, 5]
    files = []
    for name, part in (("a", order[:5]), ("b", order[5:])):
        (tmp_path / name).mkdir()
        files.append(tmp_path / name / "x.jsonl")
        files[-1].write_text("".join(json.dumps(rows[n]) + "\n" for n in part))
    found = []
    for arguments in ({}, {"tree": None}):
        manifest = stages.transform(*files, transform_name="message_tree", arguments=arguments)
        assert read(manifest)["rows_out"] == 6 and read(manifest)["dropped"] == {"no_answer": 3}
        found.append((manifest.parent / "rows.jsonl").read_bytes())
    assert found[0] == found[1]
    assert [json.loads(line)["row"] for line in found[0].splitlines()] == [1, 2, 3]
    assert not [path.name for path in manifest.parent.iterdir() if path.name.startswith("tmp")]


def test_identity_covers_the_modules_beside_it(tmp_path):
    path = module(tmp_path, "from beside import ROLE\n@register_transform('mine')\ndef f(row):\n    return ROLE\n")
    (tmp_path / "beside.py").write_text("from further import ROLE\n")
    (tmp_path / "further.py").write_text("ROLE = 1\n")
    before = registry.find_transform("mine", [str(path)], "key").digest
    (tmp_path / "further.py").write_text("ROLE = 1  # the same\n")
    assert registry.find_transform("mine", [str(path)], "key").digest == before
    (tmp_path / "further.py").write_text("ROLE = 2\n")
    assert registry.find_transform("mine", [str(path)], "key").digest != before
