"""The page of a run, `report.html`: losses, data, evaluation, samples, time, preflight and lineage."""

import json
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from post_training.core import html
from post_training.core.fingerprint import write_atomically
from post_training.core.format import number, plain, size
from post_training.core.task import Task
from post_training.report import charts, data
from post_training.report.collect import collect
from post_training.report.elapsed import PARTS
from post_training.report.summary import MEASURES

_HERE = Path(__file__).parent
# Keys that a prediction and a measurement share -> title.
_PREDICTED = {
    "steps": "steps", "tokens": "tokens", "tokens_per_second": "tokens per second", "step_seconds": "seconds per step",
    "hours": "hours", "gpu_hours": "GPU-hours", "peak_memory_bytes": "peak memory of a device",
    "checkpoint_bytes": "one checkpoint", "checkpoints_bytes": "all checkpoints",
}  # fmt: skip


def run(task: Task) -> None:
    """Write `report.html`, and its numbers as `summary.json`, beside the manifest."""
    numbers = collect(task)
    names = [stage["name"] for stage in numbers["stages"]]
    examples = {name: data.shown_examples(data.mix_of(task.input_manifest(f"train_{name}"))) for name in names}
    write(
        task, "page.html.jinja", numbers, charts=charts.of_run(numbers), examples=examples, parts=PARTS, titles=_PREDICTED,
        measures=MEASURES,
    )  # fmt: skip


def write(task: Task, template: str, numbers: dict[str, Any], **more: Any) -> None:
    """Write the page and its numbers, and finish the stage."""
    page, summary = task.directory / "report.html", task.directory / "summary.json"
    write_atomically(page, render(template, **numbers, **more))
    write_atomically(summary, json.dumps(numbers, indent=1, allow_nan=False) + "\n")
    print(f"report: {page} ({size(page.stat().st_size)})", flush=True)
    task.finish(files=[{"path": path.name} for path in (page, summary)])


def render(template: str, **values: Any) -> str:
    """The text of a page: a template of this folder with `values`, among them `charts` as charts.js reads them."""
    scripts = [get_plotlyjs(), (_HERE / "charts.js").read_text(encoding="utf-8")]
    return html.render(_HERE / template, scripts, {"message": _message, "measured": _measured}, **values)


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
    return size(value) if value is not None and key.endswith("_bytes") else number(value)
