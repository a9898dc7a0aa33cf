"""Datasets that a model wrote, and which of two models' held-out answers have the higher reward."""

import itertools
from pathlib import Path
from typing import Any

from post_training.core import json_lines, manifest
from post_training.core.task import Task
from post_training.data.shapes import VALUES
from post_training.on_policy.select import CANDIDATES

_SHOWN_PROMPTS = 3


def generated(mixed: Path) -> list[dict[str, Any]]:
    """Datasets of a mix that a model wrote: `name`, `prompts`, `with_rows`, `rows`, counts of `answers`, quantiles of `scores`,
    `mean_characters` by side, and some `candidates`, prompts with all their answers."""
    found = []
    mix = manifest.read(mixed)
    for name, entry in mix["inputs"].items():
        path = Path(manifest.read(Path(entry["path"]))["inputs"]["rows"]["path"])
        facts = manifest.read(path)
        while facts["stage"] == "filter":
            path = Path(facts["inputs"]["rows"]["path"])
            facts = manifest.read(path)
        if facts["stage"] == "select":
            lines = itertools.islice(json_lines.read(path.with_name(CANDIDATES)), _SHOWN_PROMPTS)
            found.append(
                {
                    "name": name,
                    "prompts": facts["rows_in"],
                    "with_rows": facts["rows_out"],
                    "rows": facts["examples"],
                    "answers": facts["answers"],
                    "scores": facts["scores"],
                    "mean_characters": facts["mean_characters"],
                    "candidates": [_candidate(line) for line in lines],
                }
            )
    return found


def _candidate(line: dict[str, Any]) -> dict[str, Any]:
    """A prompt with its answers, best first, each with what became of it."""
    sides: dict[int, list[str]] = {}
    for row in line["rows"]:
        for side, sample in row.items():
            if side not in VALUES:
                name = side if "label" not in row else "desirable" if row["label"] else "undesirable"
                sides.setdefault(sample, []).append("taken" if name == "answer" else name)
    answers = [
        {
            **one,
            "became": ", ".join(dict.fromkeys(sides.get(one["sample"], [])))
            or one.get("why_not", "").replace("_", " "),
        }
        for one in line["answers"]
    ]
    answers.sort(key=lambda one: -one["score"] if one["score"] is not None else float("inf"))
    return {"prompt": line["prompt"], "answers": answers, "reason": line["reason"].replace("_", " ")}


def win_rates(task: Task, models: list[str]) -> list[dict[str, Any]]:
    """Of each dataset with rewards and each model with the one before it: shares of prompts that it wins, ties and loses."""
    rewards: dict[str, dict[str, list[float]]] = {}
    for model in models:
        if f"evaluate_{model}" in task.inputs:
            for sample in json_lines.read(task.inputs[f"evaluate_{model}"].parent / "samples.jsonl"):
                if "reward" in sample:
                    rewards.setdefault(sample["dataset"], {}).setdefault(model, []).append(sample["reward"])
    found = []
    for dataset, own in rewards.items():
        for before, after in itertools.pairwise(model for model in models if model in own):
            pairs = list(zip(own[before], own[after], strict=True))
            wins, losses = (sum(one) / len(pairs) for one in ([b < a for b, a in pairs], [b > a for b, a in pairs]))
            rates = {"wins": wins, "ties": 1 - wins - losses, "losses": losses}
            found.append({"dataset": dataset, "before": before, "after": after, **rates})
    return found
