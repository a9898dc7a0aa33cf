"""A lineage as a tree on the terminal."""

from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from post_training.core.format import size
from post_training.lineage.verify import Verification

_FACTS = (
    ("rows_out", "rows"), ("tokens", "tokens"), ("steps", "steps"), ("parameters", "parameters"), ("loss_last", "loss"),
)  # fmt: skip
_SHOWN_FILES = 8


def show(lineage: dict[str, Any], checked: Verification | None) -> None:
    """Print the tree, the libraries, the costs, and what no longer matches."""
    console = Console(highlight=False)
    problems: dict[str, list[dict[str, str]]] = {}
    for problem in checked.problems if checked else []:
        problems.setdefault(problem["stage"], []).append(problem)
    console.print(_tree(lineage["root"], "", lineage["stages"], problems, set()), soft_wrap=True)
    versions = lineage["stages"][lineage["root"]].get("versions") or {}
    console.print(f"\nmade with {', '.join(f'{name} {version}' for name, version in versions.items())}", soft_wrap=True)
    console.print(f"{len(lineage['stages'])} stages, {lineage['gpu_hours']:,.2f} GPU-hours")
    if checked:
        console.print(verdict(checked), soft_wrap=True)


def verdict(checked: Verification) -> Text:
    """One line on the whole, and one a file that no longer matches."""
    lines = [f"{p['stage']}/{p['file']}: {p['problem']}" for p in checked.problems]
    if checked.absent:
        lines.append(f"not on this machine, so not verified: {', '.join(checked.absent)}")
    seen = f"{checked.files:,} files, {size(checked.bytes)}"
    lines.append(f"{seen}: {len(checked.problems)} no longer match" if checked.problems else f"{seen}: all match")
    return Text("\n".join(lines), style="red" if checked.problems else "green")


def _tree(
    key: str, role: str, stages: dict[str, Any], problems: dict[str, list[dict[str, str]]], seen: set[str]
) -> Tree:
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
    for problem in problems.get(key, []):
        label.append(f"\n{problem['file']}: {problem['problem']}", style="bold red")
    tree = Tree(label)
    for name, other in stage["inputs"].items():
        tree.children.append(_tree(other, name, stages, problems, seen))
    return tree


def facts(stage: dict[str, Any]) -> list[str]:
    """What the tree says of a stage, each a few words."""
    found = [f"{(stage.get('fingerprint') or '')[:12]}"]
    found += [f"{stage[key]:,.6g} {noun}" if isinstance(stage[key], float) else f"{stage[key]:,} {noun}"
              for key, noun in _FACTS if stage.get(key) is not None]  # fmt: skip
    if stage["directory"] is None:
        found.append("not on this machine")
    files = stage.get("files") or []
    found.append(f"{len(files)} files, {size(sum(file.get('bytes', 0) for file in files))}")
    if git := stage.get("git"):
        changed = (
            f" with changes ({git['diff'].get('path')})"
            if git.get("diff")
            else " with changes"
            if git.get("dirty")
            else ""
        )
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


def sources(stage: dict[str, Any]) -> list[str]:
    """What came from outside: a revision of a repository, or files of the user's."""
    if stage.get("repository"):
        return [f"{stage['repository']}@{stage.get('revision_sha')}"]
    outside = [file for file in stage.get("files", []) if file["path"].startswith("/")]
    lines = [
        f"{file['path']} {size(file.get('bytes', 0))} sha256 {file.get('sha256', '')[:12]}"
        for file in outside[:_SHOWN_FILES]
    ]
    return [*lines, *([f"and {len(outside) - _SHOWN_FILES} more files"] if len(outside) > _SHOWN_FILES else [])]


def show_differences(differences: dict[str, list[dict[str, Any]]], names: tuple[str, str]) -> None:
    """One table a kind of difference."""
    console = Console(highlight=False)
    shown = []
    for kind, rows in differences.items():
        if not rows:
            continue
        table = Table(title=kind, title_justify="left", show_edge=False)
        for heading in ("what", *names):
            table.add_column(heading, overflow="fold")
        for row in rows:
            table.add_row(*(Text(_value(row[column])) for column in ("what", "a", "b")))
        shown.append(table)
    console.print(Group(*shown) if shown else "no difference")


def _value(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
