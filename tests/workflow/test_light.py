"""Planning stays light: what the Snakefile imports loads no torch, and costs little beside Snakemake itself."""

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

HEAVY = ("torch", "transformers", "datasets", "trl", "accelerate", "deepspeed", "pyarrow", "numpy")
SNAKEMAKE = [str(Path(sys.executable).with_name("snakemake"))]


def test_snakemake_dry_run_loads_nothing_heavy(project):
    """In the real process: a list of its modules is written when it ends."""
    (project.path / "sitecustomize.py").write_text(
        "import atexit, sys\natexit.register(lambda: open('modules.txt', 'a').write('\\n'.join(sys.modules)))\n"
    )
    project.complete()
    before = os.environ.get("PYTHONPATH")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(project.path), before]))}
    done = subprocess.run([*SNAKEMAKE, "-n"], capture_output=True, text=True, env=environment, cwd=project.path)
    assert done.returncode == 0, done.stderr
    assert "Nothing to be done" in done.stdout + done.stderr
    loaded = (project.path / "modules.txt").read_text().split()
    assert "post_training.plan" in loaded
    # Snakemake itself loads pandas, and that numpy and pyarrow; test_the_light_part_alone holds ours to account.
    assert not ({*HEAVY} - {"numpy", "pyarrow"}) & {*loaded}


def test_the_light_part_alone():
    modules = [
        "workflow.session", "plan", "config", "core.stages", "core.task", "run_dir.lock", "run_dir.attempts", "slurm.follow",
        "launch.launcher", "data.registry", "commands.status", "report.summary",
    ]  # fmt: skip
    code = f"import sys\nfor m in {modules!r}: __import__('post_training.' + m)\n"
    code += f"sys.exit(', '.join(m for m in {HEAVY!r} if m in sys.modules) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_planning_costs_little_beside_snakemake_itself(project, tmp_path):
    """Seconds of a core, the best of three: a finished pipeline against a Snakefile with one rule.

    A ratio, because everything is slower on a busy machine; `make bench` prints the seconds.
    """
    project.complete()
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "Snakefile").write_text("rule all:\n    output: 'Snakefile'\n")

    def seconds(folder):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([*SNAKEMAKE, "-n"], capture_output=True, text=True, cwd=folder)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0 and "Nothing to be done" in done.stdout + done.stderr
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    pairs = [(seconds(project.path), seconds(alone)) for _ in range(3)]
    ours, bare = (min(times) for times in zip(*pairs, strict=True))
    assert ours <= 1.6 * bare, (ours, bare)


def test_a_mistake_is_one_line_from_the_command_line(project):
    for arguments, expected in (
        (["--config", "run_name=$(x)"], "config error: run_name: found '$(x)'"),
        (["--config", "set=training.max_step=3"], "config error: training.max_step: unknown key."),
        (
            ["--config", "set=training.effective_batch_size=3 training.per_device_train_batch_size=2"],
            "config error: training.effective_batch_size: 3 sequences do not divide over 1 node x 1 CPU x 2 sequences = 2; use 2 or 4",
        ),
    ):
        done = subprocess.run([*SNAKEMAKE, *arguments], capture_output=True, text=True, cwd=project.path)
        assert done.returncode == 1
        assert expected in done.stderr and "Traceback" not in done.stderr
        assert not (project.path / "outputs").exists()


def test_a_configuration_of_a_second_repository_is_planned_alone(project):
    """As `snakedeploy deploy-workflow` lays it out: a Snakefile that imports this one, and a copy of the demo's configuration."""
    other = project.path / "other"
    (other / "workflow").mkdir(parents=True)
    (other / "config").mkdir()
    (other / "workflow" / "Snakefile").write_text(
        'configfile: "config/config.yaml"\n'
        f'module post_training:\n    snakefile: "{project.path}/workflow/Snakefile"\n    config: config\n'
        "use rule * from post_training\n"
    )
    repository = Path(__file__).parents[2]
    (other / "config" / "config.yaml").write_bytes((repository / "config" / "config.yaml").read_bytes())
    for path in project.path.iterdir():
        if path.is_file() and path.name != "Snakefile":
            (other / path.name).write_bytes(path.read_bytes())
    mine = yaml.safe_load((project.path / "config" / "config.yaml").read_text())
    del mine["training"]["max_steps"]
    mine["training"]["num_train_epochs"] = 3
    (other / "mine.yaml").write_text(yaml.safe_dump(mine))
    command = [*SNAKEMAKE, "-n", "-c2", "--configfile", "mine.yaml", "--config", "method=sft", "run_name=mine"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=other)
    assert done.returncode == 0, done.stderr[-2000:]
    made = set(re.findall(r"output: outputs/data/raw/(\w+)-", done.stdout))
    assert made == {"a", "b", "held"} and "demo" not in done.stdout, (
        "the demo's datasets, lengths and name are not there"
    )
    assert "sft: 1 node x 1 CPU" in done.stderr and "700 steps" not in done.stderr


def test_environments_of_snakemake_are_refused_in_a_line(project):
    for method in ("conda", "apptainer"):
        done = subprocess.run([*SNAKEMAKE, "-n", "--sdm", method], capture_output=True, text=True, cwd=project.path)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith(
            f"--sdm {method}: the jobs of this workflow run in the environment"
        )


@pytest.mark.parametrize("prefix,base", [("", "outputs"), ('    prefix: "sub/"\n', "sub/outputs")])
def test_as_a_module_of_another_workflow(project, prefix, base):
    """Another workflow imports workflow/Snakefile, with a part of its own config."""
    other = project.path / "other"
    other.mkdir()
    for name in "abph":
        (other / f"{name}.jsonl").write_bytes((project.path / f"{name}.jsonl").read_bytes())
    for name in ("transforms.py", "template.jinja"):
        (other / name).write_bytes((project.path / name).read_bytes())
    (other / "mine.yaml").write_text(
        "post_training:\n"
        + "".join(f"  {line}\n" for line in (project.path / "config/config.yaml").read_text().splitlines())
    )
    (other / "Snakefile").write_text(
        'configfile: "mine.yaml"\n'
        f'module pt:\n    snakefile: "{project.path}/workflow/Snakefile"\n    config: config["post_training"]\n{prefix}'
        "use rule * from pt as pt_*\n"
        "rule everything:\n    default_target: True\n    input: rules.pt_all.input\n"
    )
    done = subprocess.run([*SNAKEMAKE, "-n", "-c2"], capture_output=True, text=True, cwd=other)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "rule pt_train" in done.stdout
    assert f"input: {base}/sft-" in done.stdout and f"output: {base}/sft-" in done.stdout
