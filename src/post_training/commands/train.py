"""`python -m post_training train --config F key=value`: one stage, also below `accelerate launch`.

The same stages and paths as the workflow's. What the stage is made from is made first if it is
missing, except other training stages: those have their own devices and their own command.
"""

import os
import sys
import time
from argparse import Namespace
from typing import Any

from post_training.config import batch, resolve
from post_training.config.deepspeed import deepspeed_config
from post_training.config.trees import read_config
from post_training.core import inputs, manifest
from post_training.core.errors import ConfigError, UserError
from post_training.core.task import Task
from post_training.launch.environment import library_environment
from post_training.launch.finish import finish_if_complete, last_checkpoint
from post_training.launch.launcher import discard_debug_run, prepare_directory, reshard
from post_training.models.weights import PRECISIONS
from post_training.plan import Plan, Stage, make_plan
from post_training.plan.make import make, upstream
from post_training.run_dir import wandb_offline
from post_training.run_dir.failures import PeerError
from post_training.run_dir.lock import LOCKED, LockedError, take
from post_training.run_dir.stop import EXIT_CODES, clear_stop_marker
from post_training.slurm.srun import free_port
from post_training.workflow.links import point_links

_POLL_SECONDS = 0.5


def train(options: Namespace) -> int:
    """Train the last stage of a configuration as this process's rank. Returns the exit code."""
    plan = make_plan(resolve(read_config(options.config), {"set": options.overrides}))
    name = plan.pipeline.stages[-1]
    view, stage = plan.pipeline.last, plan.trained[name]
    method = view["method"]
    _set_defaults(view)
    rank = int(os.environ["RANK"])
    from post_training.data.mixing.epochs import write_epochs

    topology = batch.topology_from_environment()
    batches = batch.batch_plan(view, method, topology)
    _check_upstream(plan, stage)
    # Before torch is imported: preparing data may take long, and the other ranks only wait.
    make_inputs(plan, stage, first=rank == 0)
    task = stage.task(plan.base)
    os.environ.update(library_environment(view, task.directory, topology.device, task.inputs.get("kernel")))
    steps = batch.steps(view, method, manifest.read(task.inputs["data"])["rows_out"])
    assert steps is not None
    write_epochs(task.inputs["data"], steps * batches.rows)  # by every rank: none waits, and all write the same
    if rank != 0:
        return _train(plan, task, view, steps, first=False)
    # There is no launcher process: rank 0 owns the run directory.
    try:
        with take(task.directory, on_loss=lambda: os._exit(1)):
            print(f"{name}: {batches.describe(steps)}", flush=True)
            discard_debug_run(task, view)
            prepare_directory(task)
            return _train(plan, task, view, steps, first=True)
    except LockedError as error:
        print(error, file=sys.stderr, flush=True)
        return LOCKED


def _train(plan: Plan, task: Task, view: dict[str, Any], steps: int, first: bool) -> int:
    # Every rank must come to the same answer, however far rank 0 is: what makes it true stays true.
    wiped = view["debug"]["override_existing"]
    if not wiped and (task.output.exists() or last_checkpoint(task, steps)):
        if first:
            _finish(plan, task, steps)
        return 0
    if first:
        clear_stop_marker(task.directory)
        inputs.check(task)
        reshard(task, view, int(os.environ.get("WORLD_SIZE", "1")))
    from post_training.preflight.micro_batch import decide
    from post_training.training.run import train_rank

    decide(task, batch.topology_from_environment())
    try:
        stopped = train_rank(task)
    except PeerError:
        return 1  # another rank says why
    if first:
        wandb_offline.print_sync_command(task.directory)
    if stopped is not None:
        return EXIT_CODES[stopped]
    if first:
        _finish(plan, task, steps)
    return 0


def _finish(plan: Plan, task: Task, steps: int) -> None:
    if task.output.exists():
        print(f"{task.output}: nothing to do", flush=True)
    elif not finish_if_complete(task, steps):
        raise UserError(f"{task.directory}: training ended before step {steps} was saved; run it again to resume")
    point_links(plan.graph)


def _set_defaults(view: dict[str, Any]) -> None:
    """One rank where no launcher has said otherwise."""
    if "RANK" not in os.environ:
        os.environ.update({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"})
        if deepspeed_config(view) is not None:  # it looks for MPI without a group
            os.environ.update(
                {"LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port(os.getpid()))}
            )
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION")
    matching = PRECISIONS[view["model"]["dtype"]]
    if precision not in (None, "", matching):
        raise ConfigError("model.dtype", f"needs accelerate launch --mixed_precision {matching}, found {precision}")


def _check_upstream(plan: Plan, stage: Stage) -> None:
    for other in upstream(stage):
        if other.kind == "train" and not (plan.base / other.manifest).is_file():
            first = plan.view_of(other)["stage"]
            raise UserError(
                f"{plan.base / other.manifest}: {plan.pipeline.stages[-1]} starts from {first}, which is not trained yet; "
                f"run `snakemake`, or `python -m post_training train ... method={first}` first"
            )


def make_inputs(plan: Plan, stage: Stage, first: bool) -> None:
    """Rank 0 runs the missing data and model stages, in order; the others wait for their manifests."""
    for other in stage.inputs.values():
        if first:
            make(plan, other)
        while not (plan.base / other.manifest).is_file():
            time.sleep(_POLL_SECONDS)
