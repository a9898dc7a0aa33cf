"""A stage's job as `job.sh`: readable, and `sbatch job.sh` resumes it by hand."""

import os
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from post_training.core.stages import STAGES
from post_training.run_dir import attempts
from post_training.slurm import placement
from post_training.slurm.srun import container_command, exports


@dataclass(frozen=True)
class StageJob:
    """One job of the graph, as it goes to Slurm."""

    kind: str
    """The rule."""
    view: dict[str, Any]
    """The flat configuration that places it."""
    output: Path
    """Its manifest; absolute."""
    command: list[str]
    """What makes it."""
    resources: dict[str, Any] = field(default_factory=dict)

    @property
    def directory(self) -> Path:
        """The stage's directory."""
        return self.output.parent

    @property
    def folder(self) -> Path:
        """Its `slurm/`."""
        return attempts.folder_of(self.directory)

    @property
    def script(self) -> Path:
        """`job.sh`."""
        return self.folder / "job.sh"

    @property
    def name(self) -> str:
        """What the queue shows: the stage's folder; an export is named after its run."""
        own = self.directory.name if self.directory.name != "model" else f"export-{self.directory.parent.name}"
        prefix = self.view["slurm"]["job_name"]
        return f"{prefix}-{own}" if prefix else own

    @property
    def max_failures(self) -> int:
        """Failures after which it is still submitted again."""
        return int(self.view["slurm"]["max_failures"])

    @property
    def wait_seconds(self) -> int:
        """How long Slurm may be away."""
        return int(self.view["slurm"]["wait_seconds"])

    @property
    def options(self) -> list[str]:
        """Every option of `sbatch`."""
        folder = str(self.folder).replace("%", "%%")  # else Slurm reads a pattern
        return [
            f"--job-name={self.name}",
            *placement.options(self.resources, self.view, self.kind),
            f"--chdir={os.getcwd()}",
            f"--output={folder}/slurm-%j.out",
            f"--error={folder}/slurm-%j.err",
            "--open-mode=append",
        ]

    def sbatch_line(self) -> str:
        """The command line that submits it."""
        return shlex.join(["sbatch", *self.options, str(self.script)])


def stage_command(task: str | Path) -> list[str]:
    """What the rule's shell line calls, as words."""
    return [sys.executable, "-m", "post_training", "stage", str(task)]


def script(job: StageJob) -> str:
    """The text of `job.sh`."""
    slurm = job.view["slurm"]
    # Ranks get their container from the launcher, which calls srun and stays outside.
    inside = STAGES[job.kind].place == "gpu"
    command = container_command(job.view, job.command) if inside else job.command
    attempt = [sys.executable, "-m", "post_training.slurm.attempt", "--output", str(job.output)]
    attempt += ["--max-failures", str(job.max_failures), "--wait-seconds", str(job.wait_seconds), "--"]
    lines = ["#!/bin/bash", *(f"#SBATCH {_quoted(option)}" for option in job.options), ""]
    lines += [
        f"# {job.name}: written at each submission. By hand, from the same environment: sbatch {shlex.quote(str(job.script))}"
    ]
    lines += [f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH PYTHONUNBUFFERED=1"]
    if os.environ.get("PYTHONPATH"):
        lines.append(f"export PYTHONPATH={shlex.quote(os.environ['PYTHONPATH'])}")
    lines.append("# Everything was downloaded before this job was submitted; nodes may have no network.")
    lines.append("export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_DATASETS_OFFLINE=1")
    if slurm["modules"]:
        lines.append("command -v module >/dev/null || . /etc/profile")
        lines.append(f"module load {shlex.join(slurm['modules'])} || exit 1")
    if slurm["env"]:
        lines.append(exports(job.view))
    lines += [f"cd {shlex.quote(os.getcwd())} || exit 1", f"exec {_folded([*attempt, *command])}", ""]
    return "\n".join(lines)


def _quoted(option: str) -> str:
    """An option as `#SBATCH` lines need it: they know double quotes."""
    name, equals, value = option.partition("=")
    plain = not any(character in value for character in " \t'\"#\\")
    return option if plain else f'{name}{equals}"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _folded(words: list[str]) -> str:
    """A command line with each option on a line of its own."""
    text = ""
    for word in words:
        text += f" \\\n    {shlex.quote(word)}" if word.startswith("--") else f" {shlex.quote(word)}"
    return text.strip()
