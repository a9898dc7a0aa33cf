"""Snakemake's name for the console of this workflow, `--logger post-training`; it is `post_training.console`.

Snakemake imports every plugin before it reads its command line: mistakes there become one line with the right command.
"""

import sys
from types import TracebackType


def _stopped(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Ctrl-C while modules are imported and the plan is made; later, Snakemake and the console say what is saved."""
    if issubclass(kind, KeyboardInterrupt):
        print("stopped before the first job", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _stopped  # before the imports below, which take most of that time

from post_training.console.command_line import check_command_line  # noqa: E402
from post_training.console.handler import LogHandler  # noqa: E402

__all__ = ["LogHandler"]

check_command_line(sys.argv)
