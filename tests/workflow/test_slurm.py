"""Rules on Slurm: what goes into `job.sh` is what the rule's own line calls, and resources follow the configuration."""

import contextlib
import io
import logging
import shlex

import pytest
from snakemake.api import SnakemakeApi
from snakemake.settings.types import ConfigSettings, DAGSettings, OutputSettings, ResourceSettings
from snakemake_interface_logger_plugins.common import LogEvent

from post_training.core.stages import STAGES
from post_training.plan import inference
from post_training.slurm.job import stage_command


class Announced(logging.Handler):
    """Every job of a dry run."""

    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        if getattr(record, "event", None) == LogEvent.JOB_INFO and record.wildcards:
            self.records.append(record)


def announced(project, executor: str) -> list:
    handler = Announced()
    logging.getLogger().addHandler(handler)
    try:
        with contextlib.redirect_stderr(io.StringIO()) as told, SnakemakeApi(OutputSettings(dryrun=True)) as api:
            workflow = api.workflow(
                resource_settings=ResourceSettings(cores=2, nodes=50),
                config_settings=ConfigSettings(),
                snakefile=project.path / "Snakefile",
                workdir=project.path,
            )
            workflow.dag(DAGSettings()).execute_workflow(executor=executor, pseudo_executor="dryrun")
    finally:
        logging.getLogger().removeHandler(handler)
    handler.told = told.getvalue()
    return handler


def test_job_sh_calls_what_the_rule_calls(project):
    records = announced(project, "local").records
    assert {"transform", "tokenize", "mix", "preflight_checks", "train", "reference", "export", "evaluate"} <= {
        r.rule_name for r in records
    }
    for record in records:
        words = shlex.split(record.shellcmd.partition(" >>")[0])
        directory = "/".join(record.output[0].split("/")[1:-1])
        assert words == ["python", *stage_command(f"outputs/tasks/{directory}.json")[1:]]


@pytest.mark.parametrize(("devices", "evaluate"), [("", 1), ("0", 2)])
def test_cores_are_shared_so_that_a_gpu_is_not(project, monkeypatch, devices, evaluate):
    """On this machine of two cores: jobs beside training share them, but not its GPUs."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
    project.config["data"]["num_proc"] = 1
    project.config["dpo"]["data"]["num_proc"] = None
    project.write()
    records = announced(project, "local").records
    found = {record.rule_name: set() for record in records}
    for record in records:
        found[record.rule_name].add(record.threads)
    assert found["train"] == found["reference"] == {2} and found["mix"] == {1} and found["download"] == {1}
    assert found["evaluate"] == found["export"] == {evaluate}
    assert found["tokenize"] == {1, 2}


def test_resources_follow_the_configuration_and_local_runs_have_none(project):
    pytest.importorskip("snakemake_executor_plugin_slurm")
    project.config["slurm"] = {
        "partition": "gpu",
        "num_nodes": 2,
        "gpus_per_node": 4,
        "wall_time": "12:00:00",
        "mem": "64G",
    }
    project.config["slurm"]["cpu"] = {"partition": "cpu", "cpus_per_task": 3}
    project.config["dpo"]["slurm"] = {"num_nodes": 3}
    project.config["training"]["effective_batch_size"] = 24
    project.write()
    local = {record.rule_name: dict(record.resources.items()) for record in announced(project, "local").records}
    assert not {"slurm_partition", "nodes", "gres", "runtime"} & set(local["train"])
    handler = announced(project, "slurm")
    found = {(r.rule_name, next(iter(r.wildcards.values())).split("-")[0]): r.resources for r in handler.records}
    train = found["train", "sft"]
    assert (train.slurm_partition, train.nodes, train.gres, train.runtime, train.mem_mb) == (
        "gpu",
        2,
        "gpu:4",
        720,
        65536,
    )
    assert found["train", "dpo"].nodes == 3
    mix = next(resources for (rule, _), resources in found.items() if rule == "mix")
    assert (mix.slurm_partition, mix.cpus_per_task, mix.get("gres")) == ("cpu", 3, None)
    for kind in {name for name, kind in STAGES.items() if kind.on_gpu} - {
        "preflight_probe",
        "lm_eval",
        "generate",
        "score_model",
    }:  # which are optional
        assert f"{kind} " in handler.told and "sbatch --job-name=" in handler.told
    assert found["export", "sft"].gres == "gpu:1" and found["export", "sft"].mem_mb == 16384
    assert ": 2 nodes x 4 GPUs, 12:00:00\n    sbatch --job-name=sft-" in handler.told
    assert ": 3 nodes x 4 GPUs, 12:00:00\n    sbatch --job-name=dpo-" in handler.told


def test_a_job_that_asks_a_server_elsewhere_has_no_gpu(project):
    pytest.importorskip("snakemake_executor_plugin_slurm")
    project.config["slurm"] = {"gpus_per_node": 4, "cpu": {"partition": "cpu", "cpus_per_task": 3}}
    project.config["training"]["effective_batch_size"] = 24
    servers = {"theirs": {"url": "https://host/v1"}, "ours": {"command": "serve {model} --port {port}"}}
    project.config["dpo"]["data"] = {
        "datasets": [
            {
                "name": name,
                "prompts": {"path": "p.jsonl"},
                "generate": {"model": "their-model" if name == "theirs" else "sft", "server": server},
                "score": [{"reward": "length"}],
            }
            for name, server in servers.items()
        ]
    }
    project.write()
    handler = announced(project, "slurm")
    found = {r.wildcards["stage"].split("-")[0]: r.resources for r in handler.records if r.rule_name == "generate"}
    theirs, ours = found["theirs"], found["ours"]
    assert (theirs.get("gres"), theirs.slurm_partition, theirs.cpus_per_task) == (None, "cpu", 3)
    assert (ours.gres, ours.get("slurm_partition"), ours.cpus_per_task) == ("gpu:1", None, 8)
    assert "generate ours" in handler.told and "generate theirs" not in handler.told


def test_a_job_has_the_gpus_that_its_model_needs(project, monkeypatch):
    """140 GiB of weights on GPUs of 64 GiB."""
    pytest.importorskip("snakemake_executor_plugin_slurm")
    sizes = []

    def size(folder, dtype):
        sizes.append((folder, dtype))
        return 140 << 30

    monkeypatch.setattr(inference, "weight_bytes", size)
    inference._of_folder.cache_clear()
    model = project.path / "large"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"any")
    project.config["model"] = {"name_or_path": str(model)}
    project.config["slurm"] = {"partition": "gpu", "gpus_per_node": 4, "gpu_model": "a100-64", "mem": "400G"}
    project.write()
    found = {
        (r.rule_name, r.resources.get("gres"), r.resources.get("mem_mb")) for r in announced(project, "slurm").records
    }
    assert {one for one in found if one[0] in ("export", "evaluate", "train")} == {
        ("export", "gpu:3", 300 * 1024), ("evaluate", "gpu:3", 300 * 1024), ("train", "gpu:4", 400 * 1024),
    }  # fmt: skip
    assert set(sizes) == {(model, "auto"), (model, "bfloat16")}


def test_rules_are_submitted_by_their_place(project):
    """Only rules of the place `local` stay where snakemake is typed, also in a module of another workflow."""
    named = {
        "preflight": "preflight_checks",
        "preflight_probe": "probe",
        "report": "report_page",
        "compare": "compare_runs",
    }
    local = {named.get(name, name) for name, kind in STAGES.items() if kind.place == "local"}
    (project.path / "other.smk").write_text(
        'module pt:\n    snakefile: "workflow/Snakefile"\n    config: config\nuse rule * from pt as pt_*\n'
    )
    for snakefile, prefix in (("Snakefile", ""), ("other.smk", "pt_")):
        with SnakemakeApi(OutputSettings()) as api:
            workflow = api.workflow(
                resource_settings=ResourceSettings(cores=2, nodes=5),
                config_settings=ConfigSettings(configfiles=[project.path / "config/config.yaml"]),
                snakefile=project.path / snakefile,
                workdir=project.path,
            )._workflow
            found = {rule.name for rule in workflow.rules if rule.name in workflow._localrules}
        assert found == {prefix + name for name in local}
