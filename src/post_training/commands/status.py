"""`python -m post_training status`: progress of each stage of a configuration's runs. Reads only.

A stage is done when its manifest exists. Trainings and references have an owner with a heartbeat (`run_dir.lock`), and
Slurm knows a job by its script (`slurm.cluster`). Any other stage counts as running while its log is being written.
"""

import json
import os
import sys
import time
from argparse import Namespace
from collections import Counter
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from post_training.config import batch, read_config, resolve_runs
from post_training.core import manifest
from post_training.core.errors import UserError
from post_training.core.format import duration
from post_training.plan import Graph, Stage, make_graph
from post_training.plan.make import upstream
from post_training.run_dir import attempts, metrics
from post_training.run_dir.lock import live_owner
from post_training.slurm import cluster

# A log that was written to since is that of a running job.
_FRESH_SECONDS = 60
_COLOURS = {"done": "green", "running": "cyan", "queued": "yellow", "failed": "red", "stopped": "yellow"}


@dataclass(frozen=True)
class Line:
    """One stage: `done`, `running`, `queued`, `failed`, `stopped` or `to do`."""

    kind: str
    name: str
    state: str
    progress: str = ""
    job_id: str = ""
    seconds_left: float | None = None


def status(options: Namespace) -> int:
    """Print the table. Raises UserError for a configuration that cannot work."""
    graph = make_graph(resolve_runs(read_config(options.config), {"set": options.overrides}))
    lines = collect(graph)
    if options.json:
        print(json.dumps([asdict(line) for line in lines], indent=1))
        return 0
    table = Table(title=f"{graph.base}: {', '.join(list(graph.plans)[:3])}", title_justify="left")
    for heading in ("stage", "name", "state", "progress", "job", "time left"):
        table.add_column(heading, overflow="fold")
    for line in lines:
        left = duration(line.seconds_left) if line.seconds_left is not None else ""
        state = Text(line.state, style=_COLOURS.get(line.state, ""))
        table.add_row(line.kind, line.name, state, Text(line.progress), line.job_id, left)
    # A file or a pager has no width to fit.
    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(table)
    print(", ".join(f"{count} {state}" for state, count in Counter(line.state for line in lines).items()))
    return 0


def collect(graph: Graph) -> list[Line]:
    """A line for each stage, in the order in which they are made."""
    kinds = ("preflights", "exported", "evaluated", "lm_evaluated")
    results = [stage for kind in kinds for stage in graph.every(kind)]
    stages = {stage.directory: stage for result in results for stage in (*upstream(result), result)}
    scripts = [attempts.folder_of(graph.base / directory) / "job.sh" for directory in stages]
    jobs = _live_jobs() if any(script.is_file() for script in scripts) else {}
    return [_line(graph, stage, jobs) for stage in stages.values()]


def _live_jobs() -> cluster.Jobs:
    """One query for all stages; empty where there is no Slurm."""
    try:
        return cluster.queue()
    except UserError:
        return {}


def _line(graph: Graph, stage: Stage, jobs: cluster.Jobs) -> Line:
    directory, path = graph.base / stage.directory, graph.base / stage.manifest
    line = partial(Line, stage.kind, stage.wildcard)
    if path.is_file():
        return line("done", _result(path))
    progress, left = _steps(graph, stage, directory) if stage.kind == "train" else ("", None)
    folder = attempts.folder_of(directory)
    script = folder / "job.sh"
    if script.is_file() and (live := jobs.get(os.path.realpath(script))):
        job, state = live[0]
        running = state.name == "RUNNING"
        return line("running" if running else "queued", progress or state.name.lower(), job, left if running else None)
    if script.is_file() and (ended := attempts.lines(folder)):
        last = ended[-1]
        reason = ", ".join(filter(None, (progress, last["why"])))
        return line("failed" if last["failure"] else "stopped", reason, last["job_id"])
    if directory.is_dir() and (owner := live_owner(directory)):
        return line("running", progress or owner.describe(), owner.slurm_job_id or "", left)
    log = graph.base / "logs" / stage.kind / f"{stage.wildcard.rpartition('/')[2]}.log"
    text = log.read_text(encoding="utf-8", errors="replace").strip() if log.is_file() else ""
    if not text:
        return line("stopped" if progress else "to do", progress)
    fresh = time.time() - log.stat().st_mtime < _FRESH_SECONDS and stage.kind != "train"
    return line("running" if fresh else "stopped", progress or text.splitlines()[-1].strip()[:80])


def _result(path: Path) -> str:
    facts = manifest.read(path)
    if facts["stage"] == "train":
        return f"{facts.get('steps', 0):,} steps"
    return f"{facts['rows_out']:,} rows" if facts.get("rows_out") is not None else ""


def _steps(graph: Graph, stage: Stage, directory: Path) -> tuple[str, float | None]:
    """`step 120 of 500, loss 0.61, 8,400 tokens/s`, and seconds to the last step."""
    lines = metrics.read(metrics.path_of(directory), tail_bytes=1 << 16)
    if not lines:
        return "", None
    last, mixed = lines[-1], graph.base / stage.inputs["data"].manifest
    view = graph.plan_of(stage).view_of(stage)
    total = batch.steps(view, view["method"], manifest.read(mixed).get("rows_out") if mixed.is_file() else None)
    progress = f"step {last['step']:,}" + (f" of {total:,}" if total else "")
    progress += f", loss {last['loss']:.3f}" if "loss" in last else ""
    progress += f", {last['tokens_per_second']:,.0f} tokens/s" if last.get("tokens_per_second") else ""
    first = next(line for line in lines[-50:] if line.get("seconds", 0) <= last.get("seconds", 0))  # of this attempt
    if not total or last["step"] == first["step"]:
        return progress, None
    per_step = (last["seconds"] - first["seconds"]) / (last["step"] - first["step"])
    return progress, max(0.0, per_step * (total - last["step"]))
