"""What a change reruns, and what it does not: asked of Snakemake on a finished pipeline."""

import copy
import itertools
import os
import shutil
import subprocess
import time

import pytest
from test_light import SNAKEMAKE

from post_training.core.errors import ConfigError

FOLLOWS_SFT = {"reference": ["dpo"], "train": ["dpo", "sft"], "export": ["dpo", "sft"], "evaluate": ["dpo", "sft"]}


def kinds(jobs: dict[str, list[str]]) -> dict[str, list[str]]:
    """Wildcards without fingerprints. A preflight comes before any training; test_preflight_stage.py says when.

    A card follows the evaluations of its model.
    """
    made = {rule: names for rule, names in jobs.items() if rule != "preflight_checks"}
    found = {rule: sorted(name.partition("-")[0] for name in names) for rule, names in made.items()}
    measured = {*found.get("evaluate", []), *found.get("lm_eval", [])}
    assert found.pop("card", []) == sorted(measured - {"base"})
    return found


@pytest.fixture
def finished(project):
    project.complete()
    assert project.jobs() == {}
    return project


def changed(project, edit) -> dict[str, list[str]]:
    """Jobs after an edit of the config; afterwards, changing back reruns nothing."""
    before = copy.deepcopy(project.config)
    edit(project.config)
    project.write()
    jobs = project.jobs()
    project.config = before
    project.write()
    assert project.jobs() == {}, "changing back"
    return kinds(jobs)


def test_beta_reruns_dpo_and_what_follows(finished):
    def edit(config):
        config["dpo"]["beta"] = 0.3

    assert changed(finished, edit) == {"train": ["dpo"], "export": ["dpo"], "evaluate": ["dpo"]}


def test_weight_reruns_the_mix_and_what_follows(finished):
    def edit(config):
        config["data"]["datasets"][1]["weight"] = 0.25

    assert changed(finished, edit) == {"mix": ["sft"], **FOLLOWS_SFT}


@pytest.mark.parametrize(
    "section,values",
    [
        ("data", {"eval_fraction": 0.1}),
        ("sft", {"overlong": "split"}),
        ("sft", {"max_seq_length": 64}),
    ],
)
def test_what_chooses_rows_reruns_the_mix_and_no_tokens(finished, section, values):
    def edit(config):
        config[section].update(values)

    expected = {"mix": ["sft"], **FOLLOWS_SFT}
    if section == "data":  # what is held out is evaluated, the starting model too
        expected |= {"mix": ["dpo", "sft"], "evaluate": ["base", "dpo", "sft"]}
    assert changed(finished, edit) == expected


def test_an_amount_in_rows_or_tokens_reruns_the_mix(finished):
    for amount in ({"rows": 3}, {"tokens": 100}):

        def edit(config, amount=amount):
            config["data"]["datasets"][0] |= amount

        assert changed(finished, edit)["mix"] == ["sft"]


def test_an_eval_split_is_prepared_like_its_dataset(finished):
    def edit(config):
        config["data"]["datasets"][0]["eval_split"] = "h.jsonl"

    jobs = changed(finished, edit)
    assert (jobs["tokenize"], jobs["mix"]) == (["a"], ["sft"])


def test_length_reruns_training_alone(finished):
    for training in ({"max_steps": 20}, {"effective_batch_size": 8}, {"max_steps": None, "num_train_epochs": 3}):

        def edit(config, training=training):
            config["dpo"]["training"] = training

        assert changed(finished, edit) == {"train": ["dpo"], "export": ["dpo"], "evaluate": ["dpo"]}


def test_another_transform_reruns_that_dataset_and_what_follows(finished):
    def edit(config):
        config["data"]["datasets"][1]["transform"] = "first"

    assert changed(finished, edit) == {"transform": ["b"], "tokenize": ["b"], "mix": ["sft"], **FOLLOWS_SFT}


def test_arguments_of_a_transform_count(finished):
    def edit(config):
        config["data"]["datasets"][1]["transform"] = {"name": "second", "column": "x"}

    assert changed(finished, edit)["transform"] == ["b"]


def test_source_of_a_transform_reruns_its_datasets_only(finished):
    path = finished.path / "transforms.py"
    text = path.read_text()
    path.write_text(
        text.replace(
            'column="messages"):\n    return {"messages": row["messages"]}', 'column="messages"):\n    return row'
        )
    )
    assert kinds(finished.jobs()) == {"transform": ["b"], "tokenize": ["b"], "mix": ["sft"], **FOLLOWS_SFT}
    path.write_text("# a comment\n" + text)
    assert finished.jobs() == {}


def test_template_text_reruns_tokenize_and_what_follows(finished):
    path = finished.path / "template.jinja"
    path.write_text(path.read_text() + "{# another text #}")
    assert kinds(finished.jobs()) == {
        "tokenize": ["a", "b", "p"],
        "mix": ["dpo", "sft"],
        **FOLLOWS_SFT,
        "evaluate": ["base", "dpo", "sft"],
    }


def test_learning_rate_reruns_training_and_what_follows(finished):
    def edit(config):
        config["training"]["learning_rate"] = 1e-3

    assert changed(finished, edit) == FOLLOWS_SFT


def test_learning_rate_of_one_stage(finished):
    def edit(config):
        config["dpo"]["training"] = {"learning_rate": 1e-3}

    assert changed(finished, edit) == {"train": ["dpo"], "export": ["dpo"], "evaluate": ["dpo"]}


def test_content_of_a_source_reruns_from_download(finished):
    (finished.path / "b.jsonl").write_text('{"messages": []}\n')
    jobs = kinds(finished.jobs())
    assert (jobs["download"], jobs["transform"], jobs["tokenize"]) == (["b"], ["b"], ["b"])


def test_size_of_a_scratch_model_leaves_the_tokens(finished):
    def edit(config):
        config["model"]["from_scratch"]["config"]["hidden_size"] = 32

    assert changed(finished, edit) == {
        "build_model": ["scratch"],
        **FOLLOWS_SFT,
        "evaluate": ["base", "dpo", "sft"],
    }


@pytest.mark.parametrize(
    "section,values",
    [
        ("logging", {"logging_steps": 1, "report_to": ["none"], "wandb_project": "x"}),
        ("slurm", {"partition": "gpu", "num_nodes": 4, "wall_time": "01:00:00", "env": {"NCCL_DEBUG": "INFO"}}),
        ("accelerate", {"num_processes": 2}),
        ("checkpointing", {"save_steps": 7, "inference_checkpoint_steps": 3}),
        ("data", {"num_proc": 1, "max_reject_fraction": 0.5}),
        ("training", {"per_device_train_batch_size": 2, "gradient_checkpointing": False, "deterministic": True}),
        ("model", {"attn_implementation": "eager"}),
        ("evaluation", {"batch_size": 3}),
    ],
)
def test_where_and_how_fast_is_never_stale(finished, section, values):
    def edit(config):
        config.setdefault(section, {}).update(values)

    assert changed(finished, edit) == {}


def test_a_kernel_of_the_hub_is_fetched_first_and_is_an_input_of_training(finished):
    def edit(config):
        config["model"]["attn_implementation"] = "org/attention@v3:attend"

    jobs = changed(finished, edit)
    assert jobs["download_kernel"] == ["org"] and jobs["train"] == ["dpo", "sft"] and jobs["reference"] == ["dpo"]
    finished.config["model"]["attn_implementation"] = "org/attention"
    own = finished.plan()
    for stage in (*own.trained.values(), *own.probes.values(), own.trained["dpo"].inputs["reference"]):
        assert "download_kernel" in {one.kind for one in stage.inputs.values()}
    assert {one.kind for one in own.preflights["slurm"].inputs.values()} >= {"download_kernel"}
    # Which builds are fetched for a container does not decide what is trained.
    finished.config["slurm"] = {"container": {"image": "i.sif"}}
    inside = finished.plan()
    assert inside.trained["dpo"].directory == own.trained["dpo"].directory
    assert len({next(iter(plan.stages["download_kernel"])) for plan in (own, inside)}) == 2


@pytest.mark.parametrize("name", ["flash_attention2", "org/attention/main", "org/attention@v1@v2", "kernels"])
def test_an_attention_that_nothing_has_is_one_line(project, name):
    project.config["model"]["attn_implementation"] = name
    with pytest.raises(ConfigError, match=f"model.attn_implementation: found '{name}'.*flash_attention_2"):
        project.plan()


def test_run_name_shares_every_stage(finished):
    assert finished.jobs(run_name="another") == {}


def test_comments_and_key_order_do_not_count(finished):
    path = finished.path / "config" / "config.yaml"
    sections = path.read_text().split("\n")
    tops = [i for i, line in enumerate(sections) if line and not line.startswith((" ", "-"))] + [len(sections)]
    blocks = ["\n".join(sections[a:b]) for a, b in itertools.pairwise(tops)]
    path.write_text("# a comment\n" + "\n".join(reversed(blocks)))
    assert finished.jobs() == {}


def test_spelling_of_a_number_does_not_count(finished):
    assert finished.jobs(set="training.learning_rate=2e-5 training.max_steps=10") == {}
    assert finished.jobs(training={"learning_rate": "0.00002", "max_steps": "10"}) == {}


def test_order_of_datasets_does_not_count(finished):
    def edit(config):
        config["data"]["datasets"].reverse()

    assert changed(finished, edit) == {}


def test_lost_metadata_and_touched_files(finished):
    shutil.rmtree(finished.path / ".snakemake", ignore_errors=True)
    for offset, path in enumerate(sorted(finished.path.rglob("*"))):
        if path.is_file():
            os.utime(path, (time.time() + offset, time.time() + offset))
    assert finished.jobs() == {}


def test_method_sft_plans_no_dpo(project):
    jobs = kinds(project.jobs(method="sft"))
    assert jobs["train"] == ["sft"]
    assert jobs["transform"] == ["a", "b", "held"]


def test_dpo_shares_everything_with_sft(project):
    sft, dpo = project.jobs(method="sft"), project.jobs()
    assert len(sft.pop("preflight_checks")) == 1  # one a run, of all its stages
    for rule, names in sft.items():
        assert set(names) <= set(dpo[rule]), rule


def test_dpo_from_the_base_model(project):
    jobs = kinds(project.jobs(set="dpo.init_from=base"))
    assert jobs["train"] == ["dpo"]
    assert jobs["transform"] == ["held", "p"]


def test_a_file_with_one_method_is_one_stage(project):
    del project.config["sft"]
    project.write()
    assert kinds(project.jobs())["train"] == ["dpo"]


def test_targets(project):
    assert set(project.jobs("data")) == {"download", "build_model", "transform", "tokenize", "mix"}
    assert "report_page" in project.jobs("report")


def test_workflow_snakefile_plans_the_same(project):
    assert project.jobs(snakefile="workflow/Snakefile") == project.jobs()


def test_override_existing_trains_a_debug_run_again(finished):
    finished.config["debug"] = {"enabled": True}
    finished.write()
    finished.complete()
    assert finished.jobs() == {}
    finished.config["debug"]["override_existing"] = True
    finished.write()
    assert kinds(finished.jobs()) == {**FOLLOWS_SFT}


def start(project, *config: str) -> None:
    """A real call, with nothing to do."""
    done = subprocess.run([*SNAKEMAKE, "-c1", "--config", *config], capture_output=True, text=True, cwd=project.path)
    assert done.returncode == 0 and "Nothing to be done" in done.stdout + done.stderr, done.stderr[-2000:]


def test_links_lead_to_the_configured_run(finished):
    start(finished, "run_name=mine")
    link = finished.path / "outputs" / "mine"
    first = os.readlink(link)
    assert first.startswith("dpo-") and os.readlink(f"{link}-sft").startswith("sft-")
    finished.config["dpo"]["beta"] = 0.5
    finished.complete()
    finished.config["dpo"]["beta"] = 0.1
    start(finished, "run_name=mine", "set=dpo.beta=0.5")
    assert os.readlink(link) != first
    start(finished, "run_name=mine")
    assert os.readlink(link) == first


def test_adapters_rerun_their_stage_and_what_follows(finished):
    def edit(config):
        config["dpo"]["model"] = {"lora": {"r": 4}}

    # The stored reference is of the model that DPO starts from, which adapters do not change.
    assert changed(finished, edit) == {"train": ["dpo"], "export": ["dpo"], "evaluate": ["dpo"]}

    def quantised(config):
        edit(config)
        config["dpo"]["model"]["quantization"] = {}

    # The reference is then of the rounded weights.
    assert changed(finished, quantised) == {name: ["dpo"] for name in ("reference", "train", "export", "evaluate")}

    def everywhere(config):
        config["model"]["lora"] = {}

    assert changed(finished, everywhere) == FOLLOWS_SFT


@pytest.fixture
def chain(project):
    """SFT, SFT again under another name, DPO, KTO: finished."""
    project.config["maths"] = {"method": "sft", "init_from": "sft", "data": {"datasets": [{"path": "b.jsonl"}]}}
    project.config["dpo"]["init_from"] = "maths"
    project.config["kto"] = {
        "init_from": "dpo",
        "training": {"per_device_train_batch_size": 2},
        "data": {"datasets": [{"name": "p", "path": "p.jsonl", "transform": "unpaired_preference"}]},
    }
    project.config |= {"method": "kto", "run_name": "chain"}
    project.write()
    project.complete()
    assert project.jobs() == {}
    return project


def test_a_chain_plans_each_stage_on_the_one_before(chain):
    plan = chain.plan()
    assert list(plan.trained) == ["sft", "maths", "dpo", "kto"]
    for before, name in itertools.pairwise(plan.trained):
        assert plan.trained[name].inputs["model"] is plan.exported[before]
    assert plan.trained["maths"].directory != plan.trained["sft"].directory
    assert set(plan.links()) == {"chain", "chain-sft", "chain-maths", "chain-dpo", "chain-kto"}
    assert plan.view_of(plan.exported["maths"])["stage"] == "maths"
    assert plan.view_of(plan.trained["dpo"].inputs["reference"])["stage"] == "dpo"


def test_a_change_reruns_its_stage_and_those_after_it(chain):
    def edit(config):
        config["maths"]["training"] = {"learning_rate": 1e-4}

    after = {rule: ["dpo", "kto", "sft"] for rule in ("train", "export", "evaluate")}
    assert changed(chain, edit) == {"reference": ["dpo"], **after}


def test_what_a_stage_is_called_decides_nothing(chain):
    chain.config["sums"] = chain.config.pop("maths")
    chain.config["dpo"]["init_from"] = "sums"
    chain.write()
    # The page with all results has the name on it, and the summary.
    assert set(chain.jobs()) <= {"report"}


def test_a_method_blames_the_stage_by_its_name(chain):
    from post_training.core.errors import ConfigError

    chain.config["maths"]["max_seq_length"] = 1
    with pytest.raises(ConfigError, match=r"maths\.max_seq_length: found 1"):
        chain.plan()
    chain.config["maths"] = {"method": "dpo", "beta": 0.0, "init_from": "sft"}
    with pytest.raises(ConfigError, match=r"maths\.beta: found 0\.0"):
        chain.plan()
