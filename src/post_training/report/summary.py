"""Results of finished pipelines on the terminal: measures, some answers of each model, where the files are."""

import json
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from post_training import preflight
from post_training.core import json_lines, manifest
from post_training.core.format import folded, with_error
from post_training.plan import Graph, Plan
from post_training.preflight.show import print_costs
from post_training.run_dir import wandb_offline

# Kind of a result -> its main measure, and the measure's title.
MEASURES = {
    "exact_match": ("exact_match", "exact match"),
    "preference": ("accuracy", "preference accuracy"),
    "loss": ("loss", "loss per token"),
    "reward": ("reward", "mean reward"),
}
_ANSWERS = 2
_LONGEST = 160
_PREVIEW_SAMPLES = 20
_RUNS = 40


def print_summary(graph: Graph, console: Console, report: str = "snakemake report") -> None:
    """Print what preflight warned of, the evaluations that exist, and where the results are; `report` is the command of the page."""
    paths = [graph.base / stage.manifest for stage in graph.every("preflights")]
    if not all((graph.base / stage.manifest).is_file() for stage in graph.every("trained")):
        for path in filter(Path.is_file, paths):
            print_costs(dict(manifest.read(path)), console)
    for line in dict.fromkeys(line for path in paths for line in preflight.warnings(path)):
        text = folded(line, console.width) if console.is_terminal else line
        console.print(text, style="yellow", markup=False, soft_wrap=True)
    if len(graph.plans) > 1:
        _print_runs(graph, console, report)
    else:
        _print_run(graph.first, console, report)
    runs = [graph.base / stage.directory for stage in graph.every("trained")]
    for command in filter(None, map(wandb_offline.sync_command, runs)):
        console.print(f"W&B was offline; where there is internet: {command}", markup=False, soft_wrap=True)


def _print_runs(graph: Graph, console: Console, report: str) -> None:
    """The last model of each run, one run per line."""
    last = {name: plan.pipeline.stages[-1] for name, plan in graph.plans.items()}
    results = _results(graph.base, {name: plan.evaluated.get(last[name]) for name, plan in graph.plans.items()})
    tasks = _results(graph.base, {name: plan.lm_evaluated.get(last[name]) for name, plan in graph.plans.items()})
    names = [name for name in graph.plans if name in results or name in tasks]
    shown = names[:_RUNS]
    columns = measures({name: results.get(name, {}) for name in shown})
    columns += task_measures({name: tasks.get(name, {}) for name in shown})
    rows = [[name, *(column[index + 2] for column in columns)] for index, name in enumerate(shown)]
    headings = [f"{dataset}: {measure}" for dataset, measure, *_ in columns]
    _print_table("last model of each run", ["run", *headings], rows, console, texts=1)
    if len(names) > _RUNS:
        console.print(f"and {len(names) - _RUNS:,} more runs: `{report}` shows them all", markup=False, soft_wrap=True)
    console.print(f"{graph.base}/<run>/model: the models of {len(graph.plans):,} runs", markup=False, soft_wrap=True)
    if graph.comparison is not None and (page := graph.base / graph.comparison.label / "report.html").is_file():
        console.print(f"comparison: {page}", markup=False, soft_wrap=True)


def _print_run(plan: Plan, console: Console, report: str) -> None:
    results, tasks = _results(plan.base, plan.evaluated), _results(plan.base, plan.lm_evaluated)
    _print_table("held-out data", ["dataset", "measure", *results], measures(results), console)
    _print_table("lm-evaluation-harness", ["task", "measure", *tasks], task_measures(tasks), console)
    paths = {name: (plan.base / plan.evaluated[name].manifest).parent / "samples.jsonl" for name in results}
    for line in before_and_after({name: [*chain(*first_samples(path).values())] for name, path in paths.items()}):
        _print_answer(line, console)
    for name, directory in plan.links().items():
        if (plan.base / directory).is_dir():
            console.print(f"{plan.base / name} -> {directory}", markup=False, soft_wrap=True)
    if plan.report is not None:
        page = plan.base / plan.report.directory / "report.html"
        made = str(plan.base / plan.run_name / "report.html") if page.is_file() else f"`{report}` makes it"
        console.print(f"page with curves, data, answers and costs: {made}", markup=False, soft_wrap=True)
    model = plan.base / plan.run_name / "model"
    if (model / "manifest.json").is_file():
        console.print(f"model: {model}", markup=False, soft_wrap=True)


def _print_answer(line: str, console: Console) -> None:
    """`  sft: text`: in a terminal the text's further lines begin below its first, elsewhere there is one line."""
    head, colon, text = line.partition(": ")
    if not console.is_terminal or not colon:
        console.print(Text(line), soft_wrap=True)
        return
    grid = Table.grid(padding=(0, 1))
    grid.add_row(Text(f"{head}:", no_wrap=True), Text(text))
    console.print(grid)


def _results(base: Path, stages: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Name -> `results`, of the stages that are done."""
    found = {name: base / stage.manifest for name, stage in stages.items() if stage is not None}
    return {name: manifest.read(path)["results"] for name, path in found.items() if path.is_file()}


def _print_table(title: str, headings: list[str], rows: list[list[str]], console: Console, texts: int = 2) -> None:
    """A table unless it is empty; its first `texts` columns are texts, the others numbers."""
    table = Table(title=title, title_justify="left")
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index < texts else "right")
    for row in rows:
        table.add_row(*row)
    if rows:
        console.print(table)


def measures(results: dict[str, dict[str, dict[str, Any]]]) -> list[list[str]]:
    """Rows of the table: dataset, measure, one value for each model. `results`: model -> dataset -> result."""
    kinds = {name: result["kind"] for own in results.values() for name, result in own.items()}
    rows = []
    for dataset, kind in kinds.items():
        key, title = MEASURES[kind]
        rows.append(
            [dataset, title, *(f"{own[dataset][key]:.3f}" if dataset in own else "-" for own in results.values())]
        )
    return rows


def task_measures(results: dict[str, dict[str, dict[str, Any]]]) -> list[list[str]]:
    """The same of lm-evaluation-harness. `results`: model -> task -> measure -> `value` and `stderr`."""
    pairs = [(task, measure) for own in results.values() for task, result in own.items() for measure in result]
    return [
        [task, measure, *(with_error(own.get(task, {}).get(measure)) for own in results.values())]
        for task, measure in dict.fromkeys(pairs)
    ]


def before_and_after(samples: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Lines with the first prompts that every model has answered, with an expected answer and without, and each answer."""
    answered = {
        name: {json.dumps([s.get("dataset"), s["prompt"]]): s for s in own if "answer" in s}
        for name, own in samples.items()
    }
    first = next(iter(answered.values()), {})
    shared = [prompt for prompt in first if all(prompt in own for own in answered.values())]
    known = [prompt for prompt in shared if "expected" in first[prompt]]
    lines = []
    for prompt in known[:_ANSWERS] + [prompt for prompt in shared if prompt not in known][:_ANSWERS]:
        lines += ["", f"prompt: {_short(first[prompt]['prompt'][-1]['content'])}"]
        if "expected" in first[prompt]:
            lines += [f"  expected: {_short(first[prompt]['expected'])}"]
        lines += [f"  {name}: {_short(own[prompt]['answer'])}" for name, own in answered.items()]
    return [*lines, ""] if lines else []


def first_samples(path: Path, limit: int = _PREVIEW_SAMPLES) -> dict[str, list[dict[str, Any]]]:
    """Dataset -> the first lines of an evaluation's `samples.jsonl`; empty where there is no file."""
    found: dict[str, list[dict[str, Any]]] = {}
    for sample in json_lines.read(path):
        own = found.setdefault(sample["dataset"], [])
        if len(own) < limit:
            own.append(sample)
    return found


def _short(text: str) -> str:
    line = " ".join(text.split())
    return (line if len(line) <= _LONGEST else line[: _LONGEST - 3] + "...") or "(empty)"
