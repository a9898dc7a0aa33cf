"""The stages of one run (`Plan`) and of all runs of a configuration, equal ones once (`Graph`)."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from post_training.config.load import Pipeline
from post_training.core.errors import UserError
from post_training.core.stages import STAGES
from post_training.plan.stage import Stage


@dataclass
class Plan:
    """All stages of a pipeline, by kind, and the ones that a user asks for."""

    pipeline: Pipeline
    graph: "Graph"
    run_name: str
    stages: dict[str, dict[str, Stage]] = field(default_factory=dict)
    """Kind -> the rule's wildcard -> stage: this run's, which others may share."""
    trained: dict[str, Stage] = field(default_factory=dict)
    """Name of a stage in the configuration -> its training, first to last."""
    exported: dict[str, Stage] = field(default_factory=dict)
    bases: dict[str, Stage] = field(default_factory=dict)
    """The same names -> the model that the first stage of their chain starts from."""
    mixed: dict[str, Stage] = field(default_factory=dict)
    evaluated: dict[str, Stage] = field(default_factory=dict)
    """`base` and each name -> the evaluation of that model."""
    lm_evaluated: dict[str, Stage] = field(default_factory=dict)
    """The same names -> lm-evaluation-harness on that model, where it is asked for tasks."""
    cards: dict[str, Stage] = field(default_factory=dict)
    """Each name -> its model card with the evaluation, where there is one."""
    published: dict[str, Stage] = field(default_factory=dict)
    """The last name -> its model on the Hub, where that is asked for."""
    report: Stage | None = None
    preflights: dict[str, Stage] = field(default_factory=dict)
    """By place, `local` or `slurm`: what must have passed there before a GPU rule starts; runs on the same data share it. That of a
    training on what a trained model wrote is `local NAME` or `slurm NAME`."""
    probes: dict[str, Stage] = field(default_factory=dict)
    """Name of a stage -> a few steps of it on one device."""

    @property
    def base(self) -> Path:
        """Folder of all results."""
        return self.graph.base

    def title(self, name: str) -> str:
        """What the model of a stage is called: the run's name, with the stage's for all but the last."""
        return self.run_name if name == self.pipeline.stages[-1] else f"{self.run_name}-{name}"

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

    def name_of(self, stage: Stage) -> str:
        """The name of the training that a stage is of, itself or its reference; of any other stage, the last one."""
        own = (name for name, trained in self.trained.items() if stage in (trained, trained.inputs.get("reference")))
        return next(own, self.pipeline.stages[-1])

    def of_trainings(self) -> Iterator[tuple[str, Stage]]:
        """Each training's name with itself and what is made for it or of it alone."""
        for name, trained in self.trained.items():
            own = (
                found.get(name) for found in (self.mixed, self.evaluated, self.lm_evaluated, self.cards, self.probes)
            )
            # A preflight of several trainings is called by the last one, as its directory is.
            checks = (stage for stage in self.preflights.values() if [*stage.inputs][-1].split()[0] == name)
            for stage in (trained, self.exported[name], trained.inputs.get("reference"), *own, *checks):
                if stage is not None:
                    yield name, stage

    def links(self) -> dict[str, str]:
        """Name of each link below the base -> the run directory that it leads to."""
        named = {f"{self.run_name}-{name}": stage.directory for name, stage in self.trained.items()}
        return named | {self.run_name: list(self.trained.values())[-1].directory}


@dataclass
class Graph:
    """What one invocation of Snakemake is about."""

    base: Path
    """Folder of all results."""
    plans: dict[str, Plan] = field(default_factory=dict)
    """Run name -> its pipeline."""
    stages: dict[str, dict[str, Stage]] = field(default_factory=dict)
    """Kind -> the rule's wildcard -> stage."""
    comparison: Stage | None = None
    """The page of all runs, where there are several."""
    named: dict[str, Plan] = field(default_factory=dict)
    """Name of a link -> the run that it is of."""
    distinct: dict[str, Plan] = field(default_factory=dict)
    """Fingerprint of a run's page, which everything that the run makes decides -> the first such run."""
    _first: dict[str, Plan] = field(default_factory=dict)
    """Directory of a stage -> the first run that it belongs to."""

    def add(self, stage: Stage, plan: Plan) -> Stage:
        """Register a stage of a run; equal stages of two branches, or of two runs, are one."""
        one = self.stages.setdefault(stage.kind, {}).setdefault(stage.wildcard, stage)
        if one.fingerprint != stage.fingerprint:
            raise UserError(f"{one.directory}: two stages have this name; give one of their datasets another name")
        self._first.setdefault(one.directory, plan)
        return one

    def plan_of(self, stage: Stage) -> Plan:
        """The first run that a stage belongs to."""
        return self._first.get(stage.directory) or self.first

    def links(self) -> dict[str, str]:
        """Name of each link below the base -> the directory that it leads to."""
        found = {name: directory for plan in self.plans.values() for name, directory in plan.links().items()}
        if self.comparison is not None:
            found[self.comparison.label] = self.comparison.directory
        return found

    def pages(self) -> dict[str, str]:
        """Name of a link below the base to each run's page -> the page below it: `<run_name>/report.html`."""
        runs = [(list(plan.trained.values())[-1].directory, plan.report) for plan in self.plans.values()]
        return {f"{directory}/report.html": f"{page.directory}/report.html" for directory, page in runs if page}

    def label_of(self, stage: Stage) -> str:
        """What a user calls it: `dpo2-llama`, and of several runs `dpo2 beta0.3` where it is one run's alone."""
        return self._labels.get(stage.directory, stage.label)

    @cached_property
    def _labels(self) -> dict[str, str]:
        """Directory -> label, of what is made for one training: directories are named by method, and two may have the same."""
        users: dict[str, int] = {}
        for plan in self.plans.values():
            for directory in {stage.directory for stages in plan.stages.values() for stage in stages.values()}:
                users[directory] = users.get(directory, 0) + 1
        found: dict[str, str] = {}
        for plan in self.plans.values():
            for name, stage in plan.of_trainings():
                method = str(plan.pipeline.views[name]["method"])
                label = (plan.trained[name].label if stage.kind == "export" else stage.label).removeprefix(method)
                own = len(self.plans) > 1 and users.get(stage.directory) == 1
                found.setdefault(stage.directory, f"{name} {plan.pipeline.run.name}" if own else f"{name}{label}")
        return found

    def every(self, what: str) -> list[Stage]:
        """Stages of all runs, each once: `mixed`, `trained`, `exported`, `evaluated`, `lm_evaluated`, `cards`, `published`."""
        stages = [stage for plan in self.plans.values() for stage in getattr(plan, what).values()]
        return list({stage.directory: stage for stage in stages}.values())

    @property
    def reports(self) -> list[Stage]:
        """Each run's page, and the page of all."""
        pages = [*(plan.report for plan in self.plans.values()), self.comparison]
        return [page for page in pages if page is not None]

    @property
    def first(self) -> Plan:
        """The first run; the only one of a configuration without `runs` and `sweep`."""
        return next(iter(self.plans.values()))

    def describe(self) -> str:
        """`6 runs: 41 stages, 14 of them shared (96 if each run had its own); 27 are yet to be made`."""
        users: dict[str, int] = {}
        for plan in self.plans.values():
            for stages in (stages for kind, stages in plan.stages.items() if STAGES[kind].is_result):
                for stage in stages.values():
                    users[stage.directory] = users.get(stage.directory, 0) + 1
        shared = sum(number > 1 for number in users.values())
        missing = sum(not (self.base / directory / "manifest.json").exists() for directory in users)
        return (
            f"{len(self.plans):,} runs: {len(users):,} stages, {shared:,} of them shared "
            f"({sum(users.values()):,} if each run had its own); {missing:,} are yet to be made"
        )
