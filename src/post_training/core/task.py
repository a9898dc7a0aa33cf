"""One job of the graph as its body sees it, and the file that tells it."""

import contextlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from post_training.core import manifest
from post_training.core.errors import UserError
from post_training.core.fingerprint import write_atomically
from post_training.core.secrets import mask


@dataclass
class Task:
    """What a stage's `run` gets: what to make, from what, and where.

    The manifest (`output`) is the only file that Snakemake knows of. Everything else in
    `directory` is the stage's own, survives a failed attempt, and counts only once the manifest exists.
    """

    stage: str
    config: dict[str, Any]
    """The keys that decide the result."""
    runtime: dict[str, Any]
    """What else the job needs to know, such as worker processes; never decides the result."""
    inputs: dict[str, Path]
    """Name -> manifest of that input."""
    output: Path
    spec: dict[str, Any] = field(default_factory=dict)
    """The stage as planned: `stage`, `fingerprint`, `config`, `inputs` (name -> fingerprint)."""
    started: float = field(default_factory=time.time)
    file: Path | None = None
    """Where this task is written, so that other processes can read it."""

    @classmethod
    def of(cls, spec: dict[str, Any], runtime: dict[str, Any], inputs: dict[str, Path], output: Path) -> "Task":
        """The task of a planned stage."""
        return cls(spec["stage"], spec["config"], runtime, inputs, output, spec)

    @classmethod
    def read(cls, path: Path) -> "Task":
        """The inverse of `write`. Raises UserError when there is no such file."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            problem = f"{path}: no task of a stage ({error}); snakemake writes it before its jobs start"
            raise UserError(problem) from None
        inputs = {name: Path(manifest_path) for name, manifest_path in content["inputs"].items()}
        task = cls.of(content["spec"], content["runtime"], inputs, Path(content["output"]))
        task.file = path
        return task

    def write(self, path: Path) -> Path:
        """Write the task for another process; an equal file is left as it is."""
        content = {
            "spec": self.spec,
            "runtime": self.runtime,
            "inputs": {name: str(manifest_path) for name, manifest_path in self.inputs.items()},
            "output": str(self.output),
        }
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_atomically(path, text)
        self.file = path
        return path

    def saved(self) -> Path:
        """The file of this task; `logs/task.json` of its directory where snakemake has written none."""
        return self.file or self.write(self.directory / "logs" / "task.json")

    @property
    def directory(self) -> Path:
        """The stage's directory."""
        return self.output.parent

    def keep_error(self, message: str | None) -> None:
        """Keep why this job failed where `error_of` finds it; None forgets an earlier attempt's."""
        if self.file is None:
            return
        with contextlib.suppress(OSError):  # of a full disk, say, which the message is about
            if message is None:
                _error_file(self.file).unlink(missing_ok=True)
            else:
                write_atomically(_error_file(self.file), mask(message.rstrip()) + "\n")

    def input_manifest(self, name: str) -> manifest.Manifest:
        """The content of one input's manifest."""
        return manifest.read(self.inputs[name])

    def finish(self, **facts: Any) -> None:
        """Write the manifest: from now on the stage exists."""
        manifest.write(self.output, self.spec, self.inputs, self.started, **facts)


def task_file(base: Path, output: Path) -> Path:
    """Where the task of a stage is: `<output base>/tasks/<stage's directory>.json`, which no stage ever clears."""
    return base / "tasks" / output.parent.relative_to(base).with_suffix(output.parent.suffix + ".json")


def error_of(task_file: Path) -> str:
    """Why the last attempt at a task failed, as it said itself; empty where it did not, because it was killed for instance."""
    try:
        return _error_file(task_file).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _error_file(task_file: Path) -> Path:
    return task_file.with_suffix(".error")
