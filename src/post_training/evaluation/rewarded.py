"""Evaluation by rewards: their mean over the answers to a dataset's prompts, greedy ones or sampled as its `generate` says."""

from collections import Counter
from pathlib import Path
from typing import Any

from post_training.core.errors import UserError
from post_training.core.task import Task
from post_training.on_policy.answers import prompt_digest
from post_training.on_policy.engine import Engine, Request
from post_training.on_policy.generate import batches_of
from post_training.on_policy.limited_reward import LimitedReward
from post_training.rewards import load_reward

Weighted = list[tuple[float, LimitedReward]]


def load_rewards(task: Task, dataset: str) -> Weighted:
    """Weight and reward of each entry of a dataset's `score`; empty for a dataset without it."""
    entries = task.config.get("score", {}).get(dataset, {}).get("rewards", [])
    places = task.runtime.get("score", {}).get(dataset, [])
    return [
        (weight, LimitedReward(load_reward(name, Path(file), arguments), limit_seconds))
        for (name, _, arguments, weight), (file, limit_seconds) in zip(entries, places, strict=True)
    ]


def sampled(engine: Engine, rows: list[dict[str, Any]], batch_size: int) -> list[dict[str, Any]]:
    """A sampled answer to each prompt, in the form of `Evaluator.open_answers`; the same ones each time."""
    lengths = [engine.length(row["prompt"], row.get("tools")) for row in rows]
    found: list[dict[str, Any]] = [{} for _ in rows]
    for batch in batches_of(lengths, 1, batch_size):
        asked = [rows[place] for place, _ in batch]
        requests = [Request(row["prompt"], row.get("tools"), prompt_digest(row["prompt"])) for row in asked]
        for (place, _), answer in zip(batch, engine.answers(requests), strict=True):
            found[place] = {"prompt": rows[place]["prompt"], "answer": answer.text, "stopped": answer.ended}
    return found


def rewarded(
    rows: list[dict[str, Any]], samples: list[dict[str, Any]], rewards: Weighted
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The result, and the samples each with its `reward`, the weighted sum.

    Raises UserError where a reward gives an answer no score: a mean over the rest would not be comparable.
    """
    totals = [0.0] * len(rows)
    answers = [
        {"prompt": row["row"], "sample": 0, "answer": sample["answer"]}
        for row, sample in zip(rows, samples, strict=True)
    ]
    for weight, reward in rewards:
        lines = reward.lines(rows, answers)
        if lines is None:
            raise UserError(f"evaluation: stopped while reward {reward.name} was asked")
        missing = [index for index, line in enumerate(lines) if line["score"] is None]
        if missing:
            reason, _ = Counter(lines[index]["reason"] for index in missing).most_common(1)[0]
            first = f"the first is to row {rows[missing[0]]['row']}: {samples[missing[0]]['answer'][:80]!r}"
            raise UserError(
                f"evaluation: reward {reward.name}: no score for {len(missing):,} of {len(rows):,} answers ({reason}); {first}"
            )
        totals = [total + weight * line["score"] for total, line in zip(totals, lines, strict=True)]
    samples = [{**sample, "reward": total} for sample, total in zip(samples, totals, strict=True)]
    stopped = sum(sample["stopped"] for sample in samples) / len(samples)
    return {"kind": "reward", "rows": len(rows), "reward": sum(totals) / len(rows), "stopped": stopped}, samples
