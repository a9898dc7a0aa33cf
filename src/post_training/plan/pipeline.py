"""The stages of a pipeline, and the ones that a person asks for. Light."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from post_training.config.load import Pipeline
from post_training.plan.stage import Stage

if TYPE_CHECKING:
    from post_training.plan.graph import Graph


@dataclass
class Plan:
    """All stages of a pipeline, by kind, and the ones that a person asks for."""

    pipeline: Pipeline
    graph: "Graph"
    run_name: str
    stages: dict[str, dict[str, Stage]] = field(default_factory=dict)
    """Kind -> the rule's wildcard -> stage: this run's, which others may share."""
    trained: dict[str, Stage] = field(default_factory=dict)
    """Name of a stage in the configuration -> its training, first to last."""
    exported: dict[str, Stage] = field(default_factory=dict)
    mixed: dict[str, Stage] = field(default_factory=dict)
    evaluated: dict[str, Stage] = field(default_factory=dict)
    """`base` and each name -> the evaluation of that model."""
    lm_evaluated: dict[str, Stage] = field(default_factory=dict)
    """The same names -> lm-evaluation-harness on that model, where it is asked for tasks."""
    carded: dict[str, Stage] = field(default_factory=dict)
    """Each name -> its model card with the evaluation, where there is one."""
    published: dict[str, Stage] = field(default_factory=dict)
    """The last name -> its model on the Hub, where that is asked for."""
    report: Stage | None = None
    preflights: dict[str, Stage] = field(default_factory=dict)
    """By place, `local` or `slurm`: what must have passed there before a GPU rule starts; runs on the same data share it."""
    probes: dict[str, Stage] = field(default_factory=dict)
    """Name of a stage -> a few steps of it on one device."""

    @property
    def base(self) -> Path:
        """Folder of all results."""
        return self.graph.base

    def add(self, stage: Stage) -> Stage:
        """Register a stage; an equal one takes its place."""
        one = self.graph.add(stage, self)
        return self.stages.setdefault(one.kind, {}).setdefault(one.wildcard, one)

    def view_of(self, stage: Stage) -> dict[str, Any]:
        """The flat configuration that a job belongs to; of data, which several may share, the last one."""
        for name, trained in self.trained.items():
            if any(
                stage is own
                for own in (trained, self.exported[name], trained.inputs.get("reference"), self.probes.get(name))
            ):
                return self.pipeline.views[name]
        return self.pipeline.last

    def links(self) -> dict[str, str]:
        """Name of each link below the base -> the run directory that it leads to."""
        named = {f"{self.run_name}-{name}": stage.directory for name, stage in self.trained.items()}
        return named | {self.run_name: list(self.trained.values())[-1].directory}
