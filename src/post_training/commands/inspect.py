"""The commands `inspect` and `token-stats`."""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from post_training.core.errors import UserError
from post_training.inspection import collect, show, stats


def inspect(options: argparse.Namespace) -> int:
    """Show examples from their source rows to their tokens, in the terminal and as a page."""
    if options.html and Path(options.html).is_dir():
        raise UserError(f"--html: {options.html} is a folder; name a file, such as {options.html}/rows.html")
    plan, stage = collect.prepared(options.config, options.overrides, options.stage)
    found = collect.examples(plan, stage, options.n, options.row, options.seed)
    show.show(found, _console())
    if options.html:
        try:
            show.write_page(Path(options.html), f"{plan.run_name}: rows of {stage}", found)
        except OSError as error:
            raise UserError(f"--html: {options.html}: cannot be written ({error}); name another file") from None
        print(options.html, file=sys.stderr)
    if options.row and all(example.fate == collect.NO_ROW for example in found):
        raise UserError(f"--row {' '.join(options.row)}: {collect.NO_ROW}")
    return 0


def token_stats(options: argparse.Namespace) -> int:
    """Print the table of a stage's datasets."""
    plan, stage = collect.prepared(options.config, options.overrides, options.stage)
    _console().print(stats.as_tables(stats.statistics(plan, stage), f"{plan.run_name}: data of {stage}"))
    return 0


def _console() -> Console:
    # A file or a pager has no width to fit: nothing is cut off.
    return Console(width=None if sys.stdout.isatty() else 200, highlight=False, markup=True)
