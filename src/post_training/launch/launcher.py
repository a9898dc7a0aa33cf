"""Body of the rules `train` and `reference`: starts one rank per device, waits, and writes the manifest at the end.

It never imports torch, waits for hours, and reacts to every signal at once.

Exit codes of `run`, which callers may rely on:

    0               the manifest is written
    REQUEUE (85)    stopped by SIGUSR1, all saved: start it again
    STOPPED (143)   stopped by SIGTERM, all saved; INTERRUPTED (130) the same by SIGINT
    LOCKED (75)     another live process owns this run; nothing was done
    anything else   a failure, reported on stderr; the last complete checkpoint is kept

After a stop `<run directory>/stopped.json` names the signal and the step.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from post_training.config import batch, resolve
from post_training.config.batch import Topology
from post_training.config.deepspeed import strategy
from post_training.core import inputs, manifest
from post_training.core.errors import UserError
from post_training.core.fingerprint import write_atomically
from post_training.core.task import Task
from post_training.launch.environment import library_environment, local_start, srun_start
from post_training.launch.finish import finish_if_complete
from post_training.launch.processes import Ended, run_together, say
from post_training.launch.reshard import how_to_resume, make_universal
from post_training.models.files import remove_folder
from post_training.run_dir import attempts, failures, predictions, timeline, wandb_offline
from post_training.run_dir.checkpoints import checkpoints, discard_incomplete, newest_complete, set_aside, undamaged
from post_training.run_dir.lock import LOCKED, VARIABLE, Lock, LockedError, is_own_file, take
from post_training.run_dir.parent import snakemake_is_gone
from post_training.run_dir.stop import (
    INTERRUPTED,
    REQUEST,
    REQUEUE,
    STOPPED,
    clear_stop_marker,
    read_stopped,
    through_srun,
    write_stopped,
)
from post_training.slurm import cluster
from post_training.slurm.patience import Patience

__all__ = ["INTERRUPTED", "LOCKED", "REQUEUE", "STOPPED", "run"]


def rank_command(task_file: Path, python: str = sys.executable) -> list[str]:
    """Command line of a rank; everything else it needs is in the file and the environment."""
    return [python, "-u", "-m", "post_training.commands.rank", str(task_file)]


def run(task: Task) -> int:
    """Train to the last step, or compute a reference. Returns one of the exit codes above.

    Raises UserError, and ConfigError when a checkpoint does not fit today's devices.
    """
    try:
        with REQUEST, take(task.directory, give_up=snakemake_is_gone) as lock:
            return _run_owned(task, lock)
    except LockedError as error:
        say(str(error))
        task.keep_error(str(error))
        return LOCKED


def _run_owned(task: Task, lock: Lock) -> int:
    view = resolve(task.runtime["pipeline"]).last
    method = view["method"]
    from post_training.data.mixing.epochs import write_epochs

    topology = batch.slurm_topology(view) if task.runtime.get("slurm") else batch.local_topology(view)
    discard_debug_run(task, view)
    if task.stage == "reference":
        from post_training.methods.dpo import reference

        return _run_ranks(task, view, topology, lock, lambda: reference.finish_if_complete(task))
    plan = batch.batch_plan(view, method, topology)
    steps = batch.steps(view, method, manifest.read(task.inputs["data"])["rows_out"])
    assert steps is not None
    print(f"{view['stage']}: {plan.describe(steps)}", flush=True)
    prepare_directory(task)
    predictions.begin(task, view["stage"])
    write_epochs(task.inputs["data"], steps * plan.rows)
    return _run_ranks(task, view, topology, lock, lambda: finish_if_complete(task, steps))


def _run_ranks(task: Task, view: dict[str, Any], topology: Topology, lock: Lock, finish: Callable[[], bool]) -> int:
    """Start the ranks, unless their work is complete already, and finish when they are done."""
    # A kill between the last of the work and the manifest must not cost the work again.
    if finish():
        return 0
    unchecked = inputs.check(task)
    reports = task.directory / "logs" / "failures"
    failures.clear(reports)
    clear_stop_marker(task.directory)
    if task.stage == "train":
        timeline.note_start(task.directory, task.started, topology.world_size)
        reshard(task, view, topology.world_size)
    ended = Ended()
    while True:
        if REQUEST.wanted:
            write_stopped(task.directory, REQUEST.wanted, None)
            break
        ended = _start_and_wait(task, view, topology, lock, inputs.Beside(unchecked))
        if ended.first is None or failures.read(reports) or not _slurm_was_away(task, view):
            wandb_offline.print_sync_command(task.directory)
            break
        ended = Ended()  # no rank was started, so none has failed
    stopped = read_stopped(task.directory)
    if stopped is not None:
        print(f"{task.directory}: {stopped.describe()}; start again to resume", flush=True)
        return stopped.exit_code
    if ended.first is not None:
        found = failures.read(reports)
        full = None if found else failures.no_room_in(task.directory)  # so that no rank could report anything
        if not lock.lost:  # what was being saved takes the room that the next attempt needs
            discard_incomplete(newest_complete(task.directory / "checkpoints"))
        _report(task, ended, found, topology.world_size, full)
        return ended.code if ended.code > 0 else 128 - ended.code
    if not finish():
        raise UserError(f"{task.directory}: the ranks ended before their work was complete; run it again to resume")
    return 0


def _start_and_wait(task: Task, view: dict[str, Any], topology: Topology, lock: Lock, beside: inputs.Beside) -> Ended:
    known = set(checkpoints(task.directory / "checkpoints"))
    libraries = library_environment(view, task.directory, topology.device, task.inputs.get("kernel"))
    libraries |= {VARIABLE: str(lock.path.absolute())}
    on_slurm = bool(task.runtime.get("slurm"))
    start = srun_start if on_slurm else local_start
    commands, environments = start(topology, view, rank_command(task.saved()), libraries)

    def abandoned() -> str | None:
        if lock.lost:
            return f"{task.directory}: another process has taken over from this one, which stood still for minutes"
        if beside.problem:
            return "an input is damaged; the ranks end"
        if not REQUEST.received and (gone := snakemake_is_gone()):
            say(f"{gone}; saves and stops")
            REQUEST.received.append(signal.SIGTERM)
        return None

    ended = run_together(
        commands,
        environments,
        REQUEST,
        forwarded_as=through_srun if on_slurm else signal.Signals,
        asked=lock.mark_stopping,
        abandoned=abandoned,
    )
    if ended.first is None and not REQUEST.wanted:
        beside.wait()
    if beside.problem:
        for path in set(checkpoints(task.directory / "checkpoints")) - known:
            set_aside(path, "an input of its training was damaged")
        raise UserError(beside.problem)
    return ended


def _slurm_was_away(task: Task, view: dict[str, Any]) -> bool:
    """Whether srun, of which no rank has reported an error, failed for want of Slurm's controller; waits until it is back.

    Raises:
        UserError: when it stays away.
    """
    if not task.runtime.get("slurm") or REQUEST.wanted:
        return False
    interrupted = threading.Event()
    REQUEST.act_at_once(lambda _: interrupted.set())
    try:
        return cluster.was_away(os.environ["SLURM_JOB_ID"], Patience(view["slurm"]["wait_seconds"], interrupted))
    except UserError:
        if REQUEST.wanted:
            return True
        raise


def reshard(task: Task, view: dict[str, Any], world_size: int) -> None:
    """Make the checkpoint that the ranks will resume from fit their number. Raises ConfigError when it cannot."""
    directory = task.directory / "checkpoints"
    newest = newest_complete(directory).chosen
    if newest and how_to_resume(newest, strategy(view), world_size).universal:
        newest = undamaged(directory).chosen  # before it is rewritten: the ranks would check only what it was
    if newest and how_to_resume(newest, strategy(view), world_size).universal:
        make_universal(newest.path, task.directory / "logs" / "universal.log")


def _report(task: Task, ended: Ended, reports: list[failures.Failure], world_size: int, full: str | None) -> None:
    """Print the first error, and keep it; then, in a line each, errors of other ranks that are no consequence of it.

    Args:
        task: the training's.
        ended: how its ranks ended.
        reports: why, by those who could say so.
        world_size: number of ranks.
        full: why nothing could be written at their end.
    """
    who = "a rank" if task.runtime.get("slurm") else f"rank {ended.first}"
    kept = []
    if ended.code < 0 and (not reports or reports[0].follows):
        hint = " (out of memory?)" if ended.code == -signal.SIGKILL else ""
        kept.append(f"{who} was killed by {signal.Signals(-ended.code).name}{hint}")
    elif full:
        kept.append(f"{task.directory}: {full}; free some room and start again to resume")
    elif not reports:
        kept.append(f"{who} failed first, with exit code {ended.code}; its output is in the log")
    for line in kept:
        say(line)
    causes = {failure.line: failure for failure in reversed(reports) if not failure.follows or failure is reports[0]}
    if ended.code < 0:
        causes = {line: failure for line, failure in causes.items() if not failure.follows}
    for number, failure in enumerate(reversed(causes.values())):
        where = f"rank {failure.rank} on {failure.host}: " if world_size > 1 else ""
        say(where + ((failure.trace or failure.line).rstrip() if number == 0 else failure.line))
        kept.append(where + failure.line)
    task.keep_error("\n".join(kept))
    followed = [str(failure.rank) for failure in reports if failure.line not in causes]
    if followed:
        say(f"then the others ended: rank {', '.join(sorted(followed))}")


def discard_debug_run(task: Task, view: dict[str, Any]) -> None:
    """`debug.override_existing`: empty the directory, once a call of snakemake; a requeued attempt keeps what it has."""
    directory, call = task.directory, str(task.runtime.get("override", time.time()))
    if not view["debug"]["override_existing"]:
        return
    last = directory / "override.txt"
    if not last.is_file() or last.read_text() != call:
        print(f"{directory}: wiped (debug.override_existing)", flush=True)
        for path in list(directory.iterdir()):
            if not is_own_file(path) and path != attempts.folder_of(directory):  # records this very attempt
                remove_folder(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        write_atomically(last, call)


def prepare_directory(task: Task) -> None:
    """Make the run directory with `logs/` and `config.yaml`, a configuration that reproduces this run."""
    from omegaconf import OmegaConf

    directory = task.directory
    (directory / "logs").mkdir(parents=True, exist_ok=True)
    write_atomically(directory / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(task.runtime["pipeline"])))
