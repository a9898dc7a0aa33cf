"""What the rules ask of the plan: names, inputs, tasks, resources. Answers only: nothing here writes, deletes or links."""

import inspect
import os
import re
import sys
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from snakemake.io import ancient

from post_training.config import batch
from post_training.console.jobs import Job as ConsoleJob
from post_training.core.devices import count_gpus
from post_training.core.errors import UserError
from post_training.core.format import for_terminal
from post_training.core.manifest import NAME
from post_training.core.stages import STAGES
from post_training.core.task import Task, task_file
from post_training.plan import Graph, Stage, inference
from post_training.plan.preflight import LOCAL, SLURM
from post_training.run_dir import predictions
from post_training.slurm import placement
from post_training.slurm.job import StageJob, stage_command

# With more stages of a kind, a wildcard constraint describes their form: Snakemake searches its text for every file.
_LISTED = 100
Inputs = Callable[[Any], list[Any]]


class Lookup:
    """The planned stages, by rule and wildcard, of one Snakemake invocation."""

    def __init__(self, graph: Graph, workflow: Any) -> None:
        self.graph, self.workflow = graph, workflow
        self.overrides: bool = graph.first.pipeline.last["debug"]["override_existing"]
        """Whether debug runs that exist are trained again."""
        self._session = f"{os.uname().nodename} {os.getpid()} {time.time():.0f}"
        self._announced: set[str] = set()

    def manifests(self, *stages: Stage | None) -> list[str]:
        """The files that exist when these stages are complete."""
        return [f"{self.graph.base}/{stage.manifest}" for stage in stages if stage]

    def every(self, *what: str) -> list[str]:
        """Manifests of stages of all runs: `mixed`, `trained`, `exported`, ..., as `Graph.every` names them."""
        return self.manifests(*(stage for name in what for stage in self.graph.every(name)))

    def names(self, kind: str) -> str:
        """A wildcard constraint: exactly the planned stages of this kind; of very many, their form."""
        names = list(self.graph.stages.get(kind, {}))
        return "[^/]+[-@][0-9a-f]+" if len(names) > _LISTED else "|".join(map(re.escape, names)) or "(?!)"

    def inputs(self, role: str) -> Inputs:
        """Input function: manifests of a stage's inputs in one role, `model` for instance.

        Ancient: whether an input is newer says nothing, its path says everything.
        """

        def function(wildcards: Any) -> list[Any]:
            stage = self._stage(wildcards)
            found = [stage.inputs[name] for name in sorted(stage.inputs) if _role(stage.kind, name) == role]
            if self._is_complete(stage):
                # It needs nothing: tokens stay although the weights beside their tokenizer are yet to come.
                found = [one for one in found if self._is_complete(one)]
            return [self._input(one) for one in found]

        return _signed(function)

    def _input(self, stage: Stage) -> Any:
        (path,) = self.manifests(stage)
        again = self.overrides and stage.kind in ("train", "export", "reference")
        return path if again else ancient(path)

    def passed(self, wildcards: Any) -> list[Any]:
        """Input function: the preflight that must have passed before this stage.

        A complete stage asks for none, and so is never stale by it. Ends with one line where the stage cannot run.
        """
        stage = self._stage(wildcards)
        if self._is_complete(stage):
            return []
        if self.is_main():
            self._check(stage)
        return [ancient(path) for path in self.manifests(self._preflight(stage))]

    def token(self, wildcards: Any) -> list[Any]:
        """Input function of `push`, without a file: ends with one line where HF_TOKEN is missing, before anything is begun."""
        if self.is_main() and not self._is_complete(self._stage(wildcards)):
            from post_training.release.publish import check_token

            _or_exit(check_token)
        return []

    def preflights(self, wildcards: Any) -> list[str]:
        """Input function of the target `preflight`: all that need no training first."""
        found = (plan.preflights.get(self._place) for plan in self.graph.plans.values())
        return list(dict.fromkeys(self.manifests(*found)))

    def label(self, column: str) -> Callable[[Any], dict[str, str]]:
        """Labels of a page in Snakemake's report: its name without the fingerprint."""
        return lambda wildcards: {column: wildcards.stage.rpartition("-")[0]}

    def task(self, wildcards: Any, output: Any) -> str:
        """The file that tells a job what to do. The argument `output` makes Snakemake leave it untracked."""
        found = self._find(output)
        if found is None:
            raise SystemExit(f"{output[0]}: no stage of this configuration; ask for all, data or report")
        return str(task_file(found[0], Path(output[0])))

    @property
    def resources(self) -> dict[str, Callable[[Any], Any]]:
        """Resources of a job under Slurm, by name, as functions; on this machine it has none."""

        def function(name: str) -> Callable[[Any], Any]:
            def value(wildcards: Any) -> Any:
                stage = self._stage(wildcards)
                if not self.on_slurm() or STAGES[stage.kind].place == "local":
                    return 0 if name == "mem_mb" else None  # Snakemake knows no absent mem_mb
                view = self._view(stage)
                return placement.resources(view, stage.placed_as, inference.gpus(stage, self.graph.base, view))[name]

            return _signed(value)

        return {name: function(name) for name in placement.RESOURCES}

    def threads(self, wildcards: Any) -> int:
        """Cores of a job on this machine: all of one that trains or is on a GPU, since they must not share its devices.

        Without a GPU a job beside training has half of them, and one with worker processes `data.num_proc`.
        """
        stage, cores = self._stage(wildcards), self.workflow.resource_settings.cores or os.cpu_count() or 1
        match STAGES[stage.kind].place:
            case "ranks":
                return cores
            case "gpu":
                # A probe measures, so that nothing may run beside it.
                return cores if count_gpus() or stage.kind == "preflight_probe" else max(1, cores // 2)
        return min(cores, stage.runtime["num_proc"] or cores) if "num_proc" in stage.runtime else 1

    def task_of(self, job: Any) -> Task | None:
        """What a job of Snakemake's is to do; None when it is no stage of this plan."""
        found = self._find(job.output)
        if found is None:
            return None
        base, stage = found
        if STAGES[stage.kind].place != "ranks":
            return stage.task(base)
        checked = base / self._preflight(stage).directory / predictions.FILE
        override = {"override": self._session} if self.overrides else {}
        return stage.task(base, slurm=self.on_slurm(), preflight=str(checked), **override)

    def console_job(self, job: Any, task: Task, task_file: Path) -> ConsoleJob:
        """A job of Snakemake's as the console shows it."""
        _, stage = self._find(job.output) or (None, None)
        assert stage is not None
        label = self.graph.label_of(stage)
        checked = task.runtime.get("preflight")
        log = Path(job.log[0]) if job.log else task_file
        return ConsoleJob(stage.kind, label, Path(job.output[0]), task_file, log, Path(checked) if checked else None)

    def is_stage(self, path: Any) -> bool:
        """Whether a file is in the directory of a stage of this plan, as a manifest is, and a report's page."""
        return self._find([str(Path(path).with_name(NAME))]) is not None

    def slurm_job(self, job: Any) -> StageJob | None:
        """A job of Snakemake's as one for Slurm; None when it is no stage of this plan."""
        found = self._find(job.output)
        if found is None:
            return None
        _, stage = found
        view = self._view(stage)
        resources = {name: job.resources.get(name) for name in placement.resources(view, stage.placed_as)}
        return StageJob(
            stage.placed_as, view, Path(job.output[0]).absolute(), stage_command(job.params.task), resources
        )

    def is_main(self) -> bool:
        """Whether this is the invocation that a user made, not a job's own."""
        return bool(self.workflow.exec_mode.name == "DEFAULT")

    def on_slurm(self) -> bool:
        """Whether GPU rules run under Slurm; known once Snakemake has its executor."""
        # A dry run has an executor of its own; Snakemake takes this setting from the one that was asked for.
        would = self.workflow.dryrun and self.workflow.execution_settings.use_threads
        return bool(
            self.workflow.remote_exec or would or (self.workflow.executor_plugin and not self.workflow.local_exec)
        )

    def announce(self, line: str) -> None:
        """Print a line once, however many runs and calls would print it."""
        if line not in self._announced:
            self._announced.add(line)
            print(for_terminal(line), file=sys.stderr)

    def _find(self, output: Any) -> tuple[Path, Stage] | None:
        """A job's outputs -> the folder of all results, behind the prefix of a module, and the planned stage."""
        parts = str(output[0]).split("/") if output else []
        for start in range(len(parts)):
            if stage := self._by_manifest.get("/".join(parts[start:])):
                return Path("/".join(parts[:start])), stage
        return None

    def _check(self, stage: Stage) -> None:
        """Where the devices are known for the first time: the batch must divide over them."""
        if stage.kind != "train":
            return
        view = self._view(stage)
        method = view["method"]

        def described() -> str:
            topology = batch.slurm_topology(view) if self.on_slurm() else batch.local_topology(view)
            plan = batch.batch_plan(view, method, topology)
            return plan.describe(batch.steps(view, method), view["training"]["num_train_epochs"])

        self.announce(f"{view['stage']}: {_or_exit(described)}")

    @property
    def _place(self) -> str:
        return SLURM if self.on_slurm() else LOCAL

    def _preflight(self, stage: Stage) -> Stage:
        """The preflight that covers a stage of `ranks`, for the place where the GPU rules of this invocation run."""
        plan = self.graph.plan_of(stage)
        return plan.preflights.get(f"{self._place} {plan.name_of(stage)}") or plan.preflights[self._place]

    def _stage(self, wildcards: Any) -> Stage:
        """The stage of a rule's job, whatever its kind: names have fingerprints. An export is named by its run, as its training is."""
        ((wildcard, name),) = wildcards.items()
        if (wildcard, name) not in self._by_wildcard:
            raise SystemExit(f"{name}: no stage of this configuration has this name; ask for all, data or report")
        return self._by_wildcard[wildcard, name]

    def _is_complete(self, stage: Stage) -> bool:
        return (self.graph.base / stage.manifest).exists()

    def _view(self, stage: Stage) -> dict[str, Any]:
        return self.graph.plan_of(stage).view_of(stage)

    @cached_property
    def _by_wildcard(self) -> dict[tuple[str, str], Stage]:
        stages = self._by_manifest.values()
        return {("run" if stage.kind == "export" else "stage", stage.wildcard): stage for stage in stages}

    @cached_property
    def _by_manifest(self) -> dict[str, Stage]:
        return {stage.manifest: stage for stages in self.graph.stages.values() for stage in stages.values()}


def _role(kind: str, name: str) -> str:
    """The name that a rule gives to an input of a stage, several of which may have the same role."""
    match kind:
        case "mix":
            return "held_out" if name.startswith("eval:") else "datasets"
        case "filter":
            return name.partition(":")[0]
        case "score" | "score_model" | "select":
            kind_of_input = name.partition(" ")[0]
            return {"prompts": "answers", "score": "scores"}.get(kind_of_input, kind_of_input)
        case "preflight" | "preflight_probe":
            return name.split()[-1]
        case "evaluate":
            return name if name == "model" else "rows"
        case "report":
            return "runs" if name.startswith(("train_", "export_")) else "measures"
        case "card":
            return name.split()[-1]
        case "compare":
            return "reports"
    return name


def _or_exit(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except UserError as error:
        raise SystemExit(for_terminal(str(error))) from None


def _signed(function: Callable[..., Any]) -> Callable[..., Any]:
    """Its signature, which Snakemake looks up several times a job, worked out once."""
    function.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return function
