"""One Snakemake invocation: it plans while the Snakefile is read, and acts only when jobs are about to run and at the end.

`snakemake --summary`, `--list-rules`, `-n`, `--unlock` and the like read the Snakefile, too; they must change nothing.
"""

import copy
import gc
import importlib.util
import io
import logging
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from snakemake.logging import logger

from post_training.config import resolve_runs
from post_training.config.trees import beside
from post_training.console import jobs as console
from post_training.console.command_line import report_command
from post_training.console.handler import SHOW
from post_training.core.errors import UserError
from post_training.core.format import for_terminal
from post_training.core.stages import STAGES
from post_training.plan import Graph, make_graph
from post_training.run_dir.parent import SNAKEMAKE
from post_training.slurm import placement
from post_training.slurm.job import StageJob
from post_training.workflow.export import self_contained
from post_training.workflow.last_call import note_call
from post_training.workflow.links import point_links
from post_training.workflow.lookup import Lookup
from post_training.workflow.unlock import release_stale_lock


class Session:
    """The plan of one invocation (`lookup`), and what is done around its jobs."""

    def __init__(self, workflow: Any, config: Mapping[str, Any]) -> None:
        self.workflow = workflow
        _refuse_deployment(workflow)
        config = _own_config(workflow, config)
        for file in workflow.config_settings.configfiles or ():
            config = beside(config, Path(os.path.relpath(file)).parent)
        command_line = _own_command_line(workflow, config)
        self._call = copy.deepcopy(dict(config)), command_line
        gc.disable()
        try:
            self.graph: Graph = make_graph(resolve_runs(config, command_line))
        except UserError as error:
            raise SystemExit(for_terminal(str(error))) from None
        finally:
            gc.enable()
        gc.freeze()  # the plan of thousands of runs stays: looking through it for garbage again and again takes seconds
        self.lookup = Lookup(self.graph, workflow)
        if self.lookup.is_main():
            _use_our_slurm_executor(self.lookup.slurm_job)
            self._attach()
            if len(self.graph.plans) > 1:
                self.lookup.announce(self.graph.describe())

    @property
    def shell_prefix(self) -> str:
        """Jobs run under this interpreter, and their lines are seen when they are written.

        Setting a prefix takes Snakemake's own strict mode away, and `job | tee log` would always succeed.
        """
        folder = shlex.quote(str(Path(sys.executable).parent))
        return f"set -euo pipefail; export PATH={folder}:$PATH PYTHONUNBUFFERED=1 {SNAKEMAKE}=$PPID; "

    def _attach(self) -> None:
        """Have `execute` call `start`, `write_tasks` and `finish`.

        Not `onstart:` and `onsuccess:`: Snakemake calls neither for the rules of a module, nor when nothing is to be done,
        where links must still lead to the runs that the configuration means.
        """
        workflow, execute, prepare = self.workflow, self.workflow.execute, self.workflow._prepare_dag
        logging.raiseExceptions = False  # with a full disk each line would print that Snakemake's log cannot have it

        def prepare_with_us(*arguments: Any, **keywords: Any) -> None:
            prepare(*arguments, **keywords)
            self._leave_staleness_to_names(workflow.persistence)

        def execute_with_us(executor_plugin: Any, *arguments: Any, **keywords: Any) -> Any:
            self._override_debug_runs()
            console.TARGETS[:] = [
                rule.name for rule in workflow.rules if not rule.has_wildcards() and rule.name != "default"
            ]
            settings = executor_plugin.common_settings
            if settings.local_exec:
                # The profile's `jobs` are for Slurm. With them Snakemake would not count this machine's cores, and two
                # trainings would share its devices.
                workflow.global_resources["_nodes"] = None
            if settings.dryrun_exec or settings.touch_exec:
                stages = [stage for own in self.graph.stages.values() for stage in own.values()]
                console.LABELS.update({f"{self.graph.base}/{one.manifest}": self.graph.label_of(one) for one in stages})
                result = execute(executor_plugin, *arguments, **keywords)
                self.announce_placement()
                return result
            self.start()
            onstart = workflow._onstart  # with a module, of the workflow that uses it

            def write_tasks_first(log: Any) -> None:
                self.write_tasks()
                onstart(log)

            workflow._onstart = write_tasks_first
            with _one_interrupt():
                result = execute(executor_plugin, *arguments, **keywords)
            self.finish()
            return result

        workflow.execute, workflow._prepare_dag = execute_with_us, prepare_with_us
        create_report = workflow.create_report

        def create_report_with_us(*arguments: Any, **keywords: Any) -> Any:
            with self_contained(self.graph):
                return create_report(*arguments, **keywords)

        workflow.create_report = create_report_with_us

    def _leave_staleness_to_names(self, persistence: Any) -> None:
        """A stage's directory is named by all that decides its content: Snakemake must not compare its rule with a record.

        The record has the preflight that a stage waited for, which a complete stage does not ask for, and the rule's text.
        The profile switches that off, but a workflow that uses this one as a module, or a command line, may have another one.
        Without a version, a record counts as one that cannot be compared.
        """
        version = persistence.record_format_version
        persistence.record_format_version = lambda path: None if self.lookup.is_stage(path) else version(path)

    def start(self) -> None:
        """Before Snakemake looks for its lock and for files."""
        if self.workflow.execution_settings.no_hooks:
            raise SystemExit("--no-hooks: the tasks of jobs are written by a hook; leave this option out")
        try:
            release_stale_lock()
        except OSError as error:
            raise SystemExit(
                f"{error.filename or '.snakemake'}: cannot be written ({error.strerror}); make room"
            ) from None
        with self._writing():
            note_call(*self._call)
            point_links(self.graph)

    def write_tasks(self) -> None:
        """Before the first job: a file for each job says what it makes, however long that is; and the console hears of it."""
        console.PLANNED.clear()
        with self._writing():
            self._write_tasks()

    def _write_tasks(self) -> None:
        for job in self.workflow.dag.needrun_jobs():
            task = self.lookup.task_of(job)
            if task is not None:
                file = task.write(Path(job.params.task))
                console.PLANNED[str(job.output[0])] = self.lookup.console_job(job, task, file)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One line where the folder of results cannot be written."""
        try:
            yield
        except OSError as error:
            problem = f"config error: paths.output_base: {error.filename or self.graph.base}: cannot be written"
            raise SystemExit(f"{problem} ({error.strerror}); make room or take another folder") from None

    def finish(self) -> None:
        """After the last job: links, and what was reached, through the log so that it comes after all that was said before."""
        from post_training.report.summary import print_summary

        point_links(self.graph)
        text = Console(file=io.StringIO(), highlight=False)
        report = report_command(sys.argv)
        print_summary(self.graph, text, report)
        logger.info(text.file.getvalue(), extra={SHOW: lambda screen: print_summary(self.graph, screen, report)})  # type: ignore[attr-defined]

    def announce_placement(self) -> None:
        """In a dry run, where each GPU rule would run."""
        if not self.lookup.on_slurm():
            return
        for job in self.workflow.dag.needrun_jobs(exclude_finished=False):
            stage_job = self.lookup.slurm_job(job)
            if stage_job is not None and STAGES[stage_job.kind].on_gpu:
                shape = placement.describe(stage_job.resources, stage_job.view, stage_job.kind)
                self.lookup.announce(f"{stage_job.kind} {stage_job.name}: {shape}\n    {stage_job.sbatch_line()}")

    def _override_debug_runs(self) -> None:
        """`debug.override_existing`: training runs again, and what is made from it follows; each job clears its own."""
        if self.lookup.overrides:
            names = [
                rule.name for rule in self.workflow.rules if rule.name.endswith("train")
            ]  # a module's has a prefix
            self.workflow.dag_settings.forcerun = frozenset({*self.workflow.dag_settings.forcerun, *names})


@contextmanager
def _one_interrupt() -> Iterator[None]:
    """The first Ctrl-C stops; while running jobs save, a second one changes nothing, and a third ends this process at once.

    Snakemake would end at a second one with a traceback, while jobs still save.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def receive(number: int, _: Any) -> None:
        received.append(number)
        if len(received) == 1:
            raise KeyboardInterrupt
        if len(received) > 2:
            os._exit(128 + number)
        # By another thread: the signal may have come while this one writes to a log, and a stream cannot be entered twice.
        said = "still saving; once more ends at once, and jobs save without this process"
        threading.Thread(target=logger.warning, args=(said,)).start()

    before = signal.signal(signal.SIGINT, receive)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _use_our_slurm_executor(find_job: Callable[[Any], StageJob | None]) -> None:
    """Where the plugin is installed, which an environment without Slurm need not have."""
    if importlib.util.find_spec("snakemake_executor_plugin_slurm"):
        from post_training.slurm.executor import install

        install(find_job)


def _refuse_deployment(workflow: Any) -> None:
    """Jobs run in the environment that runs Snakemake; `--sdm` would make another one and not use it."""
    methods = getattr(workflow.deployment_settings, "deployment_method", None) or ()
    names = sorted(str(method) for method in methods)
    if names and workflow.exec_mode.name == "DEFAULT" and not _is_module(workflow):
        problem = "the jobs of this workflow run in the environment that runs snakemake"
        remedy = "leave --sdm out (`make install` makes that environment; on Slurm, slurm.container names a container)"
        raise SystemExit(f"--sdm {' '.join(names)}: {problem}; {remedy}")


def _own_config(workflow: Any, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration alone that a file of the command line gives, also as a module that another workflow gives all of its own.

    Snakemake has merged that file over the other workflow's `configfile:`, with snakedeploy a copy of the demo's.
    """
    if (
        _is_module(workflow)
        and workflow.config_settings.configfiles
        and config == workflow.modifier_stack[0].globals["config"]
    ):
        return copy.deepcopy(dict(workflow.config_settings.overwrite_config))
    return config


def _is_module(workflow: Any) -> bool:
    return len(workflow.modifier_stack) > 1


def _own_command_line(workflow: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """The `--config` entries that are this workflow's: as a module of another one it gets only a part, or none."""
    given = dict(workflow.config_settings.config)
    return {key: value for key, value in given.items() if key in config and _within(value, config[key])}


def _within(part: Any, whole: Any) -> bool:
    if isinstance(part, Mapping) and isinstance(whole, Mapping):
        return all(key in whole and _within(value, whole[key]) for key, value in part.items())
    return bool(part == whole)
