"""Benchmarks and prompts in the plan: what a change reruns, and what is refused before anything runs."""

import importlib.util
import json
from pathlib import Path

import pytest
from test_staleness import changed

from post_training.core.errors import UserError

TASK = "task: pick\ndataset_path: json\noutput_type: multiple_choice\n"
EVERY_MODEL = ["base", "dpo", "sft"]


@pytest.fixture
def benchmarked(project):
    """A pipeline with a task of its own and prompts."""
    (project.path / "tasks").mkdir()
    (project.path / "tasks" / "pick.yaml").write_text(TASK)
    (project.path / "prompts.jsonl").write_text(json.dumps({"prompt": "hello"}) + "\n")
    project.config["evaluation"] |= {
        "lm_eval": {"tasks": ["pick"], "include_path": "tasks"},
        "prompts": "prompts.jsonl",
    }
    project.write()
    return project


@pytest.fixture
def finished(benchmarked):
    benchmarked.complete()
    assert benchmarked.jobs() == {}
    return benchmarked


def test_every_model_is_measured_and_cards_and_report_know(benchmarked):
    plan = benchmarked.plan()
    assert list(plan.lm_evaluated) == ["base", "sft", "dpo"]
    assert {f"lm_eval_{name}" for name in plan.lm_evaluated} <= plan.report.inputs.keys()
    assert {"own lm_eval", "base lm_eval", "own evaluate"} <= plan.cards["dpo"].inputs.keys()
    jobs = benchmarked.jobs()
    assert len(jobs["download_tasks"]) == 1
    assert sorted(name.partition("-")[0] for name in jobs["lm_eval"]) == EVERY_MODEL
    benchmarked.config["evaluation"] = {"lm_eval": benchmarked.config["evaluation"]["lm_eval"]}
    assert not benchmarked.plan().evaluated and benchmarked.plan().cards, "a card of benchmarks alone"


def test_prompts_alone_give_no_card(benchmarked):
    benchmarked.config["evaluation"] = {"prompts": "prompts.jsonl"}
    plan = benchmarked.plan()
    assert list(plan.evaluated) == ["base", "sft", "dpo"] and not plan.cards


def test_tasks_and_prompts_are_read_once_for_all_runs(benchmarked, monkeypatch):
    read = []
    text_of = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path, *a, **k: read.append(path.name) or text_of(path, *a, **k))
    benchmarked.config["sweep"] = {"dpo.beta": [0.1, 0.2, 0.3]}
    assert len(benchmarked.graph().plans) == 3
    assert (read.count("pick.yaml"), read.count("prompts.jsonl")) == (1, 1)


def of_lm_eval(project, **values):
    def edit(config):
        config["evaluation"]["lm_eval"] |= values

    return changed(project, edit)


def test_how_fast_it_runs_reruns_nothing(finished):
    assert of_lm_eval(finished, batch_size="auto") == {}
    assert of_lm_eval(finished, fewshot_as_multiturn=False) == {}, "it says nothing without a template"


def test_another_task_reruns_the_benchmarks_alone(finished):
    found = of_lm_eval(finished, tasks=["pick", "arc_easy"])
    assert found == {"download_tasks": ["lm_eval"], "lm_eval": EVERY_MODEL}


@pytest.mark.parametrize("values", [{"num_fewshot": 2}, {"limit": 0.5}, {"seed": 1}, {"apply_chat_template": True}])
def test_how_it_is_asked_fetches_no_task_again(finished, values):
    assert of_lm_eval(finished, **values) == {"lm_eval": EVERY_MODEL}


def test_a_file_of_the_folder_counts(finished):
    (finished.path / "tasks" / "rows.jsonl").write_text("{}\n")
    assert {"download_tasks", "lm_eval", "card"} == finished.jobs().keys()
    (finished.path / "tasks" / "rows.jsonl").unlink()
    (finished.path / "tasks" / "__pycache__").mkdir()
    (finished.path / "tasks" / "__pycache__" / "x.pyc").write_text("")
    assert finished.jobs() == {}


def test_a_change_of_training_reruns_that_models_benchmarks(finished):
    def edit(config):
        config["dpo"]["beta"] = 0.3

    assert changed(finished, edit)["lm_eval"] == ["dpo"]


def test_prompts_count_by_their_content(finished):
    path = finished.path / "prompts.jsonl"
    (finished.path / "same.jsonl").write_bytes(path.read_bytes())

    def edit(config):
        config["evaluation"]["prompts"] = "same.jsonl"

    assert changed(finished, edit) == {}
    path.write_text(json.dumps({"prompt": "goodbye"}) + "\n")
    assert {"evaluate", "card"} == finished.jobs().keys()


@pytest.mark.parametrize(
    "values,problem",
    [
        ({"include_path": "nowhere"}, "evaluation.lm_eval.include_path: nowhere: no such folder"),
        ({"include_path": "workflow"}, "evaluation.lm_eval.include_path: workflow: has no task file"),
        ({"include_path": "envs"}, "evaluation.lm_eval.include_path: envs/cpu.yaml: is no YAML .*line 1"),
        ({"batch_size": 0}, "evaluation.lm_eval.batch_size: found 0, expected 1 or more, or auto"),
        ({"batch_size": "many"}, "evaluation.lm_eval.batch_size: found 'many'"),
        ({"limit": 0}, "evaluation.lm_eval.limit: found 0.0, expected a number of rows"),
        ({"num_fewshot": -1}, "evaluation.lm_eval.num_fewshot: found -1, expected 0 or more"),
        ({"task": ["pick"]}, "evaluation.lm_eval.task: unknown key"),
    ],
)
def test_what_could_not_be_asked_is_refused_before_anything_runs(benchmarked, values, problem):
    (benchmarked.path / "envs" / "cpu.yaml").write_text("a: [")
    benchmarked.config["evaluation"]["lm_eval"] |= values
    with pytest.raises(UserError, match=problem) as error:
        benchmarked.plan()
    assert "\n" not in str(error.value)


def test_a_bad_prompt_is_refused_before_anything_runs(benchmarked):
    (benchmarked.path / "prompts.jsonl").write_text("hello\n")
    with pytest.raises(UserError, match=r"prompts.jsonl: row 1: is not JSON"):
        benchmarked.plan()
    benchmarked.config["evaluation"]["prompts"] = "a.jsonl"
    benchmarked.config["evaluation"]["datasets"][0]["name"] = "prompts"
    (benchmarked.path / "a.jsonl").write_text(json.dumps({"prompt": "x"}))
    with pytest.raises(UserError, match=r"evaluation.datasets: the name 'prompts' is that of evaluation.prompts"):
        benchmarked.plan()


def test_without_lm_eval_one_line_says_what_to_install(benchmarked, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "lm_eval" else found(name, *rest)
    )
    with pytest.raises(UserError, match=r"evaluation.lm_eval.tasks: needs lm_eval, .*; pip install lm-eval==0\.4\.13"):
        benchmarked.plan()
    with monkeypatch.context() as installed:
        installed.setattr(importlib.util, "find_spec", found)
        benchmarked.complete()
    assert benchmarked.plan().lm_evaluated, "what is finished needs nothing"
