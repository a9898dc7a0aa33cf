"""Snakemake's Slurm executor, with jobs that are followed to their end. Used for `--executor slurm`.

Differences from the plugin's own executor (2.8.0), each seen on a cluster:

- It submits a Snakemake that runs a Snakemake that runs the rule, in each attempt anew with whatever the
  Snakefile and the configuration are by then. Here `job.sh` holds the rule's command as it was planned.
- It follows jobs by the name of its own call: after `kill -9` a new call submits the same stage
  beside the job that still runs. Here a stage's live job is found, and waited for.
- With sacct a cancelled job is never noticed, and one that Slurm has forgotten counts as a success. Here
  the manifest is the result, and Slurm's state and the job's record say why there is none.
- `--retries` submits a cancelled job again, and counts wall time as a failure. Here `slurm.max_failures` counts.

Jobs that are no stage of ours (another workflow that uses this one as a module) go the plugin's way.
"""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any, ClassVar

from snakemake.benchmark import BenchmarkRecord, write_benchmark_records
from snakemake_executor_plugin_slurm import Executor as PluginExecutor
from snakemake_executor_plugin_slurm import ExecutorSettings
from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.registry import ExecutorPluginRegistry

from post_training.core import manifest
from post_training.core.errors import UserError
from post_training.run_dir import attempts
from post_training.run_dir.lock import Lock, take
from post_training.slurm import check, cluster
from post_training.slurm.cluster import NOTE, State
from post_training.slurm.follow import Follower
from post_training.slurm.job import StageJob
from post_training.slurm.patience import Patience

# How long another call may take to submit a stage, besides what it waits for Slurm.
_SUBMIT_SECONDS = 600
FindJob = Callable[[Any], StageJob | None]
# Settings of the plugin that still mean something here.
_USED = ("init_seconds_before_status_checks", "logdir", "status_command", "status_attempts", "keep_successful_logs",
         "delete_logfiles_older_than", "no_account")  # fmt: skip


def install(find_job: FindJob) -> None:
    """Have `--executor slurm` use this executor for the jobs that `find_job` knows."""
    plugin = ExecutorPluginRegistry().plugins.get("slurm")
    if plugin is not None:
        StageExecutor.finders.append(find_job)
        plugin.executor = StageExecutor


class StageExecutor(PluginExecutor):
    """Submits stages, follows them, and submits them again."""

    finders: ClassVar[list[FindJob]] = []

    def __init__(self, workflow: Any, logger: Any) -> None:
        # Before the base class starts the thread that checks jobs, which an AttributeError would end silently.
        self._stopping = threading.Event()
        self._mine: dict[Any, tuple[StageJob, str]] = {}
        self._followers: dict[Path, Follower] = {}
        self._said: dict[str, str] = {}
        self._seconds = workflow.remote_execution_settings.seconds_between_status_checks
        super().__init__(workflow, logger)

    def __post_init__(self, test_mode: bool = False) -> None:
        """Refuse what would fail before anything is queued."""
        super().__post_init__(test_mode)
        planned = [job for job in self.workflow.dag.needrun_jobs() if not job.is_local]
        stages = {job: stage for job in planned if (stage := self._stage(job))}
        if stages:
            _refuse_unused(self.workflow.executor_settings)
        for job in stages:
            job.rule.restart_times = 0  # --retries knows neither wall time nor scancel
        try:
            for warning in check.check_jobs(list(stages.values())):
                self.logger.warning(warning)
        except UserError as error:
            raise WorkflowError(str(error)) from None

    def _stage(self, job: Any) -> StageJob | None:
        return None if job.is_group() else next((stage for find in self.finders if (stage := find(job))), None)

    def run_job(self, job: Any) -> None:
        """In a thread of its own: submit a stage, or find its live job."""
        stage = self._stage(job)
        if stage is None:
            super().run_job(job)
            return
        try:
            follower = Follower(stage, self.workflow.execution_settings.latency_wait, self._stopping)
            self._report_job_submission_threadsafe(self._start(job, self._followers.setdefault(stage.output, follower)))
        except Exception as error:  # every one must end the job: Snakemake would wait for it for ever
            self._report_job_error_threadsafe(SubmittedJobInfo(job), _message(error))

    def _start(self, job: Any, follower: Follower) -> SubmittedJobInfo:
        """Submit, or attach to the live job of this stage; never both, however many calls try at once."""
        stage = follower.job
        with self._submitting(stage):
            if live := follower.live():
                self.logger.info(
                    f"{stage.name}: waiting for its Slurm job {live}, submitted before (scancel {live} ends it)"
                )
                return SubmittedJobInfo(job, external_jobid=live, aux={"follower": follower})
            if stage.output.exists():
                return SubmittedJobInfo(job, external_jobid="0", aux={"follower": follower})
            if self._stopping.is_set():
                raise UserError(f"{stage.name}: not submitted, because snakemake was interrupted")
            job_id = follower.submit()
            self._mine[job] = (stage, job_id)
        self._note(
            job, job_id, "submitted", f"{stage.name}: Slurm job {job_id} (output: {stage.folder}/slurm-{job_id}.out)"
        )
        return SubmittedJobInfo(job, external_jobid=job_id, aux={"follower": follower})

    async def check_active_jobs(self, active_jobs: list[SubmittedJobInfo]) -> AsyncGenerator[SubmittedJobInfo, None]:
        """One squeue for all stages; ended ones are done, submitted again, or reported."""
        self.next_seconds_between_status_checks = self._seconds
        if not active_jobs:
            return
        stages = [info for info in active_jobs if info.aux and "follower" in info.aux]
        others = [info for info in active_jobs if info not in stages]
        async for info in super().check_active_jobs(others):
            yield info
        async with self.status_rate_limiter:
            states = await asyncio.to_thread(self._states, stages)
        for info in stages:
            state = states.get(str(info.external_jobid))
            if isinstance(state, str):
                self.report_job_error(info, msg=state + "\n")
            elif state and not state.ended:
                self._say(info, state)
                if not state.launch_failed or await asyncio.to_thread(self._released, info):
                    yield info
            elif after := await asyncio.to_thread(self._ended, info, state):
                yield after
        self.next_seconds_between_status_checks = self._seconds

    def _states(self, infos: list[SubmittedJobInfo]) -> dict[str, State] | dict[str, str]:
        """The state of each job in Slurm, or why there will be no answer. A job that Slurm has forgotten is missing."""
        jobs = [str(info.external_jobid) for info in infos]
        if not jobs:
            return {}
        patience = Patience(max(info.aux["follower"].job.wait_seconds for info in infos), self._stopping)
        try:
            return patience.ask(lambda: cluster.states(jobs))
        except UserError as error:
            return dict.fromkeys(jobs, str(error))

    def _ended(self, info: SubmittedJobInfo, state: State | None) -> SubmittedJobInfo | None:
        """The job that follows on an ended one, or None when its end has been reported to Snakemake."""
        follower: Follower = info.aux["follower"]
        stage, job_id = follower.job, str(info.external_jobid)
        try:
            with self._submitting(stage):
                verdict = follower.settle(job_id, state)
            if verdict.action == "done":
                self._mine.pop(info.job, None)
                _write_benchmark(info.job, stage)
                self.report_job_success(info)
                return None
            if verdict.action == "again":
                self.logger.info(verdict.message)
                return self._start(info.job, follower)
            message = verdict.message
        except Exception as error:
            message = _message(error)
        self._mine.pop(info.job, None)
        self.report_job_error(info, msg=message + "\n")
        return None

    def _released(self, info: SubmittedJobInfo) -> bool:
        """Whether a job that Slurm held after a failed launch waits for nodes again; else its end has been reported."""
        verdict = info.aux["follower"].release(str(info.external_jobid))
        if verdict.action == "wait":
            self.logger.info(verdict.message)
            return True
        self._mine.pop(info.job, None)
        self.report_job_error(info, msg=verdict.message + "\n")
        return False

    def _say(self, info: SubmittedJobInfo, state: State) -> None:
        """A line when a job's state changes."""
        job_id, text = str(info.external_jobid), str(state)
        if self._said.get(job_id) != text:
            self._said[job_id] = text
            self._note(info.job, job_id, text, f"{info.aux['follower'].job.name}: job {job_id} {text}")

    def _note(self, job: Any, job_id: str, state: str, line: str) -> None:
        """A line, which a terminal shows as a state of the job that changes."""
        self.logger.info(line, extra={NOTE: (str(job.output[0]), job_id, state)})

    def _submitting(self, stage: StageJob) -> Lock:
        """Only one call at a time looks for a stage's live job and submits one if there is none."""

        def interrupted() -> str | None:
            return "snakemake was interrupted" if self._stopping.is_set() else None

        patience = _SUBMIT_SECONDS + stage.wait_seconds
        return take(stage.folder / ".submit", patience_seconds=patience, give_up=interrupted, alone=True)

    def cancel(self) -> None:
        """Ctrl-C: cancel what this call has submitted. Jobs of other calls that it waits for continue."""
        self._stopping.set()
        self._job_submission_executor.shutdown(wait=True)
        mine = [job_id for _, job_id in self._mine.values()]
        for stage, job_id in self._mine.values():
            attempts.mark_cancelled(stage.folder, job_id)
        if mine:
            self.logger.info(f"Cancelling Slurm jobs {', '.join(mine)}; what they have saved is kept")
            if problem := cluster.cancel(mine):
                self.logger.warning(f"scancel: {problem}")
        with self.lock:
            others = [info for info in self.active_jobs if not (info.aux and "follower" in info.aux)]
            self.active_jobs: list[SubmittedJobInfo] = others
        super().cancel()


def _message(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def _write_benchmark(job: Any, stage: StageJob) -> None:
    """What Snakemake's own jobs write, and without which it would take the stage for failed, from the stage's manifest."""
    if job.benchmark:
        Path(job.benchmark).parent.mkdir(parents=True, exist_ok=True)
        record = BenchmarkRecord(running_time=manifest.read(stage.output).get("seconds", 0))
        write_benchmark_records([record], str(job.benchmark), extended_fmt=False)


def _refuse_unused(settings: ExecutorSettings) -> None:
    """An option of the plugin that would be ignored is refused, with the key that does it."""
    defaults = ExecutorSettings()
    for name, value in vars(settings).items():
        if name not in _USED and value != getattr(defaults, name):
            option = f"--slurm-{name.replace('_', '-')}"
            raise WorkflowError(
                f"{option}: is not used by this workflow; set the keys of `slurm` in the configuration instead"
            )
