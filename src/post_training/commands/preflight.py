"""`post-training preflight`: what the preflight of a configuration has found, from its file. Reads only."""

import json
import sys
from argparse import Namespace

from rich.console import Console

from post_training.commands.status import graph_of
from post_training.core.errors import UserError
from post_training.preflight.check import FAILURE, Check
from post_training.preflight.show import print_findings
from post_training.run_dir.predictions import FILE


def preflight(options: Namespace) -> int:
    """Print problems and predicted cost, or with `--all` every check. Returns 1 where one has failed."""
    graph = graph_of(options.config, options.overrides)
    files = [graph.base / stage.directory / FILE for stage in graph.every("preflights")]
    found = [json.loads(path.read_text(encoding="utf-8")) for path in files if path.is_file()]
    if not found:
        raise UserError(f"{graph.base}: no preflight has run for this configuration; type `snakemake preflight`")
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    for facts in found:
        print_findings(facts, console, everything=options.all)
    return int(any(Check(**check).verdict == FAILURE for facts in found for check in facts["checks"]))
