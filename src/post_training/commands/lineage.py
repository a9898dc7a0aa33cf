"""`python -m post_training lineage` and `diff`."""

import json
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from post_training.lineage.collect import Lineage, collect
from post_training.lineage.compare import differences
from post_training.lineage.crate import write_crate
from post_training.lineage.show import show, show_differences
from post_training.lineage.verify import Verification, verify


def lineage(options: Namespace) -> int:
    """Print where a result comes from; with `--verify` 1 is returned when a file no longer matches."""
    found = collect(options.path)
    if options.ro_crate:
        write_crate(found, Path(options.ro_crate))
        print(f"RO-Crate: {options.ro_crate}")
        return 0
    checked = _verify(found, quiet=options.json) if options.verify else None
    if options.json:
        shown = {**found, **({"verification": asdict(checked)} if checked else {})}
        print(json.dumps(shown, indent=1, ensure_ascii=False))
    else:
        show(found, checked)
    return 1 if checked and checked.problems else 0


def diff(options: Namespace) -> int:
    """Print the differences between two results."""
    found = differences(collect(options.a), collect(options.b))
    if options.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        show_differences(found, (options.a, options.b))
    return 0


def _verify(found: Lineage, quiet: bool) -> Verification:
    total = sum(file.get("bytes", 0) for stage in found["stages"].values() for file in stage.get("files") or [])
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet) as bar:
        task = bar.add_task("hashing", total=total)
        return verify(found, lambda size: bar.advance(task, size))
