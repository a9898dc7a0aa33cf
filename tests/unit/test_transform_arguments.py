"""What a configuration says of a transform is checked against its definition before anything runs."""

import ast

import pytest

from post_training.core.errors import ConfigError
from post_training.data import registry
from post_training.plan.transform_arguments import _fits, check_call

KEY = "sft.data.datasets[0].transform"


@pytest.mark.parametrize(
    "name, arguments, rows, said",
    [
        ("alpaca", {"outptu": "x"}, "messages", f"{KEY}.outptu: the transform 'alpaca' has no such argument. Did you mean 'output'?"),
        ("alpaca", {"output": 3}, "messages", f"{KEY}.output: found 3, expected str"),
        ("alpaca", {"output": None}, "messages", f"{KEY}.output: found null, expected str"),
        ("question_answer", {"question": ["a", 1]}, "messages", "question: found ['a', 1], expected str | list[str]"),
        ("messages", {"roles": ["bot"]}, "messages", "roles: found ['bot'], expected dict[str, str] | null"),
        ("preference_ranking", {"margin": "much"}, "preference", "margin: found 'much', expected float"),
        ("preference_ranking", {"margin": True}, "preference", "margin: found True"),
        ("preference_ranking", {"choice": "bst"}, "preference", "choice: found 'bst', expected one of best_worst, best_rest, all"),
        ("message_tree", {"paths": "bst"}, "messages", "paths: found 'bst', expected one of best, all"),
        ("nested_tree", {"pairs": "bst"}, "preference", "pairs: found 'bst', expected one of null, best_worst"),
        ("transcript", {"preface": "keep"}, "messages", "preface: found 'keep', expected one of reject, system, drop"),
        ("preference", {}, "messages", "this stage takes conversations (messages), but the transform 'preference' gives pairs"),
        ("alpaca", {}, "preference", "this stage takes pairs (prompt, chosen, rejected), but the transform 'alpaca' gives conversations"),
        ("unpair_preference", {}, "preference", "gives answers with a label"),
    ],
)  # fmt: skip
def test_mistakes(name, arguments, rows, said):
    with pytest.raises(ConfigError) as caught:
        check_call(registry.transform_names([])[name], arguments, rows, KEY)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name, arguments, rows",
    [
        ("alpaca", {"output": "x"}, "messages"), ("question_answer", {"question": ["a", "b"], "system": None}, "messages"),
        ("preference_ranking", {"margin": 1, "scores": ["a", "b"], "preferences": None}, "preference"), ("task_dialogue", {"speaker": None}, "messages"),
        ("message_tree", {"pairs": "all"}, "preference"), ("message_tree", {}, "messages"), ("preference", {}, "any"),
        ("preference_votes", {"first_wins": "model_a", "ties": ["tie"]}, "preference"),
    ],
)  # fmt: skip
def test_what_fits(name, arguments, rows):
    check_call(registry.transform_names([])[name], arguments, rows, KEY)


def test_functions_of_the_users(tmp_path):
    path = tmp_path / "own.py"
    head = "from typing import Literal\nfrom post_training.data.transforms import register_transform\n"
    path.write_text(
        f"{head}@register_transform('own', gives='unpaired')\ndef own(row, needed, kind: Literal['a', 'b'] = 'a', *, more: 'Odd' = 1): ...\n"
        "@register_transform('free')\ndef free(row, **anything): ...\n@register_transform('odd', gives='pears')\ndef odd(row): ...\n"
    )
    known = registry.transform_names([str(path)])
    check_call(known["own"], {"needed": [1], "kind": "b", "more": object()}, "unpaired", KEY)
    check_call(known["free"], {"x": 1}, "messages", KEY)
    for name, arguments, said in (
        ("own", {}, "needs needed; write {name: own, needed: ...}"),
        ("own", {"needed": 1, "kind": "c"}, "kind: found 'c', expected Literal['a', 'b']"),
        ("odd", {}, "gives ['pears']"),
    ):
        with pytest.raises(ConfigError) as caught:
            check_call(known[name], arguments, "unpaired", KEY)
        assert said in str(caught.value)


def test_every_default_of_a_shipped_transform_fits_its_type():
    for source in registry.transform_names([]).values():
        assert source.gives, source.name
        taken = source.function.args
        for one, default in zip(taken.args[1:], taken.defaults, strict=True):
            value = ast.literal_eval(default)
            assert isinstance(value, tuple) or _fits(value, one.annotation), (source.name, one.arg)


def test_what_a_transform_gives_is_no_part_of_its_identity(tmp_path):
    path, digests = tmp_path / "own.py", set()
    for more in ("", ", gives='messages'", ", gives=('messages',)", ", choices={'kind': ('a', 'b')}"):
        path.write_text(
            f"from post_training.data.transforms import register_transform\n@register_transform('own'{more})\ndef own(row):\n    return row\n"
        )
        digests.add(registry.find_transform("own", [str(path)], "key").digest)
    assert len(digests) == 1
    path.write_text(path.read_text().replace("('a', 'b')", "KINDS"))
    with pytest.raises(
        ConfigError, match=r"own\.py: line 2: choices of 'own' is a name or a call; write its value out"
    ):
        check_call(registry.find_transform("own", [str(path)], "key"), {}, "messages", KEY)
