"""A stage: one file target, named by a fingerprint of what decides its content. Light."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from post_training.core.fingerprint import canonical, digest
from post_training.core.stages import STAGES


@dataclass(frozen=True)
class Stage:
    """One file target: what it is made from and where it goes."""

    kind: str
    folder: str
    """Directory of its kind below the output base, `data/raw` for instance."""
    label: str
    config: dict[str, Any]
    """The keys that decide its content."""
    inputs: dict[str, "Stage"] = field(default_factory=dict)
    identity: dict[str, str] | None = None
    """Fingerprints that stand for the inputs where less than the whole input matters."""
    runtime: dict[str, Any] = field(default_factory=dict)
    """What the job needs to know besides; never makes it stale."""
    separator: str = "-"

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over everything that decides the content."""
        inputs = (
            {name: stage.fingerprint for name, stage in self.inputs.items()} if self.identity is None else self.identity
        )
        return digest([self.kind, STAGES[self.kind].version, self.config, inputs])

    @cached_property
    def name(self) -> str:
        """The directory's own name."""
        return f"{self.label}{self.separator}{self.fingerprint[:8]}"

    @property
    def wildcard(self) -> str:
        """What its rule's wildcard matches."""
        return self.name

    @property
    def directory(self) -> str:
        """Directory below the output base."""
        return f"{self.folder}/{self.name}" if self.folder else self.name

    @property
    def manifest(self) -> str:
        """The file that exists when the stage is whole."""
        return f"{self.directory}/manifest.json"

    @cached_property
    def spec(self) -> str:
        """What the job is told, as canonical JSON: stable for a fingerprint, so Snakemake may track it."""
        fingerprints = {name: stage.fingerprint for name, stage in self.inputs.items()}
        return canonical(
            {"stage": self.kind, "fingerprint": self.fingerprint, "config": self.config, "inputs": fingerprints}
        )


class InRunDirectory(Stage):
    """An export: `<run directory>/model`, one for each run whatever its options."""

    @cached_property
    def name(self) -> str:
        """A fixed name, which people and scripts rely on."""
        return "model"

    @property
    def wildcard(self) -> str:
        """The run directory."""
        return self.folder
