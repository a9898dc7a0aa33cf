"""`post-training status`: progress of each stage of a configuration's runs, or of what was started last. Reads only.

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

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from post_training.config import batch, read_config, resolve_runs
from post_training.console.made import made
from post_training.core import manifest
from post_training.core.errors import UserError
from post_training.core.format import duration
from post_training.core.task import error_of, task_file
from post_training.plan import Graph, Stage, make_graph
from post_training.plan.make import upstream
from post_training.plan.preflight import LOCAL, SLURM
from post_training.run_dir import attempts, metrics
from post_training.run_dir.lock import live_owner
from post_training.slurm import cluster
from post_training.workflow.last_call import DEFAULT_CONFIG, last_call

# A log that was written to since is that of a running job.
_FRESH_SECONDS = 60
_COLOURS = {"done": "green", "running": "cyan", "queued": "yellow", "failed": "red", "stopped": "yellow"}


@dataclass(frozen=True)
class Line:
    """One stage: `done`, `running`, `queued`, `failed`, `stopped` or `to do`."""

    kind: str
    name: str
    label: str
    state: str
    progress: str = ""
    job_id: str = ""
    seconds_left: float | None = None


def status(options: Namespace) -> int:
    """Print the table. Raises UserError for a configuration that cannot work."""
    graph = graph_of(options.config, options.overrides)
    lines = collect(graph)
    if options.json:
        print(json.dumps([asdict(line) for line in lines], indent=1))
        return 0
    more = f" and {len(graph.plans) - 3:,} more" if len(graph.plans) > 3 else ""
    table = Table(
        title=f"{graph.base}: {', '.join(list(graph.plans)[:3])}{more}", title_justify="left", box=SIMPLE_HEAD
    )
    shown = [("stage", ""), ("of", ""), ("state", ""), ("progress", "")]
    shown += [("job", "")] if any(line.job_id for line in lines) else []
    shown += [("left", "right")] if any(line.seconds_left is not None for line in lines) else []
    for heading, justify in shown:
        table.add_column(heading, justify=justify or "left", no_wrap=heading != "progress", overflow="ellipsis")  # type: ignore[arg-type]
    for line in lines:
        left = duration(line.seconds_left) if line.seconds_left is not None else ""
        cells: dict[str, str | Text] = {
            "stage": line.kind,
            "of": line.label,
            "progress": Text(line.progress),
            "job": line.job_id,
        }
        cells |= {"state": Text(line.state, style=_COLOURS.get(line.state, "")), "left": left}
        table.add_row(*(cells[heading] for heading, _ in shown))
    # A file or a pager has no width to fit.
    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(table)
    counts = Counter(line.state for line in lines)
    print("all done" if set(counts) == {"done"} else ", ".join(f"{count} {state}" for state, count in counts.items()))
    return 0


def graph_of(config: str | None, overrides: list[str]) -> Graph:
    """Of a configuration; where none is named of what was started last in this folder, and of the default before the first."""
    if config is None and (last := last_call()):
        return make_graph(
            resolve_runs(last["config"], {**last["command_line"], **({"set": overrides} if overrides else {})})
        )
    if config is None and not Path(DEFAULT_CONFIG).is_file():
        raise UserError(
            f"{DEFAULT_CONFIG}: cannot be read, and nothing was started in {Path.cwd()}; go where it was, or give --config FILE"
        )
    return make_graph(resolve_runs(read_config(config or DEFAULT_CONFIG), {"set": overrides}))


def collect(graph: Graph) -> list[Line]:
    """A line for each stage that is there or is needed, in the order in which they are made."""
    kinds = ("exported", "evaluated", "lm_evaluated", "cards", "published")
    results = [*_preflights(graph), *(stage for kind in kinds for stage in graph.every(kind))]
    stages = {stage.directory: stage for result in results for stage in (*upstream(result), result)}
    scripts = [attempts.folder_of(graph.base / directory) / "job.sh" for directory in stages]
    jobs = _live_jobs() if any(script.is_file() for script in scripts) else {}
    return [_line(graph, stage, jobs) for stage in stages.values()]


def _preflights(graph: Graph) -> list[Stage]:
    """Those that are there, and those that a training still needs: of Slurm where it has jobs already, else of this machine."""
    found: dict[str, Stage] = {}
    for plan in graph.plans.values():
        done = [stage for stage in plan.preflights.values() if (graph.base / stage.manifest).is_file()]
        missing = [stage for stage in plan.trained.values() if not (graph.base / stage.manifest).is_file()]
        submitted = any((attempts.folder_of(graph.base / stage.directory) / "job.sh").is_file() for stage in missing)
        needed = [plan.preflights[SLURM if submitted else LOCAL]] if missing and not done else []
        found |= {stage.directory: stage for stage in done + needed}
    return list(found.values())


def _live_jobs() -> cluster.Jobs:
    """One query for all stages; empty where there is no Slurm."""
    try:
        return cluster.queue()
    except UserError:
        return {}


def _line(graph: Graph, stage: Stage, jobs: cluster.Jobs) -> Line:
    directory, path = graph.base / stage.directory, graph.base / stage.manifest
    line = partial(Line, stage.kind, stage.wildcard, graph.label_of(stage))
    if path.is_file():
        return line("done", made(path))
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
    if reason := error_of(task_file(graph.base, path)):
        return line("failed", reason.splitlines()[0])
    log = graph.base / "logs" / stage.kind / f"{stage.wildcard.rpartition('/')[2]}.log"
    text = log.read_text(encoding="utf-8", errors="replace").strip() if log.is_file() else ""
    if not text:
        return line("stopped" if progress else "to do", progress)
    fresh = time.time() - log.stat().st_mtime < _FRESH_SECONDS and stage.kind != "train"
    return line("running" if fresh else "stopped", progress or text.splitlines()[-1].strip()[:80])


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
