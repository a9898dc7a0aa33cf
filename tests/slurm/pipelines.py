"""Pipelines on the test cluster, and what can be asked of them."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from post_training.config import resolve
from post_training.plan import make_plan

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PATIENCE_SECONDS = 600


def slurm(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True).stdout


def until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE_SECONDS) -> Any:
    """The first true answer of `condition`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"waited {seconds:.0f} s for {what}; queue: {slurm('squeue', '-o', '%A %T %r %j')}")


class Main:
    """One `snakemake --executor slurm` of a person."""

    def __init__(self, project: "Project", *arguments: str, **environment: str) -> None:
        self.project = project
        project.starts += 1
        self.log = project.path / f"snakemake-{project.starts}.log"
        words = [
            str(BIN / "snakemake"),
            "-s",
            str(ROOT / "Snakefile"),
            "--workflow-profile",
            str(ROOT / "profiles/default"),
        ]
        words += ["--executor", "slurm", "--seconds-between-status-checks", "1", "--latency-wait", "5"]
        words += [*arguments, "--configfile", "my.yaml"]
        everything = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"} | environment
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                words,
                cwd=project.path,
                env=everything,
                stdout=log,
                stderr=log,
                start_new_session=True,
                # Tests that a shell has put into the background are deaf to Ctrl-C, and so are their children.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    @property
    def said(self) -> str:
        return self.log.read_text()

    def ends(self, code: int, seconds: float = PATIENCE_SECONDS) -> str:
        """Wait for the end with this exit code; everything it said."""
        try:
            found = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"still runs after {seconds} s\n{self.said[-3000:]}\n{slurm('squeue')}") from None
        assert found == code, self.project.story() + self.said[-5000:]
        return self.said

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.killpg(self.process.pid, number)
        if number == signal.SIGKILL:
            self.process.wait()


class Project:
    """A working directory with a configuration."""

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        self.path = path
        self.starts = 0
        self.main: Main | None = None
        path.mkdir(parents=True, exist_ok=True)
        self.write(config)

    def write(self, config: dict[str, Any]) -> None:
        self.config = config
        (self.path / "my.yaml").write_text(yaml.safe_dump(config))

    def start(self, *arguments: str, **environment: str) -> Main:
        """Train, and no more, unless there are arguments."""
        return Main(self, *(arguments or (self.target(),)), **environment)

    def target(self) -> str:
        """The manifest of the last stage that trains."""
        with contextlib.chdir(self.path):
            plan = make_plan(resolve(self.config))
        return f"{plan.base}/{plan.trained[self.config['method']].manifest}"

    def run_of(self, method: str = "sft") -> Path:
        """The run directory, once it is there."""
        found = until(lambda: sorted(self.path.glob(f"outputs/{method}-*-*")), f"a run of {method}")
        return found[-1]

    def attempts(self, method: str = "sft") -> list[dict[str, Any]]:
        path = self.run_of(method) / "slurm" / "attempts.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def whys(self, method: str = "sft") -> list[str]:
        return [line["why"] for line in self.attempts(method)]

    def jobs(self, method: str = "sft") -> list[str]:
        """Ids of the Slurm jobs that worked on a run, each once, in order."""
        return list(dict.fromkeys(line["job_id"] for line in self.attempts(method)))

    def failure_count(self, method: str = "sft") -> int:
        path = self.run_of(method) / "slurm" / "failure_count"
        return int(path.read_text()) if path.exists() else 0

    def steps(self, method: str = "sft") -> int:
        path = self.run_of(method) / "logs" / "metrics.jsonl"
        text = path.read_text().splitlines() if path.exists() else []
        return json.loads(text[-1])["step"] if text else 0

    def job_at_step(self, step: int, method: str = "sft") -> str:
        """The job that trains, once it has come to a step."""
        folder = self.run_of(method) / "slurm"
        until(lambda: self.steps(method) >= step and (folder / "attempt.json").exists(), f"step {step} of {method}")
        return json.loads((folder / "attempt.json").read_text())["job_id"]

    def ranks(self, method: str = "sft") -> list[int]:
        """Process ids of the ranks of a run."""
        task = f"tasks/{self.run_of(method).resolve().name}.json"
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().split(b"\0")
                where = os.readlink(path.with_name("cwd"))
            except OSError:
                continue
            if (
                b"post_training.commands.rank" in words
                and any(task in w.decode() for w in words)
                and where == str(self.path)
            ):
                found.append(int(path.parent.name))
        return found

    def weights(self, method: str = "sft") -> bytes:
        manifest = json.loads((self.run_of(method) / "manifest.json").read_text())
        return (self.run_of(method) / manifest["final_checkpoint"] / "model.safetensors").read_bytes()

    def model(self, method: str = "sft") -> bytes:
        """The exported weights."""
        return (self.run_of(method) / "model" / "model.safetensors").read_bytes()

    def story(self) -> str:
        """Everything that happened, for a failed assertion."""
        text = ""
        for path in sorted(self.path.glob("outputs/**/slurm/*")):
            if path.suffix in (".out", ".err", ".jsonl"):
                text += f"--- {path.relative_to(self.path)}\n{path.read_text()[-1500:]}\n"
        return text


def configuration(**changes: Any) -> dict[str, Any]:
    """SFT of a model of two layers on two CPU ranks in place of GPUs; steps of about a third of a second."""
    config: dict[str, Any] = {
        "method": "sft",
        "run_name": "tiny",
        "offline": True,
        "model": {
            "dtype": "float32",
            "from_scratch": {
                "config": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
                           "max_position_embeddings": 512},
                "vocab_size": 400,
                "corpus": ["demo/sft_train.jsonl"],
            },
        },
        "training": {"max_steps": 24, "effective_batch_size": 16, "per_device_train_batch_size": 1,
                     "gradient_checkpointing": False, "learning_rate": 1e-3},
        "data": {"datasets": [{"name": "instructions", "path": "demo/sft_train.jsonl"}], "num_proc": 1},
        "checkpointing": {"save_steps": 4},
        "logging": {"logging_steps": 1, "report_to": ["none"]},
        "accelerate": {"use_cpu": True},
        "sft": {"max_seq_length": 64},
        "slurm": {"partition": "gpu", "gpus_per_node": 2, "cpus_per_gpu": 1, "mem": "2G", "wall_time": "00:30:00",
                  "signal_time_seconds": 60, "cpu": {"cpus_per_task": 1, "mem": "1G", "wall_time": "00:10:00"}},
    }  # fmt: skip
    for key, value in changes.items():
        *parents, last = key.split("__")
        tree = config
        for part in parents:
            tree = tree.setdefault(part, {})
        tree[last] = value
    return config
