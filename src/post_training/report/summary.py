"""What finished pipelines reached, on the terminal: measures, two answers before and after, places. Light."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from post_training import preflight
from post_training.core import json_lines, manifest
from post_training.core.format import with_error
from post_training.plan import Graph, Plan

# Kind of a result -> its first measure, and what it is called.
MEASURES = {
    "exact_match": ("exact_match", "exact match"),
    "preference": ("accuracy", "preference accuracy"),
    "loss": ("loss", "loss a token"),
}
_ANSWERS = 2
_LONGEST = 160
_LOOKED_AT = 20
_RUNS = 40


def print_summary(graph: Graph) -> None:
    """Print to stderr what exists of the evaluations, and where the results are."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    if len(graph.plans) > 1:
        _print_runs(graph, console)
    else:
        _print_run(graph.first, console)
    _print_warnings(graph, console)


def _print_runs(graph: Graph, console: Any) -> None:
    """The last model of each run, a line a run."""
    from rich.table import Table

    last = {name: plan.pipeline.stages[-1] for name, plan in graph.plans.items()}
    results = _results(graph.base, {name: plan.evaluated.get(last[name]) for name, plan in graph.plans.items()})
    tasks = _results(graph.base, {name: plan.lm_evaluated.get(last[name]) for name, plan in graph.plans.items()})
    names = [name for name in graph.plans if name in results or name in tasks]
    if names:
        shown = names[:_RUNS]
        table = Table(title="last model of each run", title_justify="left")
        table.add_column("run")
        rows = measures({name: results.get(name, {}) for name in shown})
        rows += task_measures({name: tasks.get(name, {}) for name in shown})
        for dataset, measure, *_ in rows:
            table.add_column(f"{dataset}: {measure}", justify="right")
        for index, name in enumerate(shown):
            table.add_row(name, *(row[index + 2] for row in rows))
        console.print(table)
        if len(names) > _RUNS:
            console.print(f"and {len(names) - _RUNS:,} more runs: `snakemake report` shows them all")
    console.print(f"{graph.base}/<run>/model: the models of {len(graph.plans):,} runs", markup=False, soft_wrap=True)
    if graph.comparison is not None and (page := graph.base / graph.comparison.directory / "report.html").is_file():
        console.print(f"comparison: {page}", markup=False, soft_wrap=True)


def _print_run(plan: Plan, console: Any) -> None:
    results = _results(plan.base, plan.evaluated)
    tasks = _results(plan.base, plan.lm_evaluated)
    _print_table("held-out rows", ["dataset", "measure", *results], measures(results), console)
    _print_table("lm-evaluation-harness", ["task", "measure", *tasks], task_measures(tasks), console)
    folders = {name: (plan.base / plan.evaluated[name].manifest).parent for name in results}
    for line in before_and_after({name: first_samples(folder / "samples.jsonl") for name, folder in folders.items()}):
        console.print(line, markup=False)
    for name, directory in plan.links().items():
        if (plan.base / directory).is_dir():
            console.print(f"{plan.base / name} -> {directory}", markup=False, soft_wrap=True)
    page = plan.base / plan.report.directory / "report.html" if plan.report is not None else None
    if page is not None:
        made = str(page) if page.is_file() else "`snakemake report` makes it"
        console.print(f"page with curves, data, answers and costs: {made}", markup=False, soft_wrap=True)
    model = plan.base / plan.run_name / "model"
    if (model / "manifest.json").is_file():
        console.print(f"model: {model}", markup=False, soft_wrap=True)


def _print_warnings(graph: Graph, console: Any) -> None:
    """What preflight warned of, once more: by now it has scrolled away."""
    paths = [graph.base / stage.manifest for stage in graph.every("preflights")]
    for line in dict.fromkeys(line for path in paths for line in preflight.warnings(path)):
        console.print(line, style="yellow", markup=False, soft_wrap=True)


def _results(base: Path, stages: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Name -> `results`, of the stages that are there."""
    found = {name: base / stage.manifest for name, stage in stages.items() if stage is not None}
    return {name: manifest.read(path)["results"] for name, path in found.items() if path.is_file()}


def _print_table(title: str, headings: list[str], rows: list[list[str]], console: Any) -> None:
    from rich.table import Table

    if not rows:
        return
    table = Table(title=title, title_justify="left")
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index < 2 else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def measures(results: dict[str, dict[str, dict[str, Any]]]) -> list[list[str]]:
    """Rows of the table: dataset, measure, one value a model. `results`: model -> dataset -> result."""
    datasets = list(dict.fromkeys(name for result in results.values() for name in result))
    rows = []
    for dataset in datasets:
        kind = next(result[dataset]["kind"] for result in results.values() if dataset in result)
        key, shown = MEASURES[kind]
        values = [f"{result[dataset][key]:.3f}" if dataset in result else "-" for result in results.values()]
        rows.append([dataset, shown, *values])
    return rows


def task_measures(results: dict[str, dict[str, dict[str, Any]]]) -> list[list[str]]:
    """The same of lm-evaluation-harness. `results`: model -> task -> measure -> `value` and `stderr`."""
    pairs = [(task, measure) for result in results.values() for task, told in result.items() for measure in told]
    return [
        [task, measure, *(with_error(result.get(task, {}).get(measure)) for result in results.values())]
        for task, measure in dict.fromkeys(pairs)
    ]


def before_and_after(samples: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Lines with the first questions that every model has answered, with an expected answer and without, and each answer."""
    answered = {
        name: {json.dumps([s.get("dataset"), s["prompt"]]): s for s in rows if "answer" in s}
        for name, rows in samples.items()
    }
    if not answered:
        return []
    first = next(iter(answered.values()))
    shared = [prompt for prompt in first if all(prompt in rows for rows in answered.values())]
    known = [prompt for prompt in shared if "expected" in first[prompt]]
    lines = []
    for prompt in known[:_ANSWERS] + [prompt for prompt in shared if prompt not in known][:_ANSWERS]:
        lines += ["", f"prompt: {_short(first[prompt]['prompt'][-1]['content'])}"]
        if "expected" in first[prompt]:
            lines += [f"  expected: {_short(first[prompt]['expected'])}"]
        lines += [f"  {name}: {_short(rows[prompt]['answer'])}" for name, rows in answered.items()]
    return [*lines, ""] if lines else []


def first_samples(path: Path) -> list[dict[str, Any]]:
    """The first lines of each dataset in `samples.jsonl` of one evaluation; none where there is none."""
    found: list[dict[str, Any]] = []
    counts: Counter[str] = Counter()
    for sample in json_lines.read(path):
        counts[sample["dataset"]] += 1
        if counts[sample["dataset"]] <= _LOOKED_AT:
            found.append(sample)
    return found


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else line[: _LONGEST - 3] + "..."
