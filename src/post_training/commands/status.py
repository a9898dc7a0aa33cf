"""`python -m post_training status`: how far each stage of a configuration's runs is. Reads only; light.

A stage is `done` when its manifest is there. Training, and what computes a reference, has an owner with a heartbeat
(`training.lock`); a job under Slurm has its script, by which the queue knows it (`slurm.cluster`). What has neither,
a data stage on this machine, is told by the age of its log.
"""

import json
import os
import sys
import time
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

from post_training.config import batch
from post_training.core import manifest
from post_training.core.errors import UserError
from post_training.core.format import duration
from post_training.plan import Graph, Stage, make_graph
from post_training.plan.make import upstream
from post_training.run_dir import attempts, metrics
from post_training.run_dir.lock import live_owner
from post_training.slurm import cluster
from post_training.slurm.cluster import Jobs

# A log that has said something since is being written.
_FRESH_SECONDS = 60


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
    """Print the table."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from post_training.config import read_config, resolve_runs

    graph = make_graph(resolve_runs(read_config(options.config), {"set": options.overrides}))
    lines = collect(graph)
    if options.json:
        print(json.dumps([line.__dict__ for line in lines], indent=1))
        return 0
    table = Table(title=f"{graph.base}: {', '.join(list(graph.plans)[:3])}", title_justify="left")
    for heading in ("stage", "name", "state", "progress", "job", "time left"):
        table.add_column(heading, overflow="fold")
    colours = {"done": "green", "running": "cyan", "queued": "yellow", "failed": "red", "stopped": "yellow"}
    for line in lines:
        left = duration(line.seconds_left) if line.seconds_left is not None else ""
        state = f"[{colours[line.state]}]{line.state}[/]" if line.state in colours else line.state
        table.add_row(line.kind, line.name, state, Text(line.progress), line.job_id, left)
    # Without a terminal there is no width to fit.
    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(table)
    counts = {
        state: sum(line.state == state for line in lines) for state in dict.fromkeys(line.state for line in lines)
    }
    print(", ".join(f"{count} {state}" for state, count in counts.items()))
    return 0


def collect(graph: Graph) -> list[Line]:
    """A line a stage, in the order in which they are made."""
    ordered: dict[str, Stage] = {}
    for last in (
        *graph.every("preflights"),
        *graph.every("exported"),
        *graph.every("evaluated"),
        *graph.every("lm_evaluated"),
    ):
        for stage in (*upstream(last), last):
            ordered.setdefault(stage.directory, stage)
    jobs = _live_jobs() if any((attempts.folder_of(graph.base / name) / "job.sh").is_file() for name in ordered) else {}
    return [_line(graph, stage, jobs) for stage in ordered.values()]


def _live_jobs() -> Jobs:
    """Slurm is asked once for all stages, and not waited for: it may not be on this machine."""
    try:
        return cluster.queue()
    except UserError:
        return {}


def _line(graph: Graph, stage: Stage, jobs: Jobs) -> Line:
    directory = graph.base / stage.directory
    if (graph.base / stage.manifest).is_file():
        return Line(stage.kind, stage.wildcard, "done", _result(graph.base / stage.manifest))
    progress, left = _steps(graph, stage, directory) if stage.kind == "train" else ("", None)
    folder = attempts.folder_of(directory)
    if (folder / "job.sh").is_file():
        live = jobs.get(os.path.realpath(folder / "job.sh"))
        if live:
            job, state = live[0]
            running = state.name == "RUNNING"
            return Line(stage.kind, stage.wildcard, "running" if running else "queued", progress or state.name.lower(), job,
                        left if running else None)  # fmt: skip
        ended = attempts.lines(folder)
        if ended:
            last = ended[-1]
            return Line(stage.kind, stage.wildcard, "failed" if last["failure"] else "stopped",
                        ", ".join(part for part in (progress, last["why"]) if part), last["job_id"])  # fmt: skip
    owner = live_owner(directory) if directory.is_dir() else None
    if owner is not None:
        return Line(stage.kind, stage.wildcard, "running", progress or owner.describe(), owner.slurm_job_id or "", left)
    log = graph.base / "logs" / stage.kind / f"{stage.wildcard.rpartition('/')[2]}.log"
    if not log.is_file() or not log.stat().st_size:
        return Line(stage.kind, stage.wildcard, "stopped" if progress else "to do", progress)
    said = [text.strip() for text in log.read_text(encoding="utf-8", errors="replace").splitlines() if text.strip()]
    fresh = time.time() - log.stat().st_mtime < _FRESH_SECONDS
    return Line(
        stage.kind,
        stage.wildcard,
        "running" if fresh and stage.kind != "train" else "stopped",
        progress or said[-1][:80],
    )


def _result(path: Path) -> str:
    facts = manifest.read(path)
    if facts["stage"] == "train":
        return f"{facts.get('steps', 0):,} steps"
    rows = facts.get("rows_out")
    return f"{rows:,} rows" if rows is not None else ""


def _steps(graph: Graph, stage: Stage, directory: Path) -> tuple[str, float | None]:
    """`step 120 of 500, loss 0.61, 8,400 tokens/s`, and seconds to the last step."""
    lines = metrics.read(metrics.path_of(directory), tail_bytes=1 << 16)
    if not lines:
        return "", None
    last, mixed = lines[-1], stage.inputs["data"]
    view = graph.plan_of(stage).view_of(stage)
    facts = manifest.read(graph.base / mixed.manifest) if (graph.base / mixed.manifest).is_file() else {}
    total = batch.steps(view, view["method"], facts.get("rows_out"))
    told = f"step {last['step']:,}" + (f" of {total:,}" if total else "")
    if "loss" in last:
        told += f", loss {last['loss']:.3f}"
    if last.get("tokens_per_second"):
        told += f", {last['tokens_per_second']:,.0f} tokens/s"
    some = [line for line in lines[-50:] if line.get("seconds", 0) <= last.get("seconds", 0)]  # of this start
    if not total or len(some) < 2 or last["step"] == some[0]["step"]:
        return told, None
    per_step = (last["seconds"] - some[0]["seconds"]) / (last["step"] - some[0]["step"])
    return told, max(0.0, per_step * (total - last["step"]))
