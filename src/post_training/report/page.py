"""The numbers -> `report.html`: no server, no request leaves the page."""

from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from post_training.fingerprint import write_atomically
from post_training.report.collect import collect
from post_training.task import Task

_COLOURS = ("#3266ad", "#c2571a", "#3a8f5d", "#8d4fa8")


def run(task: Task) -> None:
    """Write `report.html` beside the manifest."""
    numbers = collect(task)
    page = task.directory / "report.html"
    write_atomically(page, render(numbers))
    print(f"report: {page} ({page.stat().st_size / 1e6:.1f} MB)")
    task.finish()


def render(numbers: dict[str, Any]) -> str:
    """The page's text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = _number
    charts = {
        stage["method"]: _chart(stage["curves"], _COLOURS[index % len(_COLOURS)])
        for index, stage in enumerate(numbers["stages"])
        if stage["curves"]
    }
    return environment.get_template("page.html.jinja").render(**numbers, charts=charts, plotly=get_plotlyjs())


def _chart(curves: dict[str, dict[str, Any]], colour: str) -> str:
    """One panel a curve, a common axis of steps, as an HTML fragment."""
    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    titles = [curve["title"] for curve in curves.values()]
    figure = make_subplots(rows=rows, cols=columns, subplot_titles=titles, vertical_spacing=0.35 / rows)
    for index, curve in enumerate(curves.values()):
        line = go.Scatter(
            x=curve["steps"], y=curve["values"], mode="lines", line={"color": colour, "width": 2}, showlegend=False
        )
        figure.add_trace(line, row=index // columns + 1, col=index % columns + 1)
    figure.update_layout(
        height=240 * rows,
        margin={"l": 40, "r": 10, "t": 30, "b": 30},
        template="plotly_white",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": "#888"},
        hovermode="x unified",
    )
    figure.update_xaxes(gridcolor="rgba(128,128,128,.2)")
    figure.update_yaxes(gridcolor="rgba(128,128,128,.2)")
    return str(
        figure.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False, "responsive": True})
    )


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
