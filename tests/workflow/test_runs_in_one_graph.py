"""Runs of one configuration in one graph: what they share, what is planned, what is said, and how fast."""

import time

import pytest

from post_training.config import resolve_runs
from post_training.core.errors import ConfigError, UserError
from post_training.plan import make_graph

SWEEP = {"dpo.beta": [0.05, 0.1, 0.3], "dpo.training.seed": [0, 1]}


def count(jobs: dict[str, list[str]]) -> dict[str, int]:
    return {rule: len(names) for rule, names in jobs.items()}


@pytest.fixture
def swept(project):
    project.config |= {"run_name": "demo", "sweep": SWEEP}
    project.write()
    return project


def test_a_sweep_runs_what_is_common_once(swept, capfd):
    graph = swept.graph()
    assert len(graph.plans) == 6
    jobs = count(swept.jobs("all", "report"))
    assert {rule: jobs[rule] for rule in ("build_model", "transform", "tokenize", "mix", "reference")} == {
        "build_model": 1, "transform": 4, "tokenize": 3, "mix": 2, "reference": 1,
    }  # fmt: skip
    assert (jobs["train"], jobs["export"], jobs["evaluate"]) == (1 + 6, 1 + 6, 2 + 6)
    assert (jobs["preflight_checks"], jobs["report_page"], jobs["compare_runs"]) == (1, 6, 1)
    assert len([name for name in graph.stages["train"] if name.startswith("sft-")]) == 1
    assert graph.describe().startswith("6 runs: 37 stages, 19 of them shared (")


def test_nothing_is_left_when_all_is_there(swept):
    swept.complete()
    assert swept.jobs("all", "report") == {}
    assert swept.graph().describe().endswith("; 0 are yet to be made")
    swept.config["sweep"] = SWEEP | {"dpo.beta": [0.05, 0.1, 0.3, 0.5]}
    swept.write()
    assert count(swept.jobs("all")) == {"preflight_checks": 1, "train": 2, "export": 2, "evaluate": 2, "card": 2}


def test_many_names_are_not_listed_in_the_rules(swept, monkeypatch):
    listed = swept.jobs("all", "report")
    monkeypatch.setattr("post_training.workflow.lookup._LISTED", 2)
    assert swept.jobs("all", "report") == listed
    with pytest.raises(SystemExit, match="dpo-x-0badcafe: no stage of this configuration has this name"):
        swept.jobs("outputs/dpo-x-0badcafe/manifest.json")


def test_one_run_of_a_sweep_is_the_same_stages(swept):
    swept.complete()
    assert swept.jobs(run="beta0.1-seed1") == {}
    assert list(make_graph(resolve_runs(swept.config, {"run": "beta0.1-seed1"})).plans) == ["demo-beta0.1-seed1"]


def test_a_link_a_run_and_stage(swept):
    links = swept.graph().links()
    assert {"demo-beta0.05-seed0", "demo-beta0.05-seed0-sft", "demo-beta0.3-seed1-dpo"} <= set(links)
    assert links["demo-beta0.05-seed0-sft"] == links["demo-beta0.3-seed1-sft"]
    assert links["demo-comparison"] == swept.graph().comparison.directory
    assert len({links[f"demo-beta{b}-seed{s}"] for b in (0.05, 0.1, 0.3) for s in (0, 1)}) == 6


def test_targets_cover_all_runs(project):
    project.config["runs"] = {"half": {"data.datasets[0].weight": 0.5}, "whole": {}}
    project.write()
    assert count(project.jobs("data"))["mix"] == 3
    jobs = count(project.jobs("all"))
    assert (jobs["train"], jobs["reference"]) == (4, 2)


def test_names_without_a_run_name_have_room(project):
    project.config["data"]["datasets"][0]["name"] = "a" * 70
    project.config["runs"] = {"x" * 40: {}, "y" * 40: {"dpo.beta": 0.3}}
    for name in project.graph().links():
        assert len(name) <= 100
    project.config["run_name"] = "z" * 60
    with pytest.raises(ConfigError, match=r"run_name: z+-x+-sft is longer than 100 characters; give a shorter one"):
        project.graph()


@pytest.mark.parametrize(
    "keys,expected",
    [
        ({"runs": {"a": {}, "b": {}}}, "runs.b: the runs a and b are the same, stage by stage"),
        ({"runs": {"a": {}, "b": {"dpo.beta": 0.1}}}, "runs.b.dpo.beta: the runs a and b are the same"),
        ({"sweep": {"logging.logging_steps": [1, 2]}}, "sweep.logging.logging_steps: the runs logging_steps1 and"),
        ({"sweep": {"dpo.beta": [0.1, -1]}}, "sweep.dpo.beta: found -1"),
        ({"runs": {"a": {}, "b": {"data.chat_template": "chatm"}}}, "runs.b.data.chat_template: no template named"),
        ({"runs": {"a": {}, "a-sft": {"dpo.beta": 0.3}}}, "runs: a-sft and a both want the link x-a-sft"),
        ({"runs": {"a": {}, "comparison": {"dpo.beta": 0.3}}}, "runs: the link x-comparison is the page of all runs"),
    ],
)
def test_mistakes_that_planning_finds(project, keys, expected):
    project.config |= keys | {"run_name": "x"}
    with pytest.raises(UserError) as caught:
        project.graph()
    assert str(caught.value).startswith(f"config error: {expected}"), caught.value


def test_a_thousand_runs_are_planned_in_seconds(swept):
    """Of one core; the requirement is 10 s on two, and a bound here leaves room for a busy machine."""
    swept.config["sweep"] = {"dpo.beta": [n / 100 for n in range(1, 101)], "dpo.training.seed": list(range(10))}
    started = time.process_time()
    graph = make_graph(resolve_runs(swept.config))
    seconds = time.process_time() - started
    assert len(graph.plans) == 1000 and len(graph.stages["train"]) == 1001
    assert seconds < 10, seconds
