"""When the reference's log-probabilities are computed again, and which runs share them: asked of the plan."""

import pytest


def reference(project, **command_line) -> str:
    """The reference stage's directory in the plan."""
    (name,) = project.jobs(**command_line)["reference"]
    return name


@pytest.mark.parametrize(
    "changes",
    [
        "dpo.beta=0.3",
        "dpo.loss_type=ipo",
        "dpo.training.learning_rate=1e-3",
        "dpo.training.max_steps=50",
        "dpo.training.num_train_epochs=3 dpo.training.max_steps=null",
        "dpo.training.effective_batch_size=8",
        "dpo.training.per_device_train_batch_size=2",
        "dpo.training.trainer_args.adam_beta2=0.95",
        "dpo.reference_batch_size=4",
        "dpo.loss_type=[sigmoid,sft] dpo.loss_weights=[1,0.2]",
        "accelerate.num_processes=2",
        "slurm.num_nodes=4",
        "deepspeed.config.zero_optimization.stage=3",
        "model.attn_implementation=eager",
        "run_name=another",
    ],
)
def test_shared_by_every_beta_loss_learning_rate_and_machine(project, changes):
    assert reference(project, set=changes) == reference(project)


@pytest.mark.parametrize(
    "changes",
    [
        "sft.training.learning_rate=1e-3",  # other weights
        "dpo.init_from=base",
        "dpo.max_seq_length=64",
        "dpo.model.dtype=bfloat16 dpo.accelerate.mixed_precision=null",
        "dpo.data.datasets[0].weight=0.5",
        "dpo.training.trainer_args.ld_alpha=0.5",
    ],
)
def test_of_its_own_for_other_weights_pairs_lengths_and_formats(project, changes):
    assert reference(project, set=changes) != reference(project)


def test_another_template(project):
    before = reference(project)
    path = project.path / "template.jinja"
    path.write_text(path.read_text() + "{# another text #}")
    assert reference(project) != before


@pytest.mark.parametrize("changes", ["dpo.reference=online", "dpo.loss_type=sft", "method=sft"])
def test_not_computed_where_nothing_reads_it(project, changes):
    arguments = {"method": "sft"} if changes == "method=sft" else {"set": changes}
    assert "reference" not in project.jobs(**arguments)


def test_beta_of_a_finished_pipeline_computes_no_reference(project):
    project.complete()
    assert set(project.jobs(set="dpo.beta=0.3")) == {"preflight_checks", "train", "export", "evaluate", "card"}


def test_micro_batch_is_part_of_the_run_for_losses_that_sort_it(project):
    def run(changes):
        (name,) = [name for name in project.jobs(set=changes)["train"] if name.startswith("dpo")]
        return name

    assert run("dpo.training.per_device_train_batch_size=2") == run("dpo.training.per_device_train_batch_size=4")
    aot = "dpo.loss_type=aot dpo.training.per_device_train_batch_size"
    assert run(f"{aot}=2") != run(f"{aot}=4")
