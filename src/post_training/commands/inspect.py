"""The commands `inspect` and `token-stats`."""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from post_training.inspection import collect, page, stats, terminal


def inspect(options: argparse.Namespace) -> int:
    """Show rows from their source to their tokens, in the terminal and as a page."""
    plan, method = collect.prepared(options.config, options.overrides, options.stage)
    found = collect.examples(plan, method, options.n, options.row, options.seed)
    terminal.show(found, _console())
    if options.html:
        path = Path(options.html)
        page.write(path, f"{plan.run_name}: rows of {method}", found)
        print(path, file=sys.stderr)
    return 0


def token_stats(options: argparse.Namespace) -> int:
    """Print the table."""
    plan, method = collect.prepared(options.config, options.overrides, options.stage)
    _console().print(stats.as_table(stats.statistics(plan, method), f"{plan.run_name}: data of {method}"))
    return 0


def _console() -> Console:
    # Without a terminal there is no width to fit: nothing is cut where a file or a pager is written to.
    return Console(width=None if sys.stdout.isatty() else 200, highlight=False, markup=True)
