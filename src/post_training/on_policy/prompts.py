"""Body of the rule `prompts`: which prompts are asked, each once.

Left out are repetitions, prompts of rows that a mix holds out, and with `rows` all but so many, chosen by content: another
row of the source moves nothing.
"""

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import orjson

from post_training.core import json_lines, manifest
from post_training.core.errors import DataError
from post_training.core.fingerprint import replacing
from post_training.core.task import Task
from post_training.data.rows import PROMPTS as SHAPE
from post_training.data.rows import InvalidRow, Rules, checker
from post_training.data.view import open_rows
from post_training.on_policy.answers import PROMPTS, prompt_digest


def run(task: Task) -> None:
    """Write `prompts.jsonl`. Raises DataError when nothing is left."""
    rows = list(json_lines.read(task.inputs["rows"].parent / "rows.jsonl"))
    held = _held_out(task.inputs["held_out"]) if "held_out" in task.inputs else set()
    dropped: Counter[str] = Counter()
    kept: dict[str, dict[str, Any]] = {}
    for row in rows:
        prompt = _as_prompt(row)
        key = prompt_digest(prompt["prompt"]) if prompt else ""
        reason = "no_user_turn" if not prompt else "held_out" if key in held else "repeated" if key in kept else None
        if reason is None:
            assert prompt is not None
            kept[key] = {name: row[name] for name in ("row", "part") if name in row} | prompt
        else:
            dropped[reason] += 1
    wanted = task.config["rows"]
    chosen = set(sorted(kept, key=lambda key: _order(task.config["seed"], key))[:wanted])
    task.directory.mkdir(parents=True, exist_ok=True)
    with replacing(task.directory / PROMPTS) as file:
        file.writelines(orjson.dumps(prompt) + b"\n" for key, prompt in kept.items() if key in chosen)
    said = "".join(f", {reason} {count:,}" for reason, count in dropped.items())
    print(
        f"{len(rows):,} rows, {len(chosen):,} prompts{said}, left out by rows {len(kept) - len(chosen):,}", flush=True
    )
    if not chosen:
        raise DataError(f"{task.inputs['rows']}: no prompt is left of {len(rows):,} rows{said}; give other prompts")
    task.finish(rows_in=len(rows), rows_out=len(chosen), dropped=dict(dropped), left_out=len(kept) - len(chosen))


def _as_prompt(row: dict[str, Any]) -> dict[str, Any] | None:
    """A row of any shape as a prompt; None where nothing is asked."""
    content = {key: value for key, value in row.items() if key not in ("row", "part")}
    if "columns" in row:
        return content
    try:
        return checker(SHAPE)(content, Rules())
    except InvalidRow:
        return None


def _held_out(mixed: Path) -> set[str]:
    """Digests of the prompts that a mix holds out, whichever of its datasets they are in."""
    mix = manifest.read(mixed)
    if not (mix.get("held_out") or {}).get("rows"):
        return set()
    documents = open_rows(mixed, part="eval").distinct()
    wanted: dict[str, set[int]] = {}
    for index in range(len(documents)):
        for source in documents.sources(index):
            name, _, number = source.rpartition(" row ")
            wanted.setdefault(name, set()).add(int(number))
    found = set()
    for entry in mix["inputs"].values():
        tokenized = Path(entry["path"])
        numbers = wanted.get(tokenized.parent.name.rpartition("-")[0], set())
        rows = Path(manifest.read(tokenized)["inputs"]["rows"]["path"]).with_name("rows.jsonl")
        for row in json_lines.read(rows) if numbers else ():
            prompt = _as_prompt(row) if row["row"] in numbers else None
            if prompt:
                found.add(prompt_digest(prompt["prompt"]))
    return found


def _order(seed: int, key: str) -> str:
    return hashlib.sha256(f"{seed} {key}".encode()).hexdigest()
