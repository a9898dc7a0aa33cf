"""A lineage as a tree on the terminal."""

import sys
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from post_training.core.format import size, visible
from post_training.lineage.collect import Lineage, Stage, Stages
from post_training.lineage.compare import Rows
from post_training.lineage.verify import Problem, Verification

_FACTS = {"rows_out": "rows", "tokens": "tokens", "steps": "steps", "parameters": "parameters", "loss_last": "loss"}
_SHOWN_FILES = 8
_SHOWN_KEYS = 8
"""More keys of a section that only one of two results has are one line; with --json each is there."""


def show(lineage: Lineage, checked: Verification | None) -> None:
    """Print the tree, the libraries, the costs, and what no longer matches."""
    # A file or a pager has no width to fit.
    console = Console(width=None if sys.stdout.isatty() else 10_000, highlight=False)
    problems = checked.problems if checked else []
    console.print(_tree(lineage["root"], "", lineage["stages"], problems, set()))
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
    found.append(f"{len(files):,} file{'s' * (len(files) != 1)}, {size(sum(file.get('bytes', 0) for file in files))}")
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
    """Print a line for each difference, `what: A -> B`; a section that only one of them has is one line."""
    console = Console(highlight=False)
    shown = {kind: rows for kind, rows in differences.items() if rows}
    for label, name in zip("AB", names, strict=True) if shown else ():
        console.print(f"{label}: {name}", style="dim", markup=False, soft_wrap=True)
    for kind, rows in shown.items():
        console.print(f"\n{kind}", style="bold", markup=False)
        for what, a, b in _joined(rows):
            line = Text.assemble((f"  {what}: ", "cyan"), a, (" -> ", "dim"), b)
            console.print(line, soft_wrap=True)
    if not shown:
        console.print("no difference")


def _joined(rows: Rows) -> Iterator[tuple[str, str, str]]:
    """What differs and both values; many keys of one section that one side lacks are joined."""
    lacking: dict[tuple[str, bool], list[str]] = {}
    for row in rows:
        section, _, key = row["what"].partition(".")
        if key and (row["a"] is None) != (row["b"] is None):
            lacking.setdefault((section, row["a"] is None), []).append(key)
    joined: set[tuple[str, bool]] = set()
    for row in rows:
        section = (row["what"].partition(".")[0], row["a"] is None)
        keys = lacking.get(section, []) if (row["a"] is None) != (row["b"] is None) else []
        if len(keys) <= _SHOWN_KEYS:
            yield row["what"], _value(row["a"]), _value(row["b"])
        elif section not in joined:
            joined.add(section)
            sides = ("-", f"{len(keys)} keys")
            yield f"{section[0]}.*", *(sides if section[1] else sides[::-1])


def _value(value: Any) -> str:
    return "-" if value is None else f"{value:.6g}" if isinstance(value, float) else visible(str(value))
