"""From `slurm.*` to the words that sbatch gets."""

import subprocess
from pathlib import Path

import pytest
from tiny import pipeline_of, view_of

from post_training.core.errors import ConfigError, UserError
from post_training.slurm import check, cluster, placement
from post_training.slurm.job import StageJob, script
from post_training.slurm.patience import Patience

PROFILES = Path(__file__).parents[3] / "profiles"


def words(view, kind="train"):
    return placement.options(placement.resources(view, kind), view, kind)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ({"gpus_per_node": 1}, "--nodes=1 --ntasks-per-node=1 --gres=gpu:1 --cpus-per-task=8"),
        ({"gpus_per_node": 4, "cpus_per_gpu": 12}, "--nodes=1 --ntasks-per-node=4 --gres=gpu:4 --cpus-per-task=12"),
        (
            {"num_nodes": 16, "gpus_per_node": 8, "cpus_per_task": 7},
            "--nodes=16 --ntasks-per-node=8 --gres=gpu:8 --cpus-per-task=7",
        ),
        ({"num_nodes": 2, "gpus_per_node": 0}, "--nodes=2 --ntasks-per-node=1 --cpus-per-task=8"),
    ],
)
def test_every_shape_is_the_same_rule(template, shape, expected):
    assert words(view_of(template, slurm=shape)) == [*expected.split(), "--time=24:00:00", "--signal=USR1@300"]


def test_every_key(template):
    keys = {
        "partition": "gpu,gpu-long", "account": "lab", "qos": "high", "num_nodes": 2, "gpus_per_node": 4, "mem": "200G",
        "wall_time": "1-06:30:00", "signal_time_seconds": 600, "requeue": True, "constraint": "(h100|a100)&ib",
        "reservation": "r1", "exclude": "node[3,7-9]", "extra": "--exclusive --comment='a b'",
    }  # fmt: skip
    assert words(view_of(template, slurm=keys)) == [
        "--partition=gpu,gpu-long", "--account=lab", "--qos=high", "--nodes=2", "--ntasks-per-node=4", "--gres=gpu:4",
        "--cpus-per-task=8", "--mem=204800M", "--time=30:30:00", "--constraint=(h100|a100)&ib", "--signal=USR1@600", "--requeue",
        "--reservation=r1", "--exclude=node[3,7-9]", "--exclusive", "--comment=a b",
    ]  # fmt: skip


def test_generate_and_scores_are_jobs_of_their_own_shape_that_are_warned(template):
    """One GPU whatever training takes, and the warning goes to the batch script, which is the job's own process."""
    slurm = {"partition": "gpu", "num_nodes": 4, "gpus_per_node": 4, "mem": "200G", "wall_time": "24:00:00"}
    view = view_of(template, slurm=slurm)
    expected = "--nodes=1 --ntasks-per-node=1 --gres=gpu:1 --cpus-per-task=8 --mem=51200M".split()
    for kind in ("generate", "score_model"):
        assert words(view, kind) == ["--partition=gpu", *expected, "--time=24:00:00", "--signal=B:USR1@300"]
    own = {"partition": "small", "qos": "many", "wall_time": "00:06:00", "constraint": "a100"}
    found = words(view_of(template, slurm=slurm | {"generate": own}), "generate")
    assert found == [
        "--partition=small",
        "--qos=many",
        *expected,
        "--time=00:06:00",
        "--constraint=a100",
        "--signal=B:USR1@180",
    ]
    cpu = words(view_of(template, slurm=slurm | {"generate": own}), "score")
    assert "--partition=small" not in cpu and "--signal=B:USR1@300" in cpu and not any("gres" in word for word in cpu)
    with pytest.raises(ConfigError, match=r"slurm\.generate\.wall_time: found '6', expected HH:MM:SS"):
        placement.check(view_of(template, slurm={"generate": {"wall_time": "6"}}))


def test_cpu_rules_have_keys_of_their_own(template):
    slurm = {
        "partition": "gpu",
        "account": "lab",
        "mem": "0",
        "cpu": {"partition": "cpu", "cpus_per_task": 16, "mem": "32G"},
    }
    view = view_of(template, slurm=slurm)
    assert words(view, "tokenize") == (
        "--partition=cpu --account=lab --nodes=1 --ntasks-per-node=1 --cpus-per-task=16 --mem=32768M --time=04:00:00".split()
    )
    assert "--mem=0" in words(view)


def test_export_takes_one_gpu_of_one_node(template):
    view = view_of(template, slurm={"num_nodes": 4, "gpus_per_node": 8})
    found = words(view, "export")
    assert {"--nodes=1", "--ntasks-per-node=1", "--gres=gpu:1"} < set(found)
    assert not any(word.startswith("--signal") for word in found)


@pytest.mark.parametrize(
    ("mem", "gpus", "kind", "expected"),
    [
        ("480G", 4, "train", "--mem=491520M"),
        ("480G", 4, "export", "--mem=122880M"),
        ("100M", 3, "evaluate", "--mem=34M"),
        ("480G", 0, "export", "--mem=491520M"),
        ("0", 4, "export", "--mem=0"),
    ],
)
def test_a_rule_on_one_gpu_asks_for_its_share_of_a_nodes_memory(template, mem, gpus, kind, expected):
    assert expected in words(view_of(template, slurm={"mem": mem, "gpus_per_node": gpus}), kind)


def test_a_stage_may_have_a_place_of_its_own(template):
    pipeline = pipeline_of(
        template, "dpo", slurm={"num_nodes": 1}, dpo__slurm={"num_nodes": 4}, sft={"max_seq_length": 64}
    )
    assert [f"--nodes={n}" in words(pipeline.views[name]) for name, n in (("sft", 1), ("dpo", 4))] == [True, True]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        (
            "wall_time",
            "43200",
            "found '43200', expected HH:MM:SS or D-HH:MM:SS; in YAML it needs quotes, or it is read as a number",
        ),
        ("wall_time", "00:00:30", "found '00:00:30', which is 30 s"),
        ("partition", "gpu; rm -rf /", "found 'gpu; rm -rf /'"),
        ("account", "$(id)", "found '$(id)'"),
        ("mem", "lots", "found 'lots', expected a size such as 200G"),
        ("job_name", "a b", "found 'a b'"),
        ("exclude", "node1 node2", "found 'node1 node2'"),
        ("constraint", "a`b", "found 'a`b'"),
        ("extra", "--gres=gpu:8", "--gres is set by the workflow"),
        ("extra", "-N4", "-N is set by the workflow"),
        ("extra", "-OvN4", "-N is set by the workflow"),
        ("extra", "--tim=99", "--tim (short for --time) is set by the workflow"),
        ("extra", "--arr=1-3", "--arr (short for --array) is set by the workflow"),
        ("extra", "--outp=x", "--outp (short for --output) is set by the workflow"),
        ("extra", "--nod=9", "--nod (short for --nodes) is set by the workflow"),
        ("extra", "--hol", "--hol (short for --hold) is set by the workflow"),
        ("extra", "--gre=gpu:8", "--gre (short for --gres) is set by the workflow"),
        ("extra", "--com=mine", "found --com, expected --comment=TEXT in full"),
        ("extra", "--", "expected options such as --exclusive"),
        ("extra", "exclusive", "expected options such as --exclusive"),
        ("extra", "--exclusive other.sh", "found 'other.sh', expected options such as --exclusive"),
        ("gpu_type", "8", "expected a type of GPU as the cluster's gres says"),
        ("extra", "--x='", "No closing quotation"),
        ("signal_time_seconds", 30, "found 30, expected 60 to 65535"),
        ("signal_time_seconds", 90000, "less than slurm.wall_time (86400 s)"),
        ("num_nodes", 0, "found 0, expected 1 or more"),
        ("max_failures", -1, "found -1, expected 0 or more"),
        ("modules", ["cuda; x"], "found 'cuda; x'"),
        ("cpu_bind", "cores; x", "found 'cores; x'"),
        ("gpu_bind", "", "found ''"),
        ("master_suffix", "i.$(id)", "found 'i.$(id)'"),
        ("env", {"A-B": "1"}, "expected the name of an environment variable"),
        ("env", {"MASTER_ADDR": "x"}, "is set by the workflow"),
        ("env", {"SLURM_CONF": "x"}, "is set by the workflow"),
        ("env", {"NCCL_DEBUG": True}, "found True, expected text of one line or a number"),
        ("env", {"NCCL_DEBUG": "a\nb"}, "expected text of one line"),
        ("container", {"program": "docker"}, "found 'docker'"),
        ("container", {"bind": ["a b"]}, "found 'a b'"),
        ("cluster", "lumni", "Did you mean 'lumi'?"),
        ("cpu", {"wall_time": "soon"}, "found 'soon'"),
    ],
)
def test_a_wrong_value_is_one_line(template, key, value, expected):
    with pytest.raises(ConfigError) as caught:
        placement.check(view_of(template, slurm={key: value}))
    assert str(caught.value).startswith(f"config error: slurm.{key}") and expected in str(caught.value)
    assert "\n" not in str(caught.value)


# Nobody has run these: the line is all that is checked, against each cluster's public documentation.
CLUSTERS = {
    "lumi": "--partition=standard-g --account=p --nodes=2 --ntasks-per-node=8 --gres=gpu:8 --cpus-per-task=7 --mem=491520M "
    "--time=48:00:00 --signal=USR1@300",
    "leonardo": "--partition=boost_usr_prod --account=p --nodes=2 --ntasks-per-node=4 --gres=gpu:4 --cpus-per-task=8 "
    "--mem=491520M --time=24:00:00 --signal=USR1@300 --no-requeue",
    "jupiter": "--partition=booster --account=p --nodes=2 --ntasks-per-node=4 --gres=gpu:4 --cpus-per-task=72 --time=12:00:00 "
    "--signal=USR1@300",
    "marenostrum5": "--account=p --qos=acc_ehpc --nodes=2 --ntasks-per-node=4 --gres=gpu:4 --cpus-per-task=20 --time=48:00:00 "
    "--signal=USR1@300",
}


ENV = {
    "lumi": "NCCL_SOCKET_IFNAME=hsn0,hsn1,hsn2,hsn3 NCCL_NET_GDR_LEVEL=PHB",
    "leonardo": "NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0",
    "jupiter": "NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0",
    "marenostrum5": "",
}


def test_every_cluster_has_a_golden_line():
    assert {path.parent.name for path in PROFILES.glob("*/slurm.yaml")} == set(CLUSTERS)


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_golden_sbatch_line(template, cluster):
    view = view_of(template, slurm={"cluster": cluster, "account": "p", "num_nodes": 2})
    placement.check(view)
    assert " ".join(words(view)) == CLUSTERS[cluster]
    binding, env = view["slurm"]["cpu_bind"], view["slurm"]["env"]
    assert (binding is None or binding.count(",") == 7, " ".join(map("{0[0]}={0[1]}".format, env.items()))) == (
        True,
        ENV[cluster],
    )
    # A key of one's own goes over the cluster's, and a variable beside its variables.
    own = view_of(template, slurm={"cluster": cluster, "env": {"NCCL_DEBUG": "INFO", "NCCL_SOCKET_IFNAME": "x"}})
    assert own["slurm"]["env"] == {**env, "NCCL_DEBUG": "INFO", "NCCL_SOCKET_IFNAME": "x"}
    assert "--time=01:00:00" in words(view_of(template, slurm={"cluster": cluster, "wall_time": "01:00:00"}))


def test_job_sh(template, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.executable", "/env/bin/python")
    monkeypatch.setenv("PYTHONPATH", "/src")
    slurm = {"partition": "gpu", "modules": ["cuda/12.4"], "job_name": "mine", "env": {"A": "1,2", "B": "x y"}}
    view = view_of(template, slurm=slurm)
    output = Path("/with space/100%/sft-x-1234/manifest.json")
    command = ["/env/bin/python", "-m", "post_training", "stage", "/with space/tasks/it's.json"]
    job = StageJob("train", view, output, command, placement.resources(view, "train"))
    assert (
        script(job)
        == f"""#!/bin/bash
#SBATCH --job-name=mine-sft-x-1234
#SBATCH --partition=gpu
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --chdir={tmp_path}
#SBATCH --output="/with space/100%%/sft-x-1234/slurm/slurm-%j.out"
#SBATCH --error="/with space/100%%/sft-x-1234/slurm/slurm-%j.err"
#SBATCH --open-mode=append

# mine-sft-x-1234: written at each submission. By hand, from the same environment: sbatch '/with space/100%/sft-x-1234/slurm/job.sh'
export PATH=/env/bin:$PATH PYTHONUNBUFFERED=1
export PYTHONPATH=/src
# Everything was downloaded before this job was submitted; nodes may have no network.
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_DATASETS_OFFLINE=1
command -v module >/dev/null || . /etc/profile
module load cuda/12.4 || exit 1
export A=1,2 B='x y'
cd {tmp_path} || exit 1
exec /env/bin/python -m post_training.slurm.attempt \\
    --output '/with space/100%/sft-x-1234/manifest.json' \\
    --max-failures 3 \\
    --wait-seconds 3600 \\
    -- /env/bin/python -m post_training stage '/with space/tasks/it'"'"'s.json'
"""
    )
    assert job.sbatch_line().startswith("sbatch --job-name=mine-sft-x-1234 --partition=gpu --nodes=1")


def test_export_runs_inside_the_container_and_training_does_not(template):
    view = view_of(template, slurm__container={"image": "/i.sif"})
    command = ["/env/bin/python", "-m", "post_training", "stage", "o.json"]
    texts = {
        kind: script(StageJob(kind, view, Path("/o/manifest.json"), command, placement.resources(view, kind)))
        for kind in ("export", "train", "tokenize")
    }
    assert ["apptainer" in text for text in texts.values()] == [True, False, False]


def test_a_slurm_that_does_not_answer_is_no_fault_of_a_key(template, monkeypatch):
    view = view_of(template, slurm={"partition": "gpu", "wait_seconds": 0})
    down = subprocess.CompletedProcess([], 1, "", "allocation failure: Unable to contact slurm controller\n")
    monkeypatch.setattr(check.cluster, "run", lambda *_: down)
    monkeypatch.setattr(check, "_check_torch", lambda _: None)
    with pytest.raises(UserError, match=r"Slurm has not answered for 0 s .*Unable to contact") as caught:
        check.check_views([("sft", view)])
    assert not isinstance(caught.value, ConfigError)


def test_gpus_of_a_type(template, monkeypatch):
    view = view_of(template, slurm={"partition": "gpu", "gpus_per_node": 4, "gpu_type": "a100"})
    assert placement.resources(view, "train")["gres"] == "gpu:a100:4"
    assert placement.resources(view, "export")["gres"] == "gpu:a100:1"
    assert [placement.resources(view, "export", n)["gres"] for n in (3, 9)] == ["gpu:a100:3", "gpu:a100:4"]
    assert placement.describe(placement.resources(view, "train"), view, "train").startswith("1 node x 4 GPUs")
    listed = subprocess.CompletedProcess([], 0, "gpu*|2|64|500000|gpu:a100:4(S:0-1),gpu:1g.5gb:7|1-00:00:00\n", "")
    monkeypatch.setattr(check.cluster, "run", lambda *_: listed)
    assert [check.nodes("gpu", kind)[0].gpus for kind in (None, "a100", "1g.5gb", "h100")] == [11, 4, 7, 0]


def test_a_users_comment_stays_beside_the_one_that_finds_the_job_again(monkeypatch, tmp_path):
    seen = []

    def run(*words):
        seen.append(words)
        return subprocess.CompletedProcess(words, 0, "12;mini\n", "")

    monkeypatch.setattr(cluster, "run", run)
    assert cluster.submit(["--exclusive", "--comment=team a"], tmp_path / "job.sh", Patience(0)) == "12"
    (words,) = seen
    assert words[-2].startswith("--comment=team a post-training-")
