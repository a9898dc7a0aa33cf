"""What the Snakefile asks of the plan: names, inputs and parameters of each rule's stage. Light.

Kept out of the `.smk` files so that it can be typed and tested.
"""

import gc
import importlib.util
import inspect
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from snakemake.io import ancient

from post_training.config import batch, resolve_runs
from post_training.config.trees import beside
from post_training.core.errors import UserError
from post_training.core.fingerprint import canonical, write_atomically
from post_training.core.stages import STAGES
from post_training.launch.processes import SNAKEMAKE
from post_training.plan import Graph, Plan, Stage, make_graph
from post_training.plan.preflight import LOCAL, SLURM
from post_training.slurm import placement
from post_training.slurm.job import StageJob, stage_command
from post_training.workflow.links import point_links
from post_training.workflow.unlock import release_stale_lock

_LISTED = 100
Inputs = Callable[[Any], list[Any]]


class WorkflowPlan:
    """The plan of one Snakemake invocation."""

    def __init__(self, workflow: Any, config: Mapping[str, Any]) -> None:
        self.workflow = workflow
        for file in workflow.config_settings.configfiles or ():
            config = beside(config, Path(os.path.relpath(file)).parent)
        gc.disable()
        try:
            self.graph: Graph = make_graph(resolve_runs(config, _own_command_line(workflow, config)))
        except UserError as error:
            raise SystemExit(str(error)) from None
        finally:
            gc.enable()
        gc.freeze()  # the plan of thousands of runs stays: looking through it for garbage again and again takes seconds
        self._announced: set[str] = set()
        if self._is_main():
            _use_our_slurm_executor(self.slurm_job)
            if len(self.graph.plans) > 1:
                print(self.graph.describe(), file=sys.stderr)
            if not getattr(workflow.output_settings, "dryrun", False):
                release_stale_lock()
                self._discard_debug_runs()
                point_links(self.graph)

    @property
    def shell_prefix(self) -> str:
        """Jobs run under this interpreter, and their lines are seen when they are written.

        Setting a prefix takes Snakemake's own strict mode away, and `job | tee log` would always succeed.
        """
        folder = shlex.quote(str(Path(sys.executable).parent))
        return f"set -euo pipefail; export PATH={folder}:$PATH PYTHONUNBUFFERED=1 {SNAKEMAKE}=$PPID; "

    @property
    def data_threads(self) -> int:
        """Cores of a tokenising job."""
        wanted = [
            view["data"]["num_proc"] for plan in self.graph.plans.values() for view in plan.pipeline.views.values()
        ]
        cores = self.workflow.resource_settings.cores or os.cpu_count() or 1
        return max(1, min([cores, *[n for n in wanted if n]]))

    @property
    def train_threads(self) -> int:
        """All cores of this machine."""
        return self.workflow.resource_settings.cores or os.cpu_count() or 1

    def manifests(self, *stages: Stage | None) -> list[str]:
        """The files that exist when these stages are whole."""
        return [f"{self.graph.base}/{stage.manifest}" for stage in stages if stage]

    def names(self, kind: str) -> str:
        """A wildcard constraint: exactly the planned stages of this kind; of thousands, their form."""
        names = list(self.graph.stages.get(kind, {}))
        if len(names) > _LISTED:  # Snakemake searches the text of the constraint for every file
            return "[^/]+[-@][0-9a-f]+"
        return "|".join(map(re.escape, names)) or "(?!)"

    def inputs(self, kind: str, wildcard: str = "stage") -> Inputs:
        """Input function of a rule. Ancient: whether an input is newer says nothing, its path says everything."""

        def function(wildcards: Any) -> list[Any]:
            stage = self._stage(kind, wildcard, wildcards)
            # Sorted, as in the spec, whose JSON names them in that order.
            paths = self.manifests(*(stage.inputs[name] for name in sorted(stage.inputs)))
            if (self.graph.base / stage.manifest).exists():
                # A whole stage needs nothing: tokens stay although the weights beside their tokenizer are yet to come.
                paths = [path for path in paths if Path(path).exists()]
            return [ancient(path) for path in paths]

        return _signed(function)

    def _preflight(self, plan: Plan) -> Stage:
        """The preflight that covers a run, of where the GPU rules of this invocation run."""
        return plan.preflights[SLURM if self._on_slurm() else LOCAL]

    def preflight_manifests(self, wildcards: Any) -> list[str]:
        """Input function of the target `preflight`."""
        return list(dict.fromkeys(self.manifests(*map(self._preflight, self.graph.plans.values()))))

    def demanded_preflight(self, kind: str, wildcard: str = "stage") -> Inputs:
        """What must have passed before a GPU rule starts; a stage that is whole asks for none, and so is never stale by it."""

        def function(wildcards: Any) -> list[Any]:
            stage = self._stage(kind, wildcard, wildcards)
            whole = (self.graph.base / stage.manifest).exists()
            return (
                [] if whole else [ancient(path) for path in self.manifests(self._preflight(self.graph.plan_of(stage)))]
            )

        return _signed(function)

    def push_inputs(self, wildcards: Any) -> list[Any]:
        """Input function of `push`: without a token nothing is begun that would end there."""
        stage = self._stage("push", "stage", wildcards)
        if self._is_main() and not (self.graph.base / stage.manifest).exists():
            from post_training.release.publish import check_token

            try:
                check_token()
            except UserError as error:
                raise SystemExit(str(error)) from None
        return self.inputs("push")(wildcards)

    def train_inputs(self, wildcards: Any) -> list[Any]:
        """Input function of `train`, where the devices are known for the first time: the batch must divide over them."""
        stage = self._stage("train", "run", wildcards)
        view = self._view_of(stage)
        whole = (self.graph.base / stage.manifest).exists()
        if not whole and self._is_main():
            method = view["method"]
            topology = batch.slurm_topology(view) if self._on_slurm() else batch.local_topology(view)
            try:
                line = batch.batch_plan(view, method, topology).describe(
                    batch.steps(view, method), view["training"]["num_train_epochs"]
                )
            except UserError as error:
                raise SystemExit(str(error)) from None
            self._announce(f"{view['stage']}: {line}")
        return self.inputs("train", "run")(wildcards)

    def spec(self, kind: str, wildcard: str = "stage") -> Callable[[Any], str]:
        """What the job is told to make; Snakemake tracks it, and it is stable for a path."""
        return _signed(lambda wildcards: self._stage(kind, wildcard, wildcards).spec)

    def runtime(self, kind: str, wildcard: str = "stage") -> Callable[[Any, Any], str]:
        """How the job is to run. The argument `resources` makes Snakemake leave it untracked."""

        def function(wildcards: Any, resources: Any) -> str:
            stage = self._stage(kind, wildcard, wildcards)
            self._announce_placement(stage, resources)
            where = {
                "slurm": self._on_slurm(),
                "preflight": f"{self.graph.base}/{self._preflight(self.graph.plan_of(stage)).directory}/preflight.json",
            }
            return canonical({**stage.runtime, **where} if STAGES[kind].place == "ranks" else stage.runtime)

        # Snakemake decides by the parameter's name, which the closure above keeps.
        return _signed(function)

    def resources(self, kind: str, wildcard: str = "stage") -> dict[str, Callable[[Any], Any] | None]:
        """Resources of a rule's jobs under Slurm, by name; on this machine they have none. None: no run gives it."""

        def function(name: str) -> Callable[[Any], Any]:
            def value(wildcards: Any) -> Any:
                if not self._on_slurm():
                    return 0 if name == "mem_mb" else None  # Snakemake knows no absent mem_mb
                return placement.resources(self._view_of(self._stage(kind, wildcard, wildcards)), kind)[name]

            return _signed(value)

        views = [view for plan in self.graph.plans.values() for view in plan.pipeline.views.values()]
        given: dict[str, bool] = {}
        for view in views:
            for name, value in placement.resources(view, kind).items():
                given[name] = given.get(name, False) or value is not None
        return {name: function(name) if some else None for name, some in given.items()}

    def slurm_job(self, job: Any) -> StageJob | None:
        """A job of Snakemake's as one for Slurm; None when it is no stage of this plan."""
        parts = Path(str(job.output[0])).parts if job.output else ()  # a module's prefix stands before the base
        found = (self._by_manifest.get("/".join(parts[start:])) for start in range(len(parts)))
        stage = next(filter(None, found), None)
        if stage is None:
            return None
        return self._slurm_job(
            stage, job.resources, str(job.params.spec), str(job.params.runtime), list(_stages(job.input))
        )

    @cached_property
    def _by_manifest(self) -> dict[str, Stage]:
        return {stage.manifest: stage for stages in self.graph.stages.values() for stage in stages.values()}

    def _slurm_job(self, stage: Stage, resources: Any, spec: str, runtime: str, inputs: list[str]) -> StageJob:
        output = str(self.graph.base / stage.manifest)
        command = stage_command(stage.kind, spec, runtime, [str(path) for path in inputs], output)
        found = {name: resources.get(name) for name in placement.resources(self.graph.first.pipeline.last, stage.kind)}
        return StageJob(stage.kind, self._view_of(stage), Path(output).absolute(), command, found)

    def _announce_placement(self, stage: Stage, resources: Any) -> None:
        """In a dry run, where each GPU rule would run."""
        if not STAGES[stage.kind].on_gpu or not (self.workflow.dryrun and self._on_slurm()):
            return
        job = self._slurm_job(stage, resources, "", "", [])
        shape = placement.describe(job.resources, job.view, stage.kind)
        self._announce(f"{stage.kind} {job.name}: {shape}\n    {job.sbatch_line()}")

    def _announce(self, line: str) -> None:
        """Say a line once, however many runs and calls would say it."""
        if line not in self._announced:
            self._announced.add(line)
            print(line, file=sys.stderr)

    def told_by_file(self, kind: str) -> Callable[[Any], str]:
        """What a job about all runs is told: a file, since thousands of runs do not fit into a command line."""

        def function(wildcards: Any) -> str:
            stage = self._stage(kind, "stage", wildcards)
            path = self.graph.base / stage.directory / ".task.json"  # hidden: no product of the stage
            # Asked of a job when the whole plan stands: one with a mistake writes nothing.
            if not (self.workflow.dryrun or (self.graph.base / stage.manifest).exists()):
                write_atomically(path, canonical(self._told(stage)))
            return f"@{path}"

        return _signed(function)

    def _told(self, stage: Stage) -> dict[str, Any]:
        """The preflight's runtime, or the comparison's spec with the paths of its inputs."""
        if stage.kind == "preflight":
            return stage.runtime
        paths = self.manifests(*(stage.inputs[name] for name in sorted(stage.inputs)))
        return {**json.loads(stage.spec), "paths": paths}

    def finish_run(self) -> None:
        """At the end of a successful run: what was reached, and where it is."""
        from post_training.report.summary import print_summary

        point_links(self.graph)
        print_summary(self.graph)

    def _view_of(self, stage: Stage) -> dict[str, Any]:
        return self.graph.plan_of(stage).view_of(stage)

    def _stage(self, kind: str, wildcard: str, wildcards: Any) -> Stage:
        name = getattr(wildcards, wildcard)
        if name not in self.graph.stages[kind]:
            raise SystemExit(
                f"{name}: no {kind} stage of this configuration has this name; ask for all, data or report"
            )
        return self.graph.stages[kind][name]

    def _is_main(self) -> bool:
        """Whether this is the invocation that a person made, not a job's own."""
        return bool(self.workflow.exec_mode.name == "DEFAULT")

    def _on_slurm(self) -> bool:
        # A dry run has an executor of its own; Snakemake takes this setting from the one that was asked for.
        would = self.workflow.dryrun and self.workflow.execution_settings.use_threads
        return bool(
            self.workflow.remote_exec or would or (self.workflow.executor_plugin and not self.workflow.local_exec)
        )

    def _discard_debug_runs(self) -> None:
        """`debug.override_existing`: forget that debug runs are finished; the trainer wipes them when it starts."""
        view = self.graph.first.pipeline.last
        if not (view["debug"]["enabled"] and view["debug"]["override_existing"]):
            return
        plans = self.graph.plans.values()
        every = [found for plan in plans for found in (plan.evaluated, plan.lm_evaluated)]
        evaluated = [stage for found in every for name, stage in found.items() if name != "base"]
        references = self.graph.stages.get("reference", {}).values()  # of weights that are about to be trained again
        evaluated += self.graph.every("carded")
        for stage in (*evaluated, *self.graph.every("exported"), *self.graph.every("trained"), *references):
            (self.graph.base / stage.manifest).unlink(missing_ok=True)
        for stage in references:
            shutil.rmtree(self.graph.base / stage.directory / "shards", ignore_errors=True)


def _signed(function: Callable[..., Any]) -> Callable[..., Any]:
    """Its signature, which Snakemake looks up several times a job, worked out once."""
    function.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return function


def _stages(inputs: Any) -> Any:
    """The inputs that a job is told of: without what only has to be there before it starts."""
    return inputs.stages if "stages" in dict(inputs.items()) else inputs


def _use_our_slurm_executor(find_job: Callable[[Any], StageJob | None]) -> None:
    """Where the plugin is installed, which an environment without Slurm need not have."""
    if importlib.util.find_spec("snakemake_executor_plugin_slurm"):
        from post_training.slurm.executor import install

        install(find_job)


def _own_command_line(workflow: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """The `--config` entries that are this workflow's: as a module of another one it gets only a part, or none."""
    given = dict(workflow.config_settings.config)
    return {key: value for key, value in given.items() if key in config and _within(value, config[key])}


def _within(part: Any, whole: Any) -> bool:
    if isinstance(part, Mapping) and isinstance(whole, Mapping):
        return all(key in whole and _within(value, whole[key]) for key, value in part.items())
    return bool(part == whole)
