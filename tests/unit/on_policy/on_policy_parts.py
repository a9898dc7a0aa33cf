"""Prompts, answers and scores on disk, and tasks over them, without Snakemake."""

import json
from pathlib import Path
from typing import Any

from tiny import TEMPLATE

from post_training.core.task import Task

SAMPLING = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": 8, "seed": 0}


def stage(folder: Path, lines: dict[str, list[dict[str, Any]]]) -> Path:
    """A finished stage with these JSON Lines files; returns its manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in lines.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "manifest.json"
    path.write_text(json.dumps({"files": [], "fingerprint": folder.name}))
    return path


def prompts(folder: Path, count: int, **columns: list[Any]) -> Path:
    rows = [
        {
            "row": n,
            "prompt": [{"role": "user", "content": "and " * (n % 5) + f"{n} and {n % 7}?"}],
            "columns": {name: values[n] for name, values in columns.items()},
        }
        for n in range(count)
    ]
    return stage(folder, {"prompts.jsonl": rows})


def answers(folder: Path, texts: list[list[str]], cut: tuple[tuple[int, int], ...] = ()) -> Path:
    """Of each prompt, the texts of its answers."""
    lines = [
        {"prompt": p, "sample": s, "answer": text, "tokens": 3, "ended": (p, s) not in cut}
        for p, own in enumerate(texts)
        for s, text in enumerate(own)
    ]
    return stage(folder, {"answers.jsonl": lines})


def scores(folder: Path, values: list[list[float | None]]) -> Path:
    lines = [{"prompt": p, "sample": s, "score": v} for p, own in enumerate(values) for s, v in enumerate(own)]
    return stage(folder, {"scores.jsonl": lines})


def task(kind: str, config: dict, runtime: dict, inputs: dict[str, Path], folder: Path) -> Task:
    folder.mkdir(parents=True, exist_ok=True)
    spec = {"stage": kind, "fingerprint": folder.name, "config": config, "inputs": dict.fromkeys(inputs, "x")}
    return Task.of(spec, runtime, inputs, folder / "manifest.json")


def generate_task(
    folder: Path, asked: Path, model: Path, shard: tuple[int, int] = (0, 1), n: int = 3, **sampling
) -> Task:
    config = {"n": n, "sampling": SAMPLING | sampling, "chat_template": TEMPLATE, "shard": list(shard)}
    return task("generate", config, {"batch_size": 8}, {"prompts": asked, "model": model}, folder)
