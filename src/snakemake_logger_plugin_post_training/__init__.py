"""Snakemake's name for the console of this workflow, `--logger post-training`; it is `post_training.console`.

Snakemake imports every plugin before it reads its command line: mistakes there become one line with the right command.
"""

import sys

from post_training.console.command_line import check_command_line
from post_training.console.handler import LogHandler

__all__ = ["LogHandler"]

check_command_line(sys.argv)
