"""`runs` and `sweep`: which pipelines they make, what they are called, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from post_training.config import resolve, resolve_runs
from post_training.config.runs import expand
from post_training.core.errors import ConfigError

FILE = {
    "method": "dpo",
    "training": {"max_steps": 3},
    "data": {"datasets": [{"path": "a", "weight": 1}, {"path": "b"}]},
    "sft": {},
    "dpo": {"data": {"datasets": [{"path": "p"}]}},
}


def names(**keys) -> list[str]:
    return [pipeline.run.name for pipeline in resolve_runs({**FILE, **keys})]


def error_of(command_line: dict | None = None, **keys) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve_runs({**FILE, **keys}, command_line)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix("config error: ")


def test_without_runs_there_is_one():
    (pipeline,) = resolve_runs(FILE)
    assert (pipeline.run.name, pipeline.views) == ("", resolve(FILE).views)
    assert names(runs=None, sweep={}) == [""]


def test_a_grid_has_every_combination():
    pipelines = resolve_runs({**FILE, "sweep": {"dpo.beta": [0.05, 0.1], "dpo.training.seed": [0, 1]}})
    assert [p.run.name for p in pipelines] == ["beta0.05-seed0", "beta0.05-seed1", "beta0.1-seed0", "beta0.1-seed1"]
    found = [(p.views["dpo"]["dpo"]["beta"], p.views["dpo"]["training"]["seed"]) for p in pipelines]
    assert found == [(0.05, 0), (0.05, 1), (0.1, 0), (0.1, 1)]
    assert {p.views["sft"]["training"]["seed"] for p in pipelines} == {42}
    assert pipelines[0].run.values == {"dpo.beta": 0.05, "dpo.training.seed": 0}


def test_runs_take_dotted_keys_and_nested_mappings():
    runs = {
        "plain": {},
        "dotted": {"dpo.beta": 0.3, "dpo.training.max_steps": 5},
        "nested": {"dpo": {"beta": 0.3, "training": {"max_steps": 5}}},
        "mixed": {"dpo": {"training.max_steps": 5}, "dpo.beta": 0.3},
        "lora": {"model": {"lora": {}}},
        "sft": {"method": "sft"},
    }
    plain, *alike, lora, sft = resolve_runs({**FILE, "runs": runs})
    assert plain.views == resolve(FILE).views
    for pipeline in alike:
        view = pipeline.last
        assert (view["dpo"]["beta"], view["training"]["max_steps"], view["training"]["seed"]) == (0.3, 5, 42)
    assert lora.last["model"]["lora"]["r"] == 16
    assert sft.stages == ["sft"]


def test_runs_and_sweep_multiply():
    assert names(runs={"a": {}, "b": {"dpo.loss_type": "ipo"}}, sweep={"dpo.beta": [1, 2]}) == [
        "a-beta1", "a-beta2", "b-beta1", "b-beta2",
    ]  # fmt: skip


def test_an_index_changes_the_list_of_that_run_alone():
    one, two = resolve_runs({**FILE, "sweep": {"data.datasets[0].weight": [0.5, 2]}})
    assert (one.run.name, two.run.name) == ("weight0.5", "weight2")
    weights = [[d["weight"] for d in p.views["sft"]["data"]["datasets"]] for p in (one, two)]
    assert weights == [[0.5, 1.0], [2.0, 1.0]]
    (named,) = resolve_runs({**FILE, "runs": {"t": {"data.datasets[1].transform": {"name": "alpaca", "output": "r"}}}})
    assert named.views["sft"]["data"]["datasets"][1]["transform"] == {"name": "alpaca", "output": "r"}


@pytest.mark.parametrize(
    "sweep,expected",
    [
        (
            {"training.learning_rate": ["5e-7", 1e-5, 0.1]},
            ["learning_rate5e-7", "learning_rate1e-5", "learning_rate0.1"],
        ),
        ({"model.name_or_path": ["org/a", "org/b.c"]}, ["name_or_path-org--a", "name_or_path-org--b.c"]),
        ({"sft.packing": [True, False]}, ["packing-true", "packing-false"]),
        ({"model.revision": [None, "v1"]}, ["revision-null", "revision-v1"]),
        ({"sft.training.seed": [1], "dpo.training.seed": [2]}, ["sft.training.seed1-dpo.training.seed2"]),
        ({"data.seed": [1], "training.seed": [2]}, ["data.seed1-training.seed2"]),
        ({"dpo": {"training": {"seed": [3]}}}, ["seed3"]),
        ({"data.datasets[0].weight": [1], "data.datasets[1].weight": [2]}, ["datasets0.weight1-datasets1.weight2"]),
        ({"dpo.data.datasets": [[{"path": "x"}], [{"path": "y"}]]}, ["datasets-1", "datasets-2"]),
    ],
)
def test_names_of_a_grid(sweep, expected):
    assert names(sweep=sweep) == expected


@given(st.lists(st.floats(1e-12, 1e12) | st.integers(-(10**9), 10**9), min_size=1, max_size=8, unique=True))
def test_a_number_is_read_back_from_the_name(values):
    read = [float(run.name.removeprefix("beta")) for run in expand(None, {"dpo.beta": values})]
    assert read == [float(value) for value in values]


@pytest.mark.parametrize(
    "keys,expected",
    [
        ({"sweep": {"dpo.bta": [1]}}, "sweep.dpo.bta: unknown key. Did you mean 'beta'?"),
        ({"sweep": {"dpoo.beta": [1]}}, "sweep.dpoo.beta: unknown key. Did you mean 'dpo'?"),
        ({"sweep": {"training.max_step": [1]}}, "sweep.training.max_step: unknown key. Did you mean 'max_steps'?"),
        ({"sweep": {"dpo.beta": ["much"]}}, "sweep.dpo.beta: found 'much', expected float"),
        ({"sweep": {"dpo.beta": []}}, "sweep.dpo.beta: is an empty list"),
        ({"sweep": {"dpo.beta": 0.1}}, "sweep.dpo.beta: found 0.1, expected a list of values, such as [0.1]"),
        ({"sweep": {"dpo.beta": [0.1, 0.1]}}, "sweep.dpo.beta: 0.1 is there twice"),
        ({"sweep": {"dpo.beta": [0.1, "0.10"]}}, "sweep.dpo.beta: '0.10' is there twice"),
        ({"sweep": {"data.datasets[7].weight": [1]}}, "sweep.data.datasets[7].weight: the list data.datasets has 2 entries"),
        ({"sweep": {"paths.output_base": ["a", "b"]}}, "sweep.paths.output_base: is the same for all runs"),
        ({"sweep": [1]}, "sweep: found [1], expected a mapping"),
        ({"runs": {"a": {"dpo.bta": 1}}}, "runs.a.dpo.bta: unknown key. Did you mean 'beta'?"),
        ({"runs": {"a": {"dpo": {"init_from": "sff"}}}}, "runs.a.dpo.init_from: found 'sff', expected base or a stage"),
        ({"runs": {"a": {"run_name": "x"}}}, "runs.a.run_name: is the same for all runs"),
        ({"runs": {"../a": {}}}, "runs.../a: the name is used in paths"),
        ({"runs": {"a": 3}}, "runs.a: found 3, expected a mapping"),
        ({"runs": ["a"]}, "runs: found ['a'], expected a mapping"),
        ({"runs": {"a": {"dpo.beta": 1}}, "sweep": {"dpo.beta": [1]}}, "runs.a.dpo.beta: is in sweep too"),
        ({"runs": {"low": {}, "high": {}}, "run": "lwo"}, "run: found 'lwo'. Did you mean 'low'?"),
        ({"runs": {"a": {}, "a-revision-x": {}}, "sweep": {"model": {"revision": ["y", "x-revision-y"]}}}, "runs.a-revision-x: its run a-revision-x-revision-y"),
        ({"runs": {"a": {}}, "training": {"max_step": 3}}, "training.max_step: unknown key. Did you mean 'max_steps'?"),
        ({"run": "a"}, "run: found 'a'. This configuration has one run only"),
    ],
)  # fmt: skip
def test_mistakes_name_the_key_that_was_written(keys, expected):
    assert error_of(**keys).startswith(expected)


def test_the_command_line_wins_over_runs_and_may_not_undo_a_sweep():
    (run,) = resolve_runs({**FILE, "runs": {"a": {"dpo.beta": 0.3}}}, {"set": "dpo.beta=0.7"})
    assert run.last["dpo"]["beta"] == 0.7
    swept = {"dpo.beta": [1, 2]}
    assert error_of({"set": "dpo.beta=3"}, sweep=swept).startswith("sweep.dpo.beta: is given on the command line too")
    assert [p.run.name for p in resolve_runs({**FILE, "sweep": swept}, {"set": "sweep.dpo.beta=[5,6]"})] == [
        "beta5", "beta6",
    ]  # fmt: skip
    assert [p.run.name for p in resolve_runs({**FILE, "sweep": swept}, {"sweep": "null"})] == [""]


def test_one_run_is_chosen_by_its_name():
    file = {**FILE, "sweep": {"dpo.beta": [0.1, 0.2, 0.3]}}
    assert resolve(file, {"set": "run=beta0.2"}).last["dpo"]["beta"] == 0.2
    assert [p.run.name for p in resolve_runs(file, {"run": ["beta0.3", "beta0.1"]})] == ["beta0.1", "beta0.3"]
    with pytest.raises(
        ConfigError, match=r"run: this is about one run of 3; name it. On offer: beta0.1, beta0.2, beta0.3"
    ):
        resolve(file)


def test_a_job_is_told_of_its_own_run_only():
    pipeline = resolve_runs({**FILE, "sweep": {"dpo.beta": [0.1, 0.2]}})[1]
    again = resolve(pipeline.frozen("dpo"))
    assert again.last["dpo"]["beta"] == 0.2
    assert not {"runs", "sweep", "run"} & set(pipeline.frozen("dpo"))
