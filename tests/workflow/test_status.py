"""What `status` says of stages that are done, running, stopped, failed and not begun."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from post_training.commands import status
from post_training.run_dir import attempts
from post_training.run_dir.attempts import Attempt
from post_training.run_dir.lock import take

SNAKEMAKE = str(Path(sys.executable).with_name("snakemake"))


def lines(project):
    return {(line.kind, line.name.rpartition("-")[0]): line for line in status.collect(project.graph())}


@pytest.fixture
def training(project):
    """A pipeline of which SFT is not done; and SFT's directory, with 4 of its steps told."""
    project.config["run_name"] = "demo"
    project.write()
    project.complete()
    graph = project.graph()
    stage = graph.first.trained["sft"]
    directory = graph.base / stage.directory
    (graph.base / stage.manifest).unlink()
    mixed = graph.base / stage.inputs["data"].manifest
    mixed.write_text(json.dumps(json.loads(mixed.read_text()) | {"rows_out": 1000}))
    (directory / "logs").mkdir(exist_ok=True)
    steps = [{"step": n, "loss": 2 - n / 100, "seconds": 0.5 * n, "tokens_per_second": 900.0} for n in range(1, 5)]
    text = "".join(json.dumps(line) + "\n" for line in steps)
    (directory / "logs" / "metrics.jsonl").write_text(text + '{"step": 5, "lo')
    return project, directory


def of_sft(project):
    (line,) = [line for (kind, name), line in lines(project).items() if kind == "train" and name.startswith("sft")]
    return line


def test_done_and_to_do(project):
    assert {line.state for line in lines(project).values()} == {"to do"}
    project.complete()
    facts = {"steps": 7, "rows_out": 1234, "tokens": 9, "metrics": {}}
    for path in project.path.rglob("manifest.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | facts))
    found = lines(project)
    assert {line.state for line in found.values()} == {"done"}
    assert {line.progress for (kind, _), line in found.items() if kind == "train"} == {"7 steps"}
    assert {line.progress for (kind, _), line in found.items() if kind == "mix"} == {"1,234 examples, 9 tokens"}


def test_a_job_that_has_said_why_it_failed(project):
    graph = project.graph()
    stage = next(iter(graph.stages["mix"].values()))
    path = graph.base / "tasks" / f"{stage.directory}.error"
    path.parent.mkdir(parents=True)
    path.write_text("data.eval_fraction=0.1: holds out none\nmore\n")
    found = next(line for line in status.collect(graph) if line.name == stage.wildcard)
    assert (found.state, found.progress) == ("failed", "data.eval_fraction=0.1: holds out none")


def test_only_what_is_there_or_needed_is_listed(project):
    """A pipeline has a preflight for this machine and one for Slurm; it makes one, and finished trainings need none."""
    graph = project.graph()
    assert [stage.config["place"] for stage in status._preflights(graph)] == ["local"]
    script = attempts.folder_of(graph.base / graph.first.trained["sft"].directory) / "job.sh"
    script.parent.mkdir(parents=True)
    script.touch()
    assert [stage.config["place"] for stage in status._preflights(graph)] == ["slurm"]
    project.complete()
    for stage in graph.first.preflights.values():
        (graph.base / stage.manifest).unlink()
    assert status._preflights(graph) == [] and {line.state for line in status.collect(graph)} == {"done"}


def test_without_a_configuration_it_is_what_was_started_last(project, capsys):
    from post_training.__main__ import main

    project.complete()
    command = ["-c1", "--config", "method=sft", "run_name=tried", "--workflow-profile", "none"]
    assert subprocess.run([SNAKEMAKE, *command], capture_output=True).returncode == 0
    assert main(["status"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("outputs: tried ") and printed.rstrip().endswith("all done") and "dpo" not in printed
    assert main(["status", "--configfile", "config/config.yaml", "set=run_name=other dpo.beta=0.3"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("outputs: other ") and "to do" in printed and "dpo" in printed


@pytest.mark.parametrize("words,expected", [
    (["stauts"], "stauts: no such command. Did you mean 'status'? On offer: completion, diff, inspect, lineage, preflight, "),
    (["preflight"], "no preflight has run for this configuration; type `snakemake preflight`"),
])  # fmt: skip
def test_a_command_that_cannot_answer_is_one_line(project, capsys, words, expected):
    from post_training.__main__ import main

    assert main(words) == 1
    told = capsys.readouterr()
    assert expected in told.err and told.err.count("\n") == 1 and not told.out


def test_help_is_by_subject_and_the_shell_can_complete(capsys):
    from post_training.__main__ import main

    with pytest.raises(SystemExit):
        main([])
    told = capsys.readouterr().out
    names = ("inspect", "token-stats", "preflight", "status", "train", "lineage", "diff", "completion")
    assert all(re.search(rf"^  {name} ", told, re.MULTILINE) for name in names) and "  stage" not in told
    assert max(map(len, told.splitlines())) <= 110
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert "--verify" in script and "complete -" in script


def test_training_with_a_live_owner_runs(training):
    project, directory = training
    total = project.graph().first.pipeline.views["sft"]["training"]["max_steps"]
    with take(directory):
        line = of_sft(project)
    assert line.state == "running"
    assert line.progress == f"step 4 of {total}, loss 1.960, 900 tokens/s"
    assert line.seconds_left == pytest.approx(0.5 * (total - 4))
    assert of_sft(project).state == "stopped"


def test_what_slurm_ended(training):
    project, directory = training
    folder = attempts.folder_of(directory)
    folder.mkdir()
    (folder / "job.sh").write_text("#!/bin/sh\n")
    attempts.begin(folder, Attempt("17", 0, "node0", "node0", attempts.now(), 0))
    attempts.end_for(folder, attempts.current(folder), "OUT_OF_MEMORY")
    line = of_sft(project)
    assert (line.state, line.job_id) == ("failed", "17")
    assert line.progress.endswith("failed: out of memory")


def test_slurm_is_asked_once_for_all_stages(training, monkeypatch):
    project, directory = training
    graph = project.graph()
    for folder in (directory, *(graph.base / stage.directory for stage in graph.every("exported"))):
        attempts.folder_of(folder).mkdir(parents=True, exist_ok=True)
        (attempts.folder_of(folder) / "job.sh").write_text("#!/bin/sh\n")
    script = (attempts.folder_of(directory) / "job.sh").resolve()
    squeue = project.path / "bin" / "squeue"
    squeue.parent.mkdir()
    squeue.write_text(
        f"#!/bin/sh\necho asked >> {project.path}/asked\necho '19|PENDING|{script}'\necho '17|RUNNING|{script}'\n"
    )
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", str(squeue.parent), prepend=os.pathsep)
    line = of_sft(project)
    assert (line.state, line.job_id) == ("running", "17")
    assert (project.path / "asked").read_text() == "asked\n"


def test_the_command(training, capsys, monkeypatch):
    from post_training.__main__ import main

    project, _ = training
    graph = project.graph()
    stage = next(iter(graph.stages["transform"].values()))
    log = project.path / graph.base / "logs" / "transform" / f"{stage.wildcard.rpartition('/')[2]}.log"
    (project.path / graph.base / stage.manifest).unlink()
    log.parent.mkdir(parents=True)
    log.write_text("reading [/scratch/a.jsonl]\n")
    monkeypatch.chdir(project.path)
    config = next(path for path in project.path.rglob("*.yaml") if path.name == "config.yaml")
    assert main(["status", "--config", str(config), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {"kind", "name", "label", "state", "progress", "job_id", "seconds_left"} == set(told[0])
    assert main(["status", "--config", str(config)]) == 0
    printed = capsys.readouterr().out
    assert "step 4 of" in printed and "done" in printed and "reading [/scratch/a.jsonl]" in printed
