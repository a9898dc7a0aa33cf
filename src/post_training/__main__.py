"""`python -m post_training COMMAND`: the tools that a user calls by hand, and the body of each rule.

A command's module is imported when it is called, so that a download loads no torch.
"""

import argparse
import importlib
import os
import sys
from pathlib import Path

from post_training.core.errors import UserError
from post_training.core.secrets import masked_output
from post_training.core.stages import STAGES
from post_training.core.task import Task
from post_training.run_dir.failures import no_room
from post_training.run_dir.stop import REQUEST


def main(arguments: list[str] | None = None) -> int:
    """Run one command; a user's error is one line and exit code 1, and nothing printed holds a secret."""
    with masked_output():
        try:
            options = _parser().parse_args(arguments)
            module, function = options.run.split(":")
            if module == "post_training.commands.train":
                REQUEST.listen()  # before the imports: Slurm's warning would kill this process otherwise
            return getattr(importlib.import_module(module), function)(options) or 0
        except UserError as error:
            print(error, file=sys.stderr, flush=True)
            return 1
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except OSError as error:
            reason = no_room(error)
            if reason is None:
                raise
            print(f"{reason}; free some room and start again", file=sys.stderr, flush=True)
            return 1


def run_stage(options: argparse.Namespace) -> int:
    """The body of a rule. Raises UserError when the task cannot be read, and whatever the stage raises."""
    task = Task.read(options.task)
    kind = STAGES[task.stage]
    if kind.stops_on_request:
        REQUEST.listen()
    return importlib.import_module(kind.module).run(task) or 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m post_training", description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: str, text: str, config: str | None = None) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text)
        added.set_defaults(run=f"post_training.{run}")
        if config is not None:
            added.add_argument("--config", default=config or None, required=not config, help="the YAML of the pipeline")
            added.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides")
        return added

    stage = command("stage", "__main__:run_stage", "the body of a rule, as its job runs it")
    stage.add_argument("task", type=Path, help="the task's file, below <outputs>/tasks/")
    command("train", "commands.train:train", "train one stage by hand, also below accelerate launch", config="")
    inspect = command(
        "inspect", "commands.inspect:inspect", "show examples from their source to their tokens", config=""
    )
    stats = command("token-stats", "commands.inspect:token_stats", "a table of a stage's data", config="")
    for parsed in (inspect, stats):
        parsed.add_argument("--stage", help="sft, dpo, ...; the last one if not given")
    inspect.add_argument("-n", type=int, default=5, help="number of random rows")
    inspect.add_argument("--seed", type=int, default=0, help="of the random choice")
    inspect.add_argument("--row", action="append", default=[], metavar="[DATASET:]N", help="this source row, from 0")
    inspect.add_argument("--html", metavar="FILE", help="write a page too")
    status = command(
        "status", "commands.status:status", "state, progress, job and time left of each stage", "config/config.yaml"
    )
    lineage = command(
        "lineage", "commands.lineage:lineage", "where a run, a model or a file comes from, back to its sources"
    )
    lineage.add_argument("path", help="run directory, model, manifest, or any file of a stage")
    lineage.add_argument(
        "--verify", action="store_true", help="hash every file again; exit code 1 where one does not match"
    )
    diff = command("diff", "commands.lineage:diff", "the keys, inputs, versions and results in which two runs differ")
    diff.add_argument("a", help="run directory, model or manifest")
    diff.add_argument("b", help="the other one")
    for parsed in (status, lineage, diff):
        parsed.add_argument("--json", action="store_true", help="print JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
