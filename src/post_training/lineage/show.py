"""A lineage as a tree on the terminal."""

from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from post_training.core.format import size
from post_training.lineage.collect import Lineage, Stage, Stages
from post_training.lineage.compare import Rows
from post_training.lineage.verify import Problem, Verification

_FACTS = {"rows_out": "rows", "tokens": "tokens", "steps": "steps", "parameters": "parameters", "loss_last": "loss"}
_SHOWN_FILES = 8


def show(lineage: Lineage, checked: Verification | None) -> None:
    """Print the tree, the libraries, the costs, and what no longer matches."""
    console = Console(highlight=False)
    problems = checked.problems if checked else []
    console.print(_tree(lineage["root"], "", lineage["stages"], problems, set()), soft_wrap=True)
    versions = lineage["stages"][lineage["root"]].get("versions") or {}
    console.print(f"\nmade with {', '.join(f'{name} {version}' for name, version in versions.items())}", soft_wrap=True)
    console.print(f"{len(lineage['stages'])} stages, {lineage['gpu_hours']:,.2f} GPU-hours")
    if checked:
        console.print(_verdict(checked), soft_wrap=True)


def _verdict(checked: Verification) -> Text:
    """A line for each file that no longer matches, and one for all files."""
    lines = [f"{p['stage']}/{p['file']}: {p['problem']}" for p in checked.problems]
    if checked.absent:
        lines.append(f"not on this machine, so not verified: {', '.join(checked.absent)}")
    seen = f"{checked.files:,} files, {size(checked.bytes)}"
    lines.append(f"{seen}: {len(checked.problems)} no longer match" if checked.problems else f"{seen}: all match")
    return Text("\n".join(lines), style="red" if checked.problems else "green")


def _tree(key: str, role: str, stages: Stages, problems: list[Problem], seen: set[str]) -> Tree:
    stage = stages[key]
    label = Text()
    if role:
        label.append(f"{role}: ", style="dim")
    label.append(stage["stage"], style="bold")
    label.append(f" {key}")
    if key in seen:
        label.append(" (above)", style="dim")
        return Tree(label)
    seen.add(key)
    label.append(f"\n{' · '.join(facts(stage))}", style="dim")
    for source in sources(stage):
        label.append(f"\n{source}", style="cyan")
    for problem in problems:
        if problem["stage"] == key:
            label.append(f"\n{problem['file']}: {problem['problem']}", style="bold red")
    tree = Tree(label)
    tree.children += [_tree(other, name, stages, problems, seen) for name, other in stage["inputs"].items()]
    return tree


def facts(stage: Stage) -> list[str]:
    """The main facts about a stage, each a few words."""
    found = [f"{(stage.get('fingerprint') or '')[:12]}"]
    counts = ((noun, stage.get(key)) for key, noun in _FACTS.items())
    found += [f"{n:,.6g} {noun}" if isinstance(n, float) else f"{n:,} {noun}" for noun, n in counts if n is not None]
    if stage["directory"] is None:
        found.append("not on this machine")
    files = stage.get("files") or []
    found.append(f"{len(files)} files, {size(sum(file.get('bytes', 0) for file in files))}")
    if git := stage.get("git"):
        diff = f" ({git['diff'].get('path')})" if git.get("diff") else ""
        changed = f" with changes{diff}" if diff or git.get("dirty") else ""
        found.append(f"commit {(git.get('commit') or '')[:12]}{changed}")
    elif stage.get("code_sha256"):
        found.append(f"code {stage['code_sha256'][:12]}")
    if stage.get("finished"):
        found.append(f"{stage['finished'][:16]}, {stage.get('seconds', 0):,.1f} s")
    if stage["jobs"]:
        found.append(f"Slurm {', '.join(dict.fromkeys(str(job['job_id']) for job in stage['jobs']))}")
    elif stage.get("slurm_job_id"):
        found.append(f"Slurm {stage['slurm_job_id']}")
    if stage["gpu_hours"]:
        found.append(f"{stage['gpu_hours']:,.2f} GPU-hours")
    return found


def sources(stage: Stage) -> list[str]:
    """Inputs from outside: a revision of a repository, or files of the user's."""
    if stage.get("repository"):
        return [f"{stage['repository']}@{stage.get('revision_sha')}"]
    files = [file for file in stage.get("files", []) if file["path"].startswith("/")]
    lines = [f"{f['path']} {size(f.get('bytes', 0))} sha256 {f.get('sha256', '')[:12]}" for f in files[:_SHOWN_FILES]]
    return lines + ([f"and {len(files) - _SHOWN_FILES} more files"] if len(files) > _SHOWN_FILES else [])


def show_differences(differences: dict[str, Rows], names: tuple[str, str]) -> None:
    """Print one table for each kind of difference."""
    tables = []
    for kind, rows in differences.items():
        table = Table(title=kind, title_justify="left", show_edge=False)
        for heading in ("what", *names):
            table.add_column(heading, overflow="fold")
        for row in rows:
            table.add_row(*(Text(_value(row[column])) for column in ("what", "a", "b")))
        tables += [table] if rows else []
    Console(highlight=False).print(Group(*tables) if tables else "no difference")


def _value(value: Any) -> str:
    return "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
