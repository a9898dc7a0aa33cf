"""What a person sees, in a terminal that a process draws on, and in a pipe. Trainings are short stand-ins; all else is real."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pyte
import pytest

from post_training.console.jobs import LABELS

SNAKEMAKE = str(Path(sys.executable).with_name("snakemake"))
STAND_IN = """
import os, sys, time
if "stage" in sys.orig_argv:
    import post_training.launch.launcher as launcher
    from post_training.core.errors import UserError
    from post_training.run_dir.stop import REQUEST, write_stopped

    def run(task):
        with open("ran.txt", "a") as file:
            file.write(f"{time.time()} begins\\n")
        for step in range(1, int(os.environ["STEPS"])):
            print(f"sft: step {step}/60, loss 1.25, 900 tokens/s, 0:0{step % 10} left, " + "and so on " * 20, flush=True)
            time.sleep(0.05)
            if REQUEST.wanted:
                time.sleep(1)
                write_stopped(task.directory, REQUEST.wanted, step)
                return 130
        if "FAILS" in os.environ:
            raise UserError("config error: training.max_steps: found 7, expected 8; set it to 8")
        with open("ran.txt", "a") as file:
            file.write(f"{time.time()} ends\\n")
        task.finish(steps=60, loss_first=2.0, loss_last=1.25, metrics={"tokens_per_second": 900.0})
        return 0

    launcher.run = run
"""
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture
def to_train(project, monkeypatch):
    """A pipeline of which one dataset and SFT are not done."""
    (project.path / "sitecustomize.py").write_text(STAND_IN)
    path = os.pathsep.join(filter(None, [str(project.path), os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("STEPS", "30")
    monkeypatch.setenv("TERM", "xterm-256color")
    project.config["run_name"] = "demo"
    project.write()
    project.complete()
    graph = project.graph()
    kinds = [stage for kind in ("download", "transform") for stage in graph.stages[kind].values() if stage.label == "a"]
    missing = [graph.base / stage.manifest for stage in (*kinds, graph.first.trained["sft"])]
    for path in missing:
        path.unlink()
    project.words = ["-c2", *map(str, missing[1:])]
    return project


class Terminal:
    """A process on a terminal of its own: its screen after every piece of output, and all that it wrote."""

    def __init__(self, columns: int, *words: str) -> None:
        self.screen, self.columns, self.text, self.torn = pyte.Screen(columns, 60), columns, "", []
        stream = pyte.Stream(self.screen)
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 60, columns, 0, 0))
            os.execv(SNAKEMAKE, [SNAKEMAKE, *words])
        self._feed = stream.feed

    def read(self, until: str | None = None) -> None:
        """Up to a pattern, or to the end."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (until and re.search(until, ANSI.sub("", self.text))):
            try:
                piece = os.read(self.master, 1 << 16).decode()
            except OSError:  # the process has ended
                break
            self.text += piece
            self._feed(piece)
            bars = [line for line in self.lines if re.search(r"\d of \d+ jobs [━╸╺]", line)]
            self.torn += [self.lines] if len(bars) > 1 else []

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.screen.display if line.strip()]

    def code(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_a_terminal_shows_a_line_a_job_and_what_runs(to_train):
    terminal = Terminal(80, *to_train.words)
    terminal.read(until=r"step \d+/60")
    seen = "\n".join(terminal.lines)
    assert re.search(
        r"^· train +sft-scratch-llama +0:\d\d  step \d+/60, loss 1.25, 900 tokens/s", seen, re.MULTILINE
    ), seen
    assert re.search(r"^[012] of 3 jobs ━.* 0:\d\d", terminal.lines[-1]), seen
    terminal.read()
    assert terminal.code() == 0, terminal.text
    done = [line for line in terminal.lines if line.startswith("✓")]
    assert sorted(line.split()[1] for line in done) == ["download", "train", "transform"]
    told = "\n".join(done)
    assert "1 rows in, 1 examples out" in told and "60 steps, loss 2 -> 1.25, 900 tokens/s" in told
    assert not terminal.torn and not any(" jobs ━" in line for line in terminal.lines), "the bar is gone at the end"
    ours = [
        line for line in re.split(r"[\r\n]+", ANSI.sub("", terminal.text)) if re.match(r"[✓·] |\d+ of \d+ jobs", line)
    ]
    assert ours and max(map(len, ours)) <= 80
    assert "outputs/demo-sft -> sft-scratch-llama-" in "\n".join(terminal.lines)


def test_ctrl_c_says_last_what_is_saved(to_train, monkeypatch):
    monkeypatch.setenv("STEPS", "1000")
    terminal = Terminal(120, *to_train.words)
    terminal.read(until=r"step \d+/60")
    os.write(terminal.master, b"\x03")
    terminal.read(until="stopping:")
    os.write(terminal.master, b"\x03")  # a second one changes nothing
    terminal.read()
    assert terminal.code() == 1
    assert re.fullmatch(
        r"train sft-scratch-llama: stopped at step \d+, saved; the same command resumes", terminal.lines[-1]
    )
    assert "Traceback" not in terminal.text and "failed" not in terminal.text


def test_errors_come_last_in_a_pipe_too(to_train, monkeypatch):
    monkeypatch.setenv("STEPS", "1")
    monkeypatch.setenv("FAILS", "1")
    done = subprocess.run([SNAKEMAKE, *to_train.words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = done.stdout.splitlines()
    assert done.returncode == 1 and "\x1b" not in done.stdout
    assert ["failed", "train"] in [line.split()[:2] for line in lines]
    log = next((to_train.path / "outputs" / "logs" / "train").glob("sft-*.log")).relative_to(to_train.path)
    assert re.match(
        r"([12] of 3 jobs are done and are kept|none of 3 jobs is done); once this is fixed, the same command resumes:",
        lines[-4],
    )
    assert lines[-3:] == [
        "train sft-scratch-llama failed:",
        "  config error: training.max_steps: found 7, expected 8; set it to 8",
        f"  log: {log}",
    ]
    # What Snakemake itself says of a failure stays available.
    own = subprocess.run([SNAKEMAKE, "-p", *to_train.words], capture_output=True, text=True).stderr
    assert "Error in rule train:" in own and "python -m post_training stage" in own


def test_time_left_is_of_all_jobs(tmp_path, monkeypatch):
    """From jobs of the same kind, from what a training says, and before it begins from its preflight; else there is none."""
    from post_training.console import jobs

    now = [100.0]
    monkeypatch.setattr(jobs.time, "monotonic", lambda: now[0])

    def job(kind, label, **more):
        return jobs.Job(
            kind, label, tmp_path / label / "manifest.json", tmp_path / "t.json", tmp_path / f"{label}.log", **more
        )

    predicted = {"trainings": {"dpo": {"predicted": {"hours": 0.01}}}}
    (tmp_path / "preflight.json").write_text(json.dumps(predicted))
    planned = {name: job("download", name) for name in ("a", "b")}
    planned |= {"sft": job("train", "sft"), "dpo": job("train", "dpo", preflight=tmp_path / "preflight.json")}
    board = jobs.Board(planned)
    assert board.seconds_left() is None
    board.start("a")
    now[0] += 10
    assert board.end("a", done=True) == 10
    assert board.seconds_left() is None, "nothing is known of sft"
    board.start("sft")
    (tmp_path / "sft.log").write_text("sft: step 3/60, loss 1.2, 1:02:03 left\n")
    now[0] += 1
    assert board.seconds_left() == pytest.approx(10 + 3723 + 36)


def test_two_stages_of_a_method_are_told_apart(project):
    """Directories are named by method; a line says the stage of the configuration, and of a sweep the run."""
    project.config["method"], project.config["run_name"] = "dpo2", "demo"
    project.config["dpo2"] = {
        "method": "dpo", "init_from": "dpo", "data": {"datasets": [{"name": "p2", "path": "h.jsonl", "transform": "pairs"}]}
    }  # fmt: skip
    project.config["dpo"]["beta"] = 0.2
    project.write()
    assert _labels(project.graph()) == {
        "mix": ["dpo", "dpo2", "sft"],
        "reference": ["dpo", "dpo2"],
        "preflight": ["dpo2-scratch-llama"],
        "train": ["dpo-scratch-llama", "dpo2-scratch-llama", "sft-scratch-llama"],
        "export": ["dpo-scratch-llama", "dpo2-scratch-llama", "sft-scratch-llama"],
        "evaluate": ["base-scratch-llama", "dpo", "dpo2", "sft"],
        "card": ["dpo-scratch-llama", "dpo2-scratch-llama", "sft-scratch-llama"],
    }
    project.jobs()
    assert {"dpo2", "dpo2-scratch-llama"} <= {*LABELS.values()}, "of a dry run"
    project.config["sweep"] = {"dpo.beta": [0.1, 0.3]}
    found = _labels(project.graph())
    both = [f"{stage} beta{beta}" for stage in ("dpo", "dpo2") for beta in (0.1, 0.3)]
    assert found["train"] == [*both, "sft-scratch-llama"] and found["mix"] == ["dpo", "dpo2", "sft"]
    assert found["evaluate"] == ["base-scratch-llama", *both, "sft"]


def _labels(graph) -> dict[str, list[str]]:
    kinds = ("mix", "reference", "preflight", "train", "export", "evaluate", "card")
    return {kind: sorted({graph.label_of(stage) for stage in graph.stages[kind].values()}) for kind in kinds}


def test_a_job_that_cannot_say_why_it_died(tmp_path):
    from post_training.console.endings import Failed, why
    from post_training.console.jobs import Job

    log = tmp_path / "a.log"
    log.write_text("sft: step 3/60\n")
    job = Job("train", "sft", tmp_path / "sft" / "manifest.json", tmp_path / "task.json", log)
    assert why(Failed(job, "train", logs=[str(log)])) == [
        "ended without a message (killed? out of memory?); it said last: sft: step 3/60"
    ]
    job.task_file.with_suffix(".error").write_text("\n".join(f"line {n}" for n in range(52)))
    assert why(Failed(job, "train"))[-1] == "... and 29 more lines in the log"
    assert why(Failed(job, "train", message="job 7 cancelled")) == ["job 7 cancelled"]


def test_a_dry_run_is_a_short_list(to_train):
    done = subprocess.run([SNAKEMAKE, "-n", *to_train.words], capture_output=True, text=True)
    counts = dict(re.findall(r"^(\w+) +(\d+)  ", done.stdout, re.MULTILINE))
    assert counts == {"download": "1", "transform": "1", "train": "1"}
    assert done.stdout.splitlines()[-1].startswith("3 jobs would run. Nothing was made (dry run)")


def test_a_job_s_error_is_kept_without_secrets_and_forgotten_by_the_next_attempt(tmp_path, monkeypatch):
    from post_training.core.task import Task, error_of

    monkeypatch.setenv("HF_TOKEN", "hf_" + "a" * 30)
    task = Task.of({"stage": "mix", "config": {}}, {}, {}, tmp_path / "mix" / "manifest.json")
    task.write(tmp_path / "task.json")
    task.keep_error(f"no access with {os.environ['HF_TOKEN']}")
    assert error_of(tmp_path / "task.json") == "no access with ***"
    task.keep_error(None)
    assert error_of(tmp_path / "task.json") == "" and json.loads((tmp_path / "task.json").read_text())["runtime"] == {}


def test_trainings_take_turns_on_this_machine(to_train, monkeypatch):
    monkeypatch.setenv("STEPS", "10")
    to_train.config["sweep"] = {"training.learning_rate": [1e-5, 2e-5]}
    to_train.write()
    to_train.complete()
    graph = to_train.graph()
    missing = [graph.base / plan.trained["sft"].manifest for plan in graph.plans.values()]
    for path in missing:
        path.unlink()
    # As a person types it: `cores: all` and `jobs: 50`, which are for Slurm, come from the profile.
    done = subprocess.run([SNAKEMAKE, *map(str, missing)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ran = sorted((to_train.path / "ran.txt").read_text().splitlines())
    assert [line.split()[1] for line in ran] == ["begins", "ends", "begins", "ends"]
