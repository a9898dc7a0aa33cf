"""`python -m post_training <command>`: the bodies of the rules, and the tools that a person calls by hand.

Each command's module is imported when it is called, so that a download loads no torch.
"""

import argparse
import importlib
import os
import sys

from post_training.core.errors import UserError
from post_training.core.secrets import masked_output
from post_training.core.stages import STAGES
from post_training.core.task import Task
from post_training.run_dir.failures import no_room
from post_training.run_dir.stop import REQUEST


def main(arguments: list[str] | None = None) -> int:
    """Run one command; what a person did wrong is one line and exit code 1, and nothing printed holds a secret."""
    with masked_output():
        return _main(arguments)


def _main(arguments: list[str] | None) -> int:
    parser = argparse.ArgumentParser(prog="python -m post_training", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    stage = commands.add_parser("stage", help="the body of a rule")
    stage.add_argument("kind", choices=STAGES, metavar="KIND", help=", ".join(STAGES))
    stage.add_argument("--spec", required=True, help="what to make, as JSON")
    stage.add_argument("--runtime", default="{}", help="how to run it, as JSON")
    stage.add_argument("--inputs", nargs="*", default=[], help="manifests of the inputs, in the spec's order")
    stage.add_argument("--output", required=True, help="the manifest to write")
    train = commands.add_parser("train", help="train one stage; by hand with --config, also below accelerate launch")
    train.add_argument("--config", required=True, help="the YAML of the pipeline")
    train.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides")
    looks = (("inspect", "show rows from their source to their tokens"), ("token-stats", "a table of a stage's data"))
    for name, told in looks:
        look = commands.add_parser(name, help=told)
        look.add_argument("--config", required=True, help="the YAML of the pipeline")
        look.add_argument("--stage", help="sft, dpo, ...; the last one if not given")
        look.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides")
    look = commands.choices["inspect"]
    look.add_argument("-n", type=int, default=5, help="so many random rows")
    look.add_argument("--seed", type=int, default=0, help="of the random choice")
    look.add_argument("--row", action="append", default=[], metavar="[DATASET:]N", help="this source row, from 0")
    look.add_argument("--html", metavar="FILE", help="write a page too")
    states = commands.add_parser("status", help="how far each stage is: state, progress, job, time left")
    states.add_argument("--config", default="config/config.yaml", help="the YAML of the pipeline")
    states.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides")
    trace = commands.add_parser("lineage", help="where a run, a model or a file comes from, back to its sources")
    trace.add_argument("path", help="run directory, model, manifest, or any file of a stage")
    trace.add_argument(
        "--verify", action="store_true", help="hash every file again; exit code 1 when one does not match"
    )
    compare = commands.add_parser("diff", help="in which keys, inputs, versions and results two runs differ")
    compare.add_argument("a", help="run directory, model or manifest")
    compare.add_argument("b", help="the other one")
    for follow in (states, trace, compare):
        follow.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    if options.command == "train" or (options.command == "stage" and STAGES[options.kind].place == "ranks"):
        REQUEST.listen()  # before the imports: Slurm's warning would kill this process otherwise
    try:
        if options.command == "train":
            from post_training.commands.train import train_from_config

            return train_from_config(options.config, options.overrides)
        if options.command in dict(looks):
            from post_training.commands import inspect

            return int(getattr(inspect, options.command.replace("-", "_"))(options))
        if options.command == "status":
            from post_training.commands.status import status

            return status(options)
        if options.command in ("lineage", "diff"):
            from post_training.commands.lineage import diff, lineage

            return lineage(options) if options.command == "lineage" else diff(options)
        # A rank's own imports and downloads are the launcher's business; see rank.py.
        task = Task.parse(options.spec, options.runtime, options.inputs, options.output)
        return importlib.import_module(STAGES[options.kind].module).run(task) or 0
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


if __name__ == "__main__":
    sys.exit(main())
