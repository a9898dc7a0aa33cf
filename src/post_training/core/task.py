"""One job of the graph as its body sees it. Light."""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from post_training.core import manifest


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
    started: float = field(default_factory=time.time)

    @classmethod
    def parse(cls, spec: str, runtime: str, inputs: list[str], output: str) -> "Task":
        """From the command line of a rule; `inputs` are in the order of the spec's names.

        `@file` is a spec, with the inputs' `paths`, or a runtime that is too long for a command line.
        """
        told = _loaded(spec)
        names, inputs = list(told["inputs"]), told.pop("paths", inputs)
        if len(names) != len(inputs):
            raise ValueError(f"{told['stage']}: expected {len(names)} inputs {names}, got {len(inputs)}")
        paths = {name: Path(path) for name, path in zip(names, inputs, strict=True)}
        return cls(told["stage"], told["config"], _loaded(runtime), paths, Path(output), told)

    @property
    def directory(self) -> Path:
        """The stage's directory."""
        return self.output.parent

    def input_manifest(self, name: str) -> manifest.Manifest:
        """The content of one input's manifest."""
        return manifest.read(self.inputs[name])

    def finish(self, **facts: Any) -> None:
        """Write the manifest: from now on the stage exists."""
        manifest.write(self.output, self.spec, self.inputs, self.started, **facts)


def _loaded(text: str) -> dict[str, Any]:
    return dict(json.loads(Path(text[1:]).read_text(encoding="utf-8") if text.startswith("@") else text))
