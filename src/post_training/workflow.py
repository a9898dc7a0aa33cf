"""What the Snakefile asks of the plan: names, inputs and parameters of each rule's stage. Light.

Kept out of the `.smk` files so that it can be typed and tested.
"""

import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from snakemake.io import ancient

from post_training import batch
from post_training.config import resolve
from post_training.errors import UserError
from post_training.fingerprint import canonical
from post_training.links import point_links
from post_training.plan import Plan, Stage, make_plan

Inputs = Callable[[Any], list[Any]]


class WorkflowPlan:
    """The plan of one Snakemake invocation."""

    def __init__(self, workflow: Any, config: Mapping[str, Any]) -> None:
        self.workflow = workflow
        try:
            self.plan: Plan = make_plan(resolve(config, _own_command_line(workflow, config)))
        except UserError as error:
            raise SystemExit(str(error)) from None
        self._announced: set[str] = set()
        if self._is_main() and not getattr(workflow.output_settings, "dryrun", False):
            self._discard_debug_runs()
            point_links(self.plan)

    @property
    def shell_prefix(self) -> str:
        """Jobs run under this interpreter, and their lines are seen when they are written.

        Setting a prefix takes Snakemake's own strict mode away, and `job | tee log` would always succeed.
        """
        folder = shlex.quote(str(Path(sys.executable).parent))
        return f"set -euo pipefail; export PATH={folder}:$PATH PYTHONUNBUFFERED=1; "

    @property
    def data_threads(self) -> int:
        """Cores of a tokenising job."""
        wanted = [view["data"]["num_proc"] for view in self.plan.pipeline.views.values()]
        cores = self.workflow.resource_settings.cores or os.cpu_count() or 1
        return max(1, min([cores, *[n for n in wanted if n]]))

    @property
    def train_threads(self) -> int:
        """All cores of this machine."""
        return self.workflow.resource_settings.cores or os.cpu_count() or 1

    def manifests(self, *stages: Stage | None) -> list[str]:
        """The files that exist when these stages are whole."""
        return [f"{self.plan.base}/{stage.manifest}" for stage in stages if stage]

    def names(self, kind: str) -> str:
        """A wildcard constraint: exactly the planned stages of this kind."""
        names = [re.escape(name) for name in self.plan.stages.get(kind, {})]
        return "|".join(names) or "(?!)"

    def inputs(self, kind: str, wildcard: str = "stage") -> Inputs:
        """Input function of a rule. Ancient: whether an input is newer says nothing, its path says everything."""

        def function(wildcards: Any) -> list[Any]:
            stage = self._stage(kind, wildcard, wildcards)
            # Sorted, as in the spec, whose JSON names them in that order.
            paths = self.manifests(*(stage.inputs[name] for name in sorted(stage.inputs)))
            if (self.plan.base / stage.manifest).exists():
                # A whole stage needs nothing: tokens stay although the weights beside their tokenizer are yet to come.
                paths = [path for path in paths if Path(path).exists()]
            return [ancient(path) for path in paths]

        return function

    def train_inputs(self, wildcards: Any) -> list[Any]:
        """Input function of `train`, where the devices are known for the first time: the batch must divide over them."""
        stage = self._stage("train", "run", wildcards)
        method = stage.config["method"]
        view = self.plan.pipeline.views[method]
        whole = (self.plan.base / stage.manifest).exists()
        if not whole and method not in self._announced and self._is_main():
            self._announced.add(method)
            topology = batch.slurm_topology(view) if self._on_slurm() else batch.local_topology(view)
            try:
                line = batch.batch_plan(view, method, topology).describe(
                    batch.steps(view, method), view["training"]["num_train_epochs"]
                )
            except UserError as error:
                raise SystemExit(str(error)) from None
            print(f"{method}: {line}", file=sys.stderr)
        return self.inputs("train", "run")(wildcards)

    def spec(self, kind: str, wildcard: str = "stage") -> Callable[[Any], str]:
        """What the job is told to make; Snakemake tracks it, and it is stable for a path."""
        return lambda wildcards: self._stage(kind, wildcard, wildcards).spec

    def runtime(self, kind: str, wildcard: str = "stage") -> Callable[[Any, Any], str]:
        """How the job is to run. The argument `resources` makes Snakemake leave it untracked."""

        def function(wildcards: Any, resources: Any) -> str:
            stage = self._stage(kind, wildcard, wildcards)
            return canonical(
                {**stage.runtime, "slurm": self._on_slurm()} if kind in ("train", "reference") else stage.runtime
            )

        # Snakemake decides by the parameter's name, which the closure above keeps.
        return function

    def finish_run(self) -> None:
        """At the end of a successful run: what was reached, and where it is."""
        from post_training.summary import print_summary

        point_links(self.plan)
        print_summary(self.plan)

    def _stage(self, kind: str, wildcard: str, wildcards: Any) -> Stage:
        return self.plan.stages[kind][getattr(wildcards, wildcard)]

    def _is_main(self) -> bool:
        """Whether this is the invocation that a person made, not a job's own."""
        return bool(self.workflow.exec_mode.name == "DEFAULT")

    def _on_slurm(self) -> bool:
        return bool(self.workflow.remote_exec or (self.workflow.executor_plugin and not self.workflow.local_exec))

    def _discard_debug_runs(self) -> None:
        """`debug.override_existing`: forget that debug runs are finished; the trainer wipes them when it starts."""
        view = self.plan.pipeline.last
        if not (view["debug"]["enabled"] and view["debug"]["override_existing"]):
            return
        evaluated = [stage for name, stage in self.plan.evaluated.items() if name != "base"]
        references = self.plan.stages.get("reference", {}).values()  # of weights that are about to be trained again
        for stage in (*evaluated, *self.plan.exported.values(), *self.plan.trained.values(), *references):
            (self.plan.base / stage.manifest).unlink(missing_ok=True)
        for stage in references:
            shutil.rmtree(self.plan.base / stage.directory / "shards", ignore_errors=True)


def _own_command_line(workflow: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """The `--config` entries that are this workflow's: as a module of another one it gets only a part, or none."""
    given = dict(workflow.config_settings.config)
    return {key: value for key, value in given.items() if key in config and _within(value, config[key])}


def _within(part: Any, whole: Any) -> bool:
    if isinstance(part, Mapping) and isinstance(whole, Mapping):
        return all(key in whole and _within(value, whole[key]) for key, value in part.items())
    return bool(part == whole)
