"""Makes stages in this process, without Snakemake, for the commands that a user calls by hand."""

import sys
from pathlib import Path

from post_training.core.errors import UserError
from post_training.core.stages import STAGES
from post_training.plan import Plan, Stage


def make(plan: Plan, stage: Stage) -> Path:
    """Run what is missing of a stage and of all that it is made from; returns the stage's manifest."""
    for one in [*upstream(stage), stage]:
        if not (plan.base / one.manifest).is_file():
            print(f"{one.kind}: {one.name}", file=sys.stderr, flush=True)
            run_stage(plan, one)
    return plan.base / stage.manifest


def run_stage(plan: Plan, stage: Stage) -> None:
    """Run one stage's body here; its inputs are there."""
    Path(plan.base / stage.directory).mkdir(parents=True, exist_ok=True)
    if STAGES[stage.kind].run(stage.task(plan.base)):
        raise UserError(f"{plan.base / stage.directory}: {stage.kind} failed; its error is above")


def upstream(stage: Stage) -> list[Stage]:
    """Everything that a stage needs, inputs before what is made from them."""
    ordered: dict[str, Stage] = {}

    def visit(current: Stage) -> None:
        for other in current.inputs.values():
            visit(other)
            ordered.setdefault(other.directory, other)

    visit(stage)
    return list(ordered.values())
