"""When a preflight runs, and what it precedes: asked of Snakemake."""

import pytest

RULE = "preflight_checks"


def edited(project, section, **values):
    project.config.setdefault(section, {}).update(values)
    project.write()
    return project.jobs()


def test_one_preflight_of_all_stages_precedes_the_gpu_rules(project):
    jobs = project.jobs()
    (name,) = jobs[RULE]
    assert name.startswith("dpo-")
    plan = project.plan()
    inputs = {stage.manifest for stage in plan.preflights["local"].inputs.values()}
    assert inputs == {stage.manifest for stage in (*plan.mixed.values(), plan.trained["sft"].inputs["model"])}


@pytest.mark.parametrize(
    "section,values",
    [
        ("logging", {"logging_steps": 1}),
        ("slurm", {"partition": "gpu"}),
        ("data", {"num_proc": 1}),
        ("training", {"per_device_train_batch_size": 2}),
        ("preflight", {"assumed_mfu": 0.5}),
    ],
)
def test_a_finished_pipeline_needs_no_preflight(project, section, values):
    project.complete()
    assert edited(project, section, **values) == {}


def test_the_target_makes_it_for_a_finished_pipeline(project):
    project.complete()
    assert project.jobs("preflight") == {}
    project.config["training"]["per_device_train_batch_size"] = 2
    project.write()
    assert set(project.jobs("preflight")) == {RULE}


def test_the_target_trains_nothing(project):
    rules = set(project.jobs("preflight"))
    assert rules == {"download", "build_model", "transform", "tokenize", "mix", RULE}


def unfinished(project):
    """A pipeline whose DPO is yet to be trained, and whose preflight has passed."""
    project.complete()
    plan = project.plan()
    for stage in (plan.trained["dpo"], plan.exported["dpo"], plan.evaluated["dpo"]):
        (plan.base / stage.manifest).unlink()
    assert set(project.jobs()) == {"train", "export", "evaluate"}


@pytest.mark.parametrize(
    "section,values,again",
    [
        ("training", {"per_device_train_batch_size": 2}, True),
        ("accelerate", {"num_processes": 2}, True),
        ("checkpointing", {"save_steps": 7}, True),
        ("model", {"attn_implementation": "eager"}, True),
        ("preflight", {"only_warn": ["resources.disk"]}, True),
        ("logging", {"logging_steps": 1}, False),
        ("slurm", {"partition": "gpu"}, False),  # the run is on this machine
        ("data", {"num_proc": 1}, False),
        ("evaluation", {"batch_size": 3}, False),
    ],
)
def test_what_is_checked_is_checked_again_and_trains_nothing_else(project, section, values, again):
    unfinished(project)
    jobs = edited(project, section, **values)
    assert set(jobs) == {"train", "export", "evaluate"} | ({RULE} if again else set())
    assert len(jobs["train"]) == 1


def test_another_run_name_shares_it(project):
    unfinished(project)
    assert RULE not in project.jobs(run_name="another")


def test_runs_on_the_same_data_share_it(project):
    project.config |= {"run_name": "demo", "sweep": {"dpo.beta": [0.05, 0.1], "dpo.training.seed": [0, 1]}}
    project.write()
    jobs = project.jobs()
    assert (len(jobs[RULE]), len(jobs["train"])) == (1, 5)
    plan = project.graph().first
    assert [told["stage"] for told in plan.preflights["local"].runtime["trainings"]] == ["sft", *["dpo"] * 4]
    project.config["runs"] = {"all": {}, "half": {"dpo.data.datasets[0].weight": 0.5}}
    project.write()
    assert len(project.jobs()[RULE]) == 2


def test_under_slurm_it_is_another_one(project):
    plan = project.plan()
    assert plan.preflights["local"].name != plan.preflights["slurm"].name
    before = plan.preflights["slurm"].name
    project.config["slurm"] = {"num_nodes": 2}
    project.write()
    after = project.plan()
    assert after.preflights["local"].name == plan.preflights["local"].name
    assert after.preflights["slurm"].name != before
