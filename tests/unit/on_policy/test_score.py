"""Rewards, and what a stage does with one that fails."""

import doctest
import json
import pkgutil
from importlib import import_module
from pathlib import Path

import pytest
from on_policy_parts import answers, prompts, task

from post_training import rewards
from post_training.core.errors import ConfigError, DataError, UserError
from post_training.data import registry
from post_training.evaluation.rewarded import rewarded
from post_training.on_policy import score
from post_training.on_policy.limited_reward import LimitedReward

NAMES = sorted(registry.reward_names([]))
TEXTS = [["one", "two"], ["three", "four"], ["five", "six"]]


def user_module(tmp_path, body: str) -> str:
    path = tmp_path / "mine.py"
    path.write_text(
        "import math\nfrom post_training.rewards import register_reward\n\n"
        f'@register_reward("mine")\ndef mine(prompts, completions, **columns):\n    {body}\n'
    )
    return str(path)


def score_task(tmp_path, file: str, reward: str = "mine", texts=TEXTS, columns=None, limit=60.0, **arguments):
    config = {"reward": reward, "arguments": arguments}
    inputs = {
        "prompts": prompts(tmp_path / "prompts", len(texts), **(columns or {})),
        "answers 0": answers(tmp_path / "a", texts),
    }
    runtime = {"file": file, "arguments": {}, "limit_seconds": limit}
    return task("score", config, runtime, inputs, tmp_path / "score")


def scored(made) -> tuple[list, dict]:
    assert score.run(made) == 0
    lines = [json.loads(line) for line in (made.directory / "scores.jsonl").read_text().splitlines()]
    return [line["score"] for line in lines], json.loads(made.output.read_text())


def call(name: str, texts: list[str], arguments: dict, columns: list[dict] | None = None) -> list:
    source = registry.reward_names([])[name]
    reward = rewards.load_reward(name, source.file, arguments)
    return reward([[{"role": "user", "content": "?"}]] * len(texts), texts, columns or [{}] * len(texts))


@pytest.mark.parametrize("module", [module.name for module in pkgutil.iter_modules(rewards.__path__)])
def test_examples_of_rewards(module):
    result = doctest.testmod(import_module(f"post_training.rewards.{module}"))
    assert result.failed == 0


def test_rewards_on_offer():
    assert NAMES == [
        "constraints",
        "contains",
        "exact_match",
        "format",
        "judge",
        "length",
        "math_answer",
        "reward_model",
    ]
    assert registry.reward_names([])["reward_model"].options == {"place": "gpu"}


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        (r"The answer is \boxed{\frac{1}{2}}.", "0.5", 1.0),
        ("so $x = 12$", "12", 1.0),
        ("It is 1,000.", "1000", 1.0),
        ("It is 13.", "12", 0.0),
        ("I do not know.", "12", 0.0),
        (r"\boxed{\{1, 2\}}", r"$\{2, 1\}$", 1.0),
        ("7", "", None),
    ],
)
def test_math_answers(answer, reference, expected):
    assert call("math_answer", [answer], {}, [{"answer": reference}]) == [expected]


def test_constraints_of_a_prompt():
    require = {"max_words": 4, "ends_with": ".", "no_commas": True}
    own = [{"wanted": {"includes": ["red"], "min_words": None}}, {"wanted": None}]
    assert call("constraints", ["A red kite.", "a, b"], {"require": require, "reference": "wanted"}, own) == [
        1.0,
        1 / 3,
    ]
    with pytest.raises(ValueError, match=r"no constraint named .max_word.\. Did you mean .max_words."):
        call("constraints", ["x"], {"require": {"max_word": 1}})


def test_a_column_never_takes_an_argument_s_place():
    assert call("length", ["one two"], {}, [{"unit": "characters", "at_least": 99}]) == [1.0]


def test_a_missing_reference_is_one_line(tmp_path):
    file = str(registry.reward_names([])["exact_match"].file)
    made = score_task(tmp_path, file, "exact_match", columns={"anser": ["one", "four", "7"]}, reference="answer")
    with pytest.raises(DataError, match=r"none of 6 answers has a score; .*no column 'answer'. Did you mean 'anser'"):
        score.run(made)
    assert not made.output.exists()


def test_an_exact_match_reads_its_column(tmp_path):
    file = str(registry.reward_names([])["exact_match"].file)
    made = score_task(tmp_path, file, "exact_match", columns={"answer": ["one", "four", "7"]})
    values, facts = scored(made)
    assert values == [1, 0, 0, 1, 0, 0] and facts["scores"]["mean"] == pytest.approx(1 / 3, abs=1e-6)


@pytest.mark.parametrize(
    ("body", "expected", "reasons"),
    [
        ("return [float(len(c[-1]['content'])) for c in completions]", [3, 3, 5, 4, 4, 3], {}),
        ("return [math.nan if 'o' in c[-1]['content'] else 1.0 for c in completions]", [None, None, 1, None, 1, 1], {"nan_or_infinite": 3}),
        ("return [None, 1, 2, 3, 'x', 5][:len(completions)]", [None, 1, 2, 3, None, 5], {"none": 1, "not_a_number: str": 1}),
        ("return [10**400, '1.5', True, complex(1), b'1', math.inf][:len(completions)]", [None, None, 1, None, None, None], {"not_a_number: int": 1, "not_a_number: str": 1, "not_a_number: complex": 1, "not_a_number: bytes": 1, "nan_or_infinite": 1}),
        (
            "return [1 / (len(c[-1]['content']) - 3) for c in completions]",
            [None, None, 0.5, 1, 1, None],
            {f"ZeroDivisionError: {kind}division by zero (mine.py, line 6)": 3 for kind in ("float ", "")},
        ),
        ("import numpy; return numpy.array([len(c[-1]['content']) for c in completions], dtype='float32')", [3, 3, 5, 4, 4, 3], {}),
        ("return tuple(math.inf if len(c[-1]['content']) > 4 else 2 for c in completions)", [2, 2, None, 2, 2, 2], {"nan_or_infinite": 1}),
        ("print('seen'); return exit('over') if len(completions) > 1 else [1.5]", [1.5] * 6, {}),
    ],
)  # fmt: skip
def test_a_missing_score_has_a_reason(tmp_path, body, expected, reasons):
    values, facts = scored(score_task(tmp_path, user_module(tmp_path, body)))
    assert values == expected
    assert facts["dropped"].items() <= reasons.items() and bool(facts["dropped"]) == bool(reasons)
    assert facts["rows_in"] == 6 and facts["rows_out"] == 6 - sum(facts["dropped"].values())
    assert (tmp_path / "score" / "source" / "mine.py").is_file(), "a user's module is kept as it was"


TOO_SLOW = "too_slow: no score within 0.2 s (limit_seconds)"


@pytest.mark.parametrize(
    ("line", "reasons"),
    [
        ("import os; mark = __file__ + '.seen'; os.path.exists(mark) or (open(mark, 'w'), os._exit(1))", {}),
        ("import time; time.sleep(60)", {TOO_SLOW: 1}),
        ("sum(range(10**13))", {TOO_SLOW: 1}),  # in C, where no signal is handled
        ("import os; os._exit(3)", {"process_ended: exit code 3": 1}),
        ("import os; os.kill(os.getpid(), 9)", {"process_ended: SIGKILL": 1}),
        ("raise KeyboardInterrupt('me')", {"KeyboardInterrupt: me (mine.py, line 6)": 1}),
        ("raise ValueError('\\udcff')", {"ValueError: ? (mine.py, line 6)": 1}),
        ("input()", {"EOFError: EOF when reading a line (mine.py, line 6)": 1}),
    ],
)  # fmt: skip
def test_an_answer_that_ends_or_holds_the_reward_costs_no_other_its_score(tmp_path, line, reasons, capfd):
    body = f"if any(c[-1]['content'] == 'two' for c in completions): {line}\n    return [1.0 for _ in completions]"
    values, facts = scored(score_task(tmp_path, user_module(tmp_path, body), limit=0.2))
    assert values == [1, None if reasons else 1, 1, 1, 1, 1] and facts["dropped"] == reasons
    by_process = [reason for reason in reasons if reason.startswith(("too_slow", "process_ended"))]
    said = capfd.readouterr().out
    assert all(f"answer 1 to prompt 0: {reason}" in said for reason in by_process) and ("one by one" in said) == bool(
        by_process
    )


def test_a_reward_that_never_returns_and_one_that_is_slow_but_does(tmp_path, capsys):
    module = user_module(tmp_path, "import time; time.sleep(0.001 * len(completions)); return [1.0] * len(completions)")
    texts = [[f"{n} {m}" for m in range(16)] for n in range(40)]  # three batches
    values, _ = scored(score_task(tmp_path, module, texts=texts, limit=0.2))
    assert values == [1.0] * 640
    assert capsys.readouterr().out.count("now one by one") == 1, "then a batch has the time that it takes"
    made = score_task(tmp_path / "never", user_module(tmp_path, "while True: pass"), texts=texts, limit=0.02)
    with pytest.raises(
        DataError, match=r"^reward mine: none of the first 10 answers has a score; no score 10: too_slow"
    ):
        score.run(made)


def test_what_a_reward_does_to_its_arguments_reaches_no_other_answer(tmp_path):
    body = "[p.append(c[0]) for p, c in zip(prompts, completions)]; columns['own'][0].append(1)\n    1 / (len(completions) == 1)\n    return [len(p) + len(columns['own'][0]) for p in prompts]"
    for limit in (60.0, None):
        made = score_task(
            tmp_path / str(limit), user_module(tmp_path, body), columns={"own": [[], [], []]}, limit=limit
        )
        assert scored(made)[0] == [3] * 6


def test_an_evaluation_needs_every_score(tmp_path):
    file = user_module(tmp_path, "return [None if c[-1]['content'] == 'two' else 3 for c in completions]")
    rows = [{"row": n, "prompt": [{"role": "user", "content": "?"}], "columns": {}} for n in range(2)]
    samples = [{"answer": "one", "stopped": True}, {"answer": "two", "stopped": False}]
    with LimitedReward(rewards.load_reward("mine", Path(file), {}), 60.0) as mine:
        result, told = rewarded(rows[:1], samples[:1], [(2.0, mine)])
        assert (result["reward"], told[0]["reward"]) == (6.0, 6.0)
        with pytest.raises(UserError, match=r"reward mine: no score for 1 of 2 answers \(none\); .* row 1: 'two'"):
            rewarded(rows, samples, [(1.0, mine)])


@pytest.mark.parametrize("body", ["raise RuntimeError('broken')", "return [1.0]", "return 1.0"])
def test_a_reward_that_never_works_is_one_line(tmp_path, body):
    made = score_task(tmp_path, user_module(tmp_path, body), texts=[["a", "b"], ["c", "d"]])
    if body == "return [1.0]":  # right for one answer at a time
        assert scored(made)[0] == [1, 1, 1, 1]
        return
    with pytest.raises(DataError, match=r"reward mine: none of 4 answers has a score; no score 4: ") as error:
        score.run(made)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "import math\nimport no_such_library\n",
            r"ModuleNotFoundError: No module named 'no_such_library' \(mine.py, line 2\)",
        ),
        ("x = 1\n\nexit(3)\n", r"SystemExit: 3 \(mine.py, line 3\)"),
        ("def mine(:\n", r"SyntaxError: .*\(mine.py, line 1\)"),
        ("def mine(prompts, completions): ...\n", "does not register a reward named 'mine'"),
    ],
)
def test_a_module_that_cannot_be_used_is_one_line_with_its_place(tmp_path, text, problem):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"mine\.py: .*{problem}") as error:
        rewards.load_reward("mine", path, {})
    assert "\n" not in str(error.value)
    if "def mine(:" in text:
        with pytest.raises(ConfigError, match=r"mine\.py: cannot be read as Python \(.*mine\.py, line 1"):
            registry.reward_names([str(path)])


def test_prompts_that_are_all_too_long_are_one_line(tmp_path):
    made = score_task(tmp_path, user_module(tmp_path, "return []"), texts=[])
    made.inputs["answers 0"].write_text(json.dumps({"files": [], "dropped": {"prompt_too_long": 3}}))
    (made.inputs["answers 0"].parent / "answers.jsonl").write_text("")
    with pytest.raises(
        DataError, match=r"reward mine: no prompt has an answer: 3 leave no room for generate.max_new_tokens"
    ):
        score.run(made)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"template": "Rate {prompt}"}, r"the template lacks \{answer\}, so the judge would not see"),
        ({"template": "{answer}", "reference": "other"}, r"lacks \{first\} and \{second\}"),
        ({"lowest": 5, "highest": 5}, "lowest=5 and highest=5"),
    ],
)
def test_a_judge_that_cannot_judge(arguments, problem):
    with pytest.raises(DataError, match=problem):
        call("judge", ["a"], {"url": "http://127.0.0.1:9", "model_name": "m", **arguments})


def test_a_killed_job_continues_without_scoring_again(tmp_path):
    made = score_task(tmp_path, user_module(tmp_path, "return [float(len(c[-1]['content'])) for c in completions]"))
    scored(made)
    expected = (made.directory / "scores.jsonl").read_bytes()
    made.output.unlink()
    made.runtime["file"] = user_module(tmp_path, "raise AssertionError('scored again')")
    assert score.run(made) == 0
    assert (made.directory / "scores.jsonl").read_bytes() == expected


@pytest.mark.parametrize("parameters", ["prompts, completions", "completions", "completions, prompts"])
def test_a_reward_in_trl_s_form(tmp_path, parameters):
    path = tmp_path / "trl_reward.py"
    path.write_text(
        "from post_training.rewards import register_reward\n\n@register_reward('brief')\n"
        f"def brief({parameters}, answer, **kwargs):\n"
        "    return [float(len(c[0]['content']) < len(a)) for c, a in zip(completions, answer)]\n"
    )
    made = score_task(tmp_path, str(path), "brief", columns={"answer": ["four", "five5", "x"]})
    assert scored(made)[0] == [1, 1, 0, 1, 0, 0]
