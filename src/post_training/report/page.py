"""The numbers -> `report.html`: no server, and no request leaves the page.

Text on it comes from data and from models, so all of it is escaped, and the page's own policy (CSP) lets only its two scripts
run, by their hashes: what got through all the same could neither run nor call anybody.
"""

import base64
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import jinja2
from plotly.offline import get_plotlyjs

from post_training.core.fingerprint import write_atomically
from post_training.core.format import duration, number, size
from post_training.core.task import Task
from post_training.inspection.terminal import as_json, plain, visible
from post_training.report import charts, data
from post_training.report.collect import collect
from post_training.report.elapsed import PARTS
from post_training.report.summary import MEASURES

_HERE = Path(__file__).parent
# What a prediction and a measurement tell alike -> what it is called.
_FORETOLD = {
    "steps": "steps",
    "tokens": "tokens",
    "tokens_per_second": "tokens a second",
    "step_seconds": "seconds a step",
    "hours": "hours",
    "gpu_hours": "GPU-hours",
    "peak_memory_bytes": "peak memory of a device",
    "checkpoint_bytes": "one checkpoint",
    "checkpoints_bytes": "all checkpoints",
}


def run(task: Task) -> None:
    """Write `report.html`, and its numbers as `summary.json`, beside the manifest."""
    numbers = collect(task)
    rows: dict[str, Any] = {}
    shown = {"rows": rows, "parts": PARTS, "foretold": _FORETOLD, "measures": MEASURES, "task_metrics": task_metrics}
    for stage in numbers["stages"]:
        rows[stage["name"]] = data.shown_rows(data.mix_of(task.input_manifest(f"train_{stage['name']}")))
    write(task, "page.html.jinja", numbers, charts=charts.of_run(numbers), **shown)


def write(task: Task, template: str, numbers: dict[str, Any], **more: Any) -> None:
    """Write the page and its numbers, and finish the stage."""
    page, summary = task.directory / "report.html", task.directory / "summary.json"
    write_atomically(page, render(template, **numbers, **more))
    write_atomically(summary, json.dumps(numbers, indent=1, allow_nan=False) + "\n")
    print(f"report: {page} ({page.stat().st_size / 1e6:.1f} MB)", flush=True)
    task.finish(files=[{"path": path.name} for path in (page, summary)])


def render(template: str, **values: Any) -> str:
    """The text of a page: a template of this folder with `values`, among them `charts` as charts.js reads them."""
    scripts = {"plotly": get_plotlyjs(), "drawing": (_HERE / "charts.js").read_text(encoding="utf-8")}
    made = _environment().get_template(template)
    return made.render(
        **values,
        scripts=scripts,
        hashes=[_hash(text) for text in scripts.values()],
        style=(_HERE / "style.css").read_text(encoding="utf-8"),
        written=time.strftime("%Y-%m-%d %H:%M %Z"),
    )


def _hash(script: str) -> str:
    """As the policy names a script that may run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "number": number, "size": size, "duration": duration, "visible": visible, "said": said, "measured": measured,
        "as_json": as_json,
    }  # fmt: skip
    return environment


def task_metrics(found: dict[str, dict[str, Any]]) -> list[str]:
    """Metrics of a task of lm_eval that any of the models has."""
    return list(dict.fromkeys(metric for told in found.values() for metric in told))


def said(value: Any) -> str:
    """What was said: a text, a message, or messages, of which all but plain answers name who spoke."""
    if isinstance(value, list):
        return "\n".join(map(said, value))
    if isinstance(value, dict):
        content = value.get("content")
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        if value.get("tool_calls"):
            text += json.dumps(value["tool_calls"], ensure_ascii=False)
        return plain(text if value.get("role") == "assistant" else f"{value.get('role')}: {text}")
    return plain(str(value))


def measured(value: Any, key: str) -> str:
    """A value of a prediction or measurement."""
    if value is None:
        return "–"
    return size(value) if key.endswith("_bytes") else number(value)
