"""Which layer wins, and how values are typed."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from post_training.config import resolve


def rate(file: dict, command_line: dict | None = None, stage: str = "dpo") -> float:
    file = {"method": "dpo", "sft": {}, **file}
    return resolve(file, command_line).views[stage]["training"]["learning_rate"]


LAYERS = [
    ({"training": {"learning_rate": 1.0}}, {}),
    ({"dpo": {"training": {"learning_rate": 2.0}}}, {}),
    ({}, {"training": {"learning_rate": 3.0}}),
    ({}, {"dpo": {"training": {"learning_rate": 4.0}}}),
]


@settings(deadline=None)  # a busy machine
@given(st.sets(st.integers(0, 3)))
def test_the_last_layer_wins(chosen):
    file, command_line = {}, {}
    for index in sorted(chosen):
        file |= LAYERS[index][0]
        command_line |= LAYERS[index][1]
    assert rate(file, command_line) == (max(chosen) + 1.0 if chosen else 2.0e-5)


def test_a_stage_does_not_see_the_other_stage():
    assert rate({"dpo": {"training": {"learning_rate": 2.0}}}, stage="sft") == 2.0e-5


def test_snakemake_merges_the_command_line_into_the_file_first():
    override = {"training": {"learning_rate": "3"}, "set": "dpo.beta=0.5"}
    view = resolve({"method": "dpo", "sft": {}, **override}, override).views["dpo"]
    assert view["training"]["learning_rate"] == 3.0 and view["dpo"]["beta"] == 0.5


@pytest.mark.parametrize("written,typed", [("5e-7", 5e-7), (5e-7, 5e-7), ("0.5", 0.5), (1, 1.0)])
def test_numbers_from_yaml_and_command_line_are_the_same(written, typed):
    assert rate({}, {"training": {"learning_rate": written}}) == typed


def test_the_string_null_is_null():
    view = resolve({"training": {"max_steps": 3}}, {"training": {"max_steps": "null"}}).views["sft"]
    assert view["training"]["max_steps"] is None


def test_an_index_edits_the_list_where_it_stands():
    file = {
        "method": "dpo",
        "sft": {},
        "data": {"datasets": [{"path": "a"}, {"path": "b"}]},
        "dpo": {"data": {"datasets": [{"path": "p"}]}},
    }
    views = resolve(file, {"set": "data.datasets[0].weight=0.5 data.datasets[1].path=c"}).views
    assert [d["weight"] for d in views["sft"]["data"]["datasets"]] == [0.5, 1.0]
    assert views["sft"]["data"]["datasets"][1]["path"] == "c"
    assert views["dpo"]["data"]["datasets"][0]["weight"] == 1.0
    views = resolve(file, {"set": "sft.data.datasets[1].weight=0"}).views
    assert [d["weight"] for d in views["sft"]["data"]["datasets"]] == [1.0, 0.0]


def test_values_with_spaces_need_a_list():
    view = resolve({}, {"set": ["logging.wandb_project=a b", "training.lr_scheduler_kwargs={x: 1}"]}).views["sft"]
    assert view["logging"]["wandb_project"] == "a b"
    assert view["training"]["lr_scheduler_kwargs"]["x"] == 1


def test_frozen_configuration_makes_the_same_pipeline():
    file = {
        "method": "dpo",
        "training": {"max_steps": 3},
        "data": {"datasets": [{"path": "a"}]},
        "sft": {"training": {"learning_rate": 1e-3}},
        "dpo": {"beta": 0.3, "data": {"datasets": [{"path": "p"}]}},
    }
    pipeline = resolve(file)
    assert resolve(pipeline.frozen("dpo")).views == pipeline.views
    assert resolve(pipeline.frozen("sft")).views["sft"] == {**pipeline.views["sft"], "method": "sft"}


def test_generated_documentation_is_in_step_with_the_schema():
    import json

    from post_training.config import document

    assert (document.CONFIG / "README.md").read_text() == document.readme(), "run `make docs`"
    assert json.loads((document.CONFIG / "schema.json").read_text()) == document.json_schema(), "run `make docs`"
    assert document.TROUBLESHOOTING.read_text() == document.troubleshooting(), "run `make docs`"


def test_a_value_may_refer_to_another():
    file = {
        "run_name": "lr-${training.learning_rate}",
        "training": {"seed": 3, "learning_rate": 1e-3},
        "data": {"seed": "${training.seed}"},
        "method": "dpo",
        "sft": {},
        "dpo": {"training": {"seed": 4}, "max_seq_length": "${training.seed}"},
    }
    views = resolve(file).views
    assert [(view["run_name"], view["data"]["seed"]) for view in views.values()] == [("lr-0.001", 3), ("lr-0.001", 4)]
    assert views["dpo"]["dpo"]["max_seq_length"] == 4
