"""Evaluation by rewards: their mean over the answers to a dataset's prompts, greedy ones or sampled as its `generate` says."""

import math
from pathlib import Path
from typing import Any

from post_training.core.errors import UserError, brief
from post_training.core.task import Task
from post_training.on_policy.answers import prompt_digest
from post_training.on_policy.engine import Engine, Request
from post_training.on_policy.generate import batches_of
from post_training.rewards import Reward, load_reward

Weighted = list[tuple[float, Reward]]


def load_rewards(task: Task, dataset: str) -> Weighted:
    """Weight and reward of each entry of a dataset's `score`; empty for a dataset without it."""
    entries = task.config.get("score", {}).get(dataset, {}).get("rewards", [])
    files = task.runtime.get("score", {}).get(dataset, [])
    return [
        (weight, load_reward(name, Path(file), arguments))
        for (name, _, arguments, weight), file in zip(entries, files, strict=True)
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

    Raises UserError where a reward raises, or gives an answer no score: a mean over the rest would not be comparable.
    """
    totals = [0.0] * len(rows)
    prompts, answers = [row["prompt"] for row in rows], [sample["answer"] for sample in samples]
    for weight, reward in rewards:
        try:
            scores = [
                math.nan if one is None else float(one)
                for one in reward(prompts, answers, [row["columns"] for row in rows])
            ]
        except Exception as error:  # a reward is anybody's code
            raise UserError(f"evaluation: reward {reward.name}: {type(error).__name__}: {brief(error)}") from None
        missing = [index for index, score in enumerate(scores) if not math.isfinite(score)]
        if missing:
            raise UserError(
                f"evaluation: reward {reward.name}: no finite score for {len(missing):,} of {len(rows):,} answers; the first is to "
                f"row {rows[missing[0]]['row']}: {answers[missing[0]][:80]!r}"
            )
        totals = [total + weight * score for total, score in zip(totals, scores, strict=True)]
    samples = [{**sample, "reward": total} for sample, total in zip(samples, totals, strict=True)]
    stopped = sum(sample["stopped"] for sample in samples) / len(samples)
    return {"kind": "reward", "rows": len(rows), "reward": sum(totals) / len(rows), "stopped": stopped}, samples
