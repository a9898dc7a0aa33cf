"""The page of a run, `report.html`: losses, data, evaluation, samples, time, preflight and lineage."""

import json
from pathlib import Path
from typing import Any

import plotly
from plotly.offline import get_plotlyjs

from post_training.core import html
from post_training.core.fingerprint import write_atomically
from post_training.core.format import gib, number, plain, size
from post_training.core.task import Task
from post_training.report import charts, data
from post_training.report.collect import collect
from post_training.report.elapsed import PARTS
from post_training.report.measures import gain, score

SHARED_PLOTLY = f"plotly-{plotly.__version__}.min.js"
"""Name of the file that the pages of several runs share."""
_HERE = Path(__file__).parent
# Keys that a prediction and a measurement share -> title.
_PREDICTED = {
    "steps": "steps", "tokens": "tokens", "tokens_per_second": "tokens per second", "step_seconds": "seconds per step",
    "hours": "hours", "gpu_hours": "GPU-hours", "peak_memory_bytes": "peak memory per device",
    "checkpoint_bytes": "one checkpoint", "checkpoints_bytes": "all checkpoints",
}  # fmt: skip


def run(task: Task) -> None:
    """Write `report.html`, and its numbers as `summary.json`, beside the manifest."""
    numbers = collect(task)
    names = [stage["name"] for stage in numbers["stages"]]
    examples = {name: data.shown_examples(data.mix_of(task.input_manifest(f"train_{name}"))) for name in names}
    write(
        task, "page.html.jinja", numbers, charts=charts.of_run(numbers), examples=examples, parts=PARTS, titles=_PREDICTED, gain=gain
    )  # fmt: skip


def write(task: Task, template: str, numbers: dict[str, Any], **more: Any) -> None:
    """Write the page and its numbers, and finish the stage.

    The page of a single run holds plotly.js (5 MB) and can be sent to anybody. Those of several runs share one file of it,
    `<outputs>/plotly-<version>.min.js`; `snakemake --report` makes them self-contained (`workflow/export.py`).
    """
    page, summary = task.directory / "report.html", task.directory / "summary.json"
    shared = bool(task.runtime.get("shared"))
    if shared:
        library = task.directory.parents[1] / SHARED_PLOTLY
        if not library.is_file():
            write_atomically(library, get_plotlyjs())
    write_atomically(page, render(template, shared=shared, **numbers, **more))
    write_atomically(summary, json.dumps(numbers, indent=1, allow_nan=False) + "\n")
    print(f"report: {page} ({size(page.stat().st_size)})", flush=True)
    task.finish(files=[{"path": path.name} for path in (page, summary)])


def render(template: str, shared: bool = False, **values: Any) -> str:
    """The text of a page: a template of this folder with `values`, among them `charts` as charts.js reads them.

    With `shared` it loads plotly.js from SHARED_PLOTLY in the folder of all results.
    """
    scripts = [(_HERE / "charts.js").read_text(encoding="utf-8")]
    if not shared:
        scripts.insert(0, get_plotlyjs())
    filters: dict[str, Any] = {"message": _message, "measured": _measured, "score": score, "day": _day}
    return html.render(_HERE / template, scripts, filters, library=SHARED_PLOTLY if shared else None, **values)


def _day(time: str | None) -> str:
    """`2026-11-29 19:30` of `2026-11-29T19:30:05+0000`, which is UTC."""
    return (time or "")[:16].replace("T", " ")


def _message(value: Any) -> str:
    """A text, a message, or messages; each but a plain answer begins with its role."""
    if isinstance(value, list):
        return "\n".join(map(_message, value))
    if not isinstance(value, dict):
        return plain(str(value))
    content, role = value.get("content"), value.get("role")
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    if value.get("tool_calls"):
        text += json.dumps(value["tool_calls"], ensure_ascii=False)
    return plain(text if role == "assistant" else f"{role}: {text}")


def _measured(value: Any, key: str) -> str:
    """A value of a prediction or measurement."""
    if value is None or not key.endswith("_bytes"):
        return number(value)
    return gib(value) if "memory" in key else size(value)
