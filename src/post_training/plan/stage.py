"""A stage: one file target, named by a fingerprint of what decides its content."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from post_training.core.fingerprint import digest
from post_training.core.stages import STAGES
from post_training.core.task import Task


@dataclass(frozen=True)
class Stage:
    """One file target: what it is made from and where it goes."""

    kind: str
    label: str
    config: dict[str, Any]
    """The keys that decide its content."""
    inputs: dict[str, "Stage"] = field(default_factory=dict)
    runtime: dict[str, Any] = field(default_factory=dict)
    """What the job needs to know besides; never makes it stale."""
    identity: dict[str, str] | None = None
    """Fingerprints in place of the inputs' own, where less than a whole input decides."""

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over everything that decides the content."""
        inputs = self.identity
        if inputs is None:
            inputs = {name: stage.fingerprint for name, stage in self.inputs.items()}
        return digest([self.kind, STAGES[self.kind].version, self.config, inputs])

    @cached_property
    def name(self) -> str:
        """The directory's own name."""
        separator = "@" if STAGES[self.kind].folder == "models" else "-"
        return f"{self.label}{separator}{self.fingerprint[:8]}"

    @property
    def wildcard(self) -> str:
        """What its rule's wildcard matches."""
        return self.name

    @property
    def placed_as(self) -> str:
        """The kind whose place under Slurm its job has: one that only asks a server elsewhere needs no GPU, as rewards do not."""
        elsewhere = (self.runtime.get("server") or {}).get("url") is not None
        return "score" if self.kind == "generate" and elsewhere else self.kind

    @property
    def directory(self) -> str:
        """Directory below the output base."""
        folder = STAGES[self.kind].folder
        return f"{folder}/{self.name}" if folder else self.name

    @property
    def manifest(self) -> str:
        """The file that exists when the stage is complete."""
        return f"{self.directory}/manifest.json"

    @property
    def spec(self) -> dict[str, Any]:
        """What the job is to make."""
        fingerprints = {name: stage.fingerprint for name, stage in self.inputs.items()}
        return {"stage": self.kind, "fingerprint": self.fingerprint, "config": self.config, "inputs": fingerprints}

    def task(self, base: Path, **runtime: Any) -> Task:
        """Its job's task, with the results below `base`; `runtime` is known only where the job starts."""
        inputs = {name: base / self.inputs[name].manifest for name in sorted(self.inputs)}
        return Task.of(self.spec, self.runtime | runtime, inputs, base / self.manifest)


class Export(Stage):
    """`<run directory>/model`: one for each run whatever its options, at a path that users and scripts rely on."""

    @cached_property
    def name(self) -> str:
        """The directory's own name."""
        return "model"

    @property
    def wildcard(self) -> str:
        """The run directory."""
        return self.inputs["train"].directory

    @property
    def directory(self) -> str:
        """Below the run's own directory."""
        return f"{self.wildcard}/model"
