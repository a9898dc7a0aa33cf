"""Scored answers -> rows: against brute force, and what makes no row."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from on_policy_parts import answers, prompts, scores, task

from post_training.core.errors import DataError
from post_training.on_policy import select
from post_training.on_policy.select import Candidate, choose

PAIRS = {"rows": "preference", "pairs": "best_worst", "min_margin": 0.0, "cut": "drop"}


def candidates(values: list[float]) -> list[Candidate]:
    return [Candidate(n, f"answer {n}", True, {"r": value}, value) for n, value in enumerate(values)]


@given(
    values=st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=6),
    margin=st.sampled_from([0.0, 0.25, 0.5]),
    kind=st.sampled_from(["best_worst", "best_random", "all_ordered"]),
)
def test_pairs_are_those_of_brute_force(values, margin, kind):
    made = choose(candidates(values), PAIRS | {"pairs": kind, "min_margin": margin, "seed": 0}, "p")
    found = {(row["chosen"], row["rejected"]) for row in made.rows}
    every = {
        (a, b)
        for a, b in itertools.permutations(range(len(values)), 2)
        if values[a] > values[b] and values[a] - values[b] >= margin
    }
    if kind == "all_ordered":
        assert found == every and len(made.rows) == len(every)
    else:
        assert found <= every and len(found) == bool(every)
        assert all(values[a] == max(values) for a, _ in found)
    if kind == "best_worst":
        assert all(values[b] == min(values) for _, b in found)
    assert bool(made.reason) == (not found)


@pytest.mark.parametrize(
    ("config", "rows", "reason"),
    [
        ({"best": 1, "threshold": None}, [2], ""),
        ({"best": 2, "threshold": None}, [2, 0], ""),
        ({"best": None, "threshold": 0.5}, [2, 0], ""),
        ({"best": 1, "threshold": 0.9}, [2], ""),
        ({"best": 3, "threshold": 1.5}, [], "below_threshold"),
    ],
)
def test_conversations_are_the_best_answers(config, rows, reason):
    made = choose(candidates([0.5, 0.0, 1.0]), {"rows": "messages", **config}, "p")
    assert ([row["answer"] for row in made.rows], made.reason) == (rows, reason)


def test_labels_follow_the_threshold():
    made = choose(candidates([0.5, 0.0]), {"rows": "unpaired", "threshold": 0.5}, "p")
    assert made.rows == [{"answer": 0, "label": True}, {"answer": 1, "label": False}]


TEXTS = [["good", "bad"], ["same", "same"], ["a", "b"], ["", "c"], ["cut", "d"], ["e", "f"], ["g", "h"]]
VALUES = [[1.0, 0.0], [1.0, 0.0], [0.5, 0.5], [1.0, 0.0], [1.0, 0.0], [None, 1.0], [1.0, 0.9]]


def run(tmp_path, config: dict, weights=None, second=None) -> tuple[list, list, dict]:
    inputs = {
        "prompts": prompts(tmp_path / "prompts", len(TEXTS)),
        "answers 0": answers(tmp_path / "answers", TEXTS, cut=((4, 0),)),
        "score r": scores(tmp_path / "r", VALUES),
    }
    if second:
        inputs["score s"] = scores(tmp_path / "s", second)
    made = task("select", {**config, "weights": weights or {"r": 1.0}}, {}, inputs, tmp_path / "select")
    select.run(made)
    read = [
        [json.loads(line) for line in (made.directory / f).read_text().splitlines()]
        for f in ("rows.jsonl", "candidates.jsonl")
    ]
    return (*read, json.loads(made.output.read_text()))


def test_what_makes_no_pair_is_counted(tmp_path):
    rows, every, facts = run(tmp_path, PAIRS | {"min_margin": 0.5})
    assert [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in rows] == [("good", "bad")]
    assert (rows[0]["row"], rows[0]["part"]) == (0, 0)
    # Equal texts, an empty answer, a cut one and one without a score leave one answer; equal scores and a small margin none.
    assert facts["dropped"] == {"one_answer": 4, "all_equal": 1, "small_margin": 1}
    assert facts["answers"] == {"usable": 10, "repeated": 1, "empty": 1, "cut": 1, "no_score": 1}
    assert (facts["rows_in"], facts["rows_out"], facts["examples"]) == (7, 1, 1)
    assert facts["mean_characters"] == {"chosen": 4.0, "rejected": 3.0}
    assert [len(line["answers"]) for line in every] == [2] * 7
    assert [line["reason"] for line in every][1:] == [
        "one_answer",
        "all_equal",
        "one_answer",
        "one_answer",
        "one_answer",
        "small_margin",
    ]
    assert every[3]["answers"][0]["why_not"] == "empty" and every[0]["rows"] == [{"chosen": 0, "rejected": 1}]


def test_cut_answers_may_be_kept(tmp_path):
    rows, _, _ = run(tmp_path, PAIRS | {"cut": "keep"})
    assert "cut" in [row["chosen"][0]["content"] for row in rows]


def test_a_pair_has_the_difference_of_its_scores_where_it_is_asked_for(tmp_path):
    rows, every, _ = run(tmp_path, PAIRS | {"margin": True}, {"r": 3.0})
    assert rows[0]["margin"] == 3.0 and rows[-1]["margin"] == pytest.approx(0.3)
    assert every[0]["rows"] == [{"chosen": 0, "rejected": 1, "margin": 3.0}]


def test_rewards_are_summed_by_weight_and_each_score_is_kept(tmp_path):
    rows, every, _ = run(tmp_path, PAIRS, {"r": 1.0, "s": 4.0}, second=[[0.0, 0.5]] * len(TEXTS))
    assert rows[0]["chosen"][0]["content"] == "bad"  # 0 + 4 x 0.5 is more than 1
    assert [(one["scores"], one["score"]) for one in every[0]["answers"]] == [
        ({"r": 1.0, "s": 0.0}, 1.0),
        ({"r": 0.0, "s": 0.5}, 2.0),
    ]


def test_an_answer_that_nobody_sees_is_empty_and_a_sum_beyond_numbers_no_score(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "TEXTS", [["good", " \n\u200b", "bad"], ["huge", "small", "x"]])
    monkeypatch.setitem(globals(), "VALUES", [[1.0, 0.0, 0.5], [1e308, 0.0, 1.0]])
    rows, _, facts = run(tmp_path, PAIRS, {"r": 10.0})
    assert [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in rows] == [
        ("good", "bad"),
        ("x", "small"),
    ]
    assert facts["answers"] == {"usable": 4, "empty": 1, "no_score": 1}


def test_labels_of_one_kind_are_one_line(tmp_path):
    with pytest.raises(DataError, match=r"by threshold=5 all 10 answers are undesirable; .*choose a threshold"):
        run(tmp_path, {"rows": "unpaired", "threshold": 5.0, "cut": "drop"})
    assert not (tmp_path / "select" / "manifest.json").exists()


def test_no_row_at_all_is_one_line(tmp_path):
    with pytest.raises(
        DataError,
        match=r"none of 7 prompts gives a row, .*small_margin 2.*; scores from 0 to 1; see .*candidates\.jsonl",
    ):
        run(tmp_path, PAIRS | {"min_margin": 5.0})
    assert not (tmp_path / "select" / "manifest.json").exists()
