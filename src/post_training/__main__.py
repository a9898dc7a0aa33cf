"""`post-training COMMAND`: the tools that a user calls by hand, and the body of each rule.

A command's module is imported when it is called, so that a download loads no torch.
"""

import argparse
import importlib
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import shtab

from post_training import __version__, methods
from post_training.console.jobs import TARGETS
from post_training.core import inputs
from post_training.core.errors import UserError, did_you_mean
from post_training.core.format import for_terminal
from post_training.core.secrets import masked_output
from post_training.core.stages import STAGES
from post_training.core.task import Task
from post_training.core.unused_libraries import hide_unused
from post_training.run_dir.failures import no_room
from post_training.run_dir.stop import REQUEST
from post_training.workflow.last_call import DEFAULT_CONFIG

_FREE_SOME = "free some room and start again"
_HELP = """usage: post-training COMMAND [options]

Snakemake makes the model: `snakemake --configfile my.yaml`. These commands show what it does and has made.

the data
  inspect      examples from their source to their tokens, in colour, also as a page
  token-stats  lengths, shares and losses of each dataset
before and during a run
  preflight    what the last preflight has found: problems, memory, time, tokens, disk
  status       state, progress, job and time left of each stage
  train        one stage by hand, also below accelerate launch
results
  lineage      where a run, a model or a file comes from; --verify hashes its files
  diff         keys, inputs, versions and results in which two runs differ
this command
  --version    of this workflow
  completion   for bash, zsh or tcsh: eval "$(post-training completion bash)"

`post-training COMMAND --help` lists a command's options.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; a user's error is one line and exit code 1, and nothing printed holds a secret."""
    with masked_output():
        try:
            parser = _parser()
            words = sys.argv[1:] if arguments is None else arguments
            _check_command(words, parser)
            options = parser.parse_args(words or ["--help"])
            if "overrides" in options:
                options.overrides = _overrides(options.overrides)
            module, function = options.run.split(":")
            if module == "post_training.commands.train":
                REQUEST.listen()  # before the imports: Slurm's warning would kill this process otherwise
            return getattr(importlib.import_module(module), function)(options) or 0
        except UserError as error:
            print(for_terminal(str(error)), file=sys.stderr, flush=True)
            return 1
        except KeyboardInterrupt:
            return 130
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except OSError as error:
            reason = no_room(error)
            if reason is None:
                raise
            print(f"{reason}; {_FREE_SOME}", file=sys.stderr, flush=True)
            return 1


def run_stage(options: argparse.Namespace) -> int:
    """The body of a rule. Raises UserError when the task cannot be read, and whatever the stage raises."""
    task = Task.read(options.task)
    kind = STAGES[task.stage]
    hide_unused(task)
    if kind.stops_on_request:
        REQUEST.listen()
    task.keep_error(None)
    try:
        if kind.place != "ranks":  # whose launcher does both once it owns the run
            task.directory.mkdir(parents=True, exist_ok=True)  # snakemake has made it, a user by hand has not
            inputs.check(task)
        return kind.run(task) or 0
    except UserError as error:
        task.keep_error(str(error))
        raise
    except Exception as error:
        if reason := no_room(error, task.directory):
            task.keep_error(f"{reason}; {_FREE_SOME}")
            raise UserError(f"{reason}; {_FREE_SOME}") from error
        said = " ".join(f"{type(error).__name__}: {error}".split())
        task.keep_error(f"{said} (a bug: the log has more)")
        raise


def _count(text: str) -> int:
    """A number from 0 on."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number from 0 on")
    return int(text)


class _Command(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, as all errors are."""
        raise UserError(f"{self.prog}: {message}; `{self.prog} --help` lists what there is")


class _Parser(_Command):
    def format_help(self) -> str:
        """By subject, where argparse would list all commands alike."""
        return _HELP


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="post-training")
    parser.add_argument("--version", action="version", version=f"post-training {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Command)

    def command(name: str, run: str, text: str, config: str | None = "") -> argparse.ArgumentParser:
        public: dict[str, Any] = {"help": text} if name != "stage" else {}  # what the shell completes
        added = commands.add_parser(name, description=f"{text[:1].upper()}{text[1:]}.", **public)
        added.set_defaults(run=f"post_training.{run}")
        if config is not None:
            shown = "the YAML of the pipeline; " + (config or DEFAULT_CONFIG)
            option = added.add_argument(
                "--config", "--configfile", default=None if config else DEFAULT_CONFIG, help=shown
            )
            option.complete = shtab.FILE  # type: ignore[attr-defined]
            added.add_argument(
                "overrides", nargs="*", metavar="key=value", help="dotted overrides, such as dpo.beta=0.3"
            )
        return added

    stage = command("stage", "__main__:run_stage", "the body of a rule, as its job runs it", None)
    stage.add_argument("task", type=Path, help="the task's file, below <outputs>/tasks/")
    command("train", "commands.train:train", "train one stage by hand, also below accelerate launch")
    inspect = command("inspect", "commands.inspect:inspect", "show examples from their source to their tokens")
    stats = command("token-stats", "commands.inspect:token_stats", "a table of a stage's data")
    for parsed in (inspect, stats):
        parsed.add_argument("--stage", help="sft, dpo, ...; the last one if not given")
    inspect.add_argument("-n", type=_count, default=5, help="number of random rows")
    inspect.add_argument("--seed", type=_count, default=0, help="of the random choice")
    inspect.add_argument(
        "--row", action="append", default=[], metavar="[DATASET:]N", help="this source row, counted from 1"
    )
    inspect.add_argument("--html", metavar="FILE", help="write a page too")
    last = "what was started last if not given"
    preflight = command(
        "preflight", "commands.preflight:preflight", "the findings of the last preflight: problems and cost", last
    )
    preflight.add_argument("--all", action="store_true", help="every check, not only warnings and failures")
    status = command("status", "commands.status:status", "state, progress, job and time left of each stage", last)
    lineage = command(
        "lineage", "commands.lineage:lineage", "where a run, a model or a file comes from, back to its sources", None
    )
    diff = command(
        "diff", "commands.lineage:diff", "the keys, inputs, versions and results in which two runs differ", None
    )
    paths = [
        lineage.add_argument("path", help="run directory, model, manifest, or any file of a stage"),
        diff.add_argument("a", help="run directory, model or manifest"),
        diff.add_argument("b", help="the other one"),
    ]
    for argument in paths:
        argument.complete = shtab.FILE  # type: ignore[attr-defined]
    lineage.add_argument(
        "--verify", action="store_true", help="hash every file again; exit code 1 where one does not match"
    )
    lineage.add_argument(
        "--ro-crate", metavar="FOLDER", help="copy the result with its lineage to a new folder, as an RO-Crate"
    )
    for parsed in (status, lineage, diff):
        parsed.add_argument("--json", action="store_true", help="print JSON")
    completion = command(
        "completion", "__main__:print_completion", "a script for the shell, which completes these commands", None
    )
    completion.add_argument("shell", choices=shtab.SUPPORTED_SHELLS)
    return parser


def print_completion(options: argparse.Namespace) -> None:
    """Print the completion script: `eval "$(post-training completion bash)"`."""
    print(shtab.complete(_parser(), shell=options.shell))


def _overrides(words: list[str]) -> list[str]:
    """As `snakemake --config` takes them, too: `set='a.b=1 c.d=2'` is two."""
    for word in words:
        if "=" not in word:
            raise UserError(f"{word}: expected key=value, such as dpo.beta=0.3; a file goes after --config")
    split = [word.removeprefix("set=").split() if word.startswith("set=") else [word] for word in words]
    return [word for words_of_one in split for word in words_of_one]


def _check_command(words: list[str], parser: argparse.ArgumentParser) -> None:
    """Raise UserError for a command that does not exist."""
    known = next(action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    if not words or words[0].startswith("-") or words[0] in known:
        return
    name = words[0]
    elsewhere = {one: ("is a stage", f"--until {one}") for one in STAGES}
    elsewhere |= {one: ("is a method", f"--config method={one}") for one in methods.names()}
    elsewhere |= {one: ("is a target of Snakemake's", one) for one in TARGETS}
    if name in elsewhere:
        what, typed = elsewhere[name]
        raise UserError(f"{name}: {what}; type `snakemake {typed}`")
    raise UserError(f"{name}: no such command. {did_you_mean(name, [one for one in known if one != 'stage'])}")


if __name__ == "__main__":
    sys.exit(main())
