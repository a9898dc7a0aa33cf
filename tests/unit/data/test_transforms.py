"""The shipped transforms, and how one is found and loaded."""

import doctest
import importlib

import pytest

from post_training import registry
from post_training.data.transforms import load_transform
from post_training.errors import DataError


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
    expected = {
        "prompt": [turn("user", "q")],
        "chosen": [turn("assistant", "a")],
        "rejected": [turn("assistant", "b")],
    }
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
    for verdict in ("true", None, 2, 0.5, []):
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
