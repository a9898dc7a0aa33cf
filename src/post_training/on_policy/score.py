"""Body of the rules `score` and `score_model`: one reward's score of every answer.

An answer without a score has a reason: the reward raised for it, took too long, or gave None, NaN or infinity. Such answers never
come into a row; where no answer has a score, or the reward cannot be loaded, the job fails with one line.
"""

from collections import Counter
from pathlib import Path

import numpy as np

from post_training.core import manifest
from post_training.core.errors import DataError
from post_training.core.progress import Progress
from post_training.core.task import Task
from post_training.data.registry import REWARDS, TransformSource
from post_training.models import folder as model_folder
from post_training.on_policy.answers import (
    PATIENCE_SECONDS,
    SCORES,
    SHARD,
    Line,
    Resumable,
    must_stop,
    read_answers,
    read_lines,
    read_prompts,
)
from post_training.on_policy.limited_reward import LimitedReward
from post_training.rewards import Reward, load_reward
from post_training.run_dir.lock import take
from post_training.run_dir.stop import REQUEST

_BATCH = 256
QUANTILES = (0, 10, 25, 50, 75, 90, 100)
"""Percentages at which a manifest has a score's quantiles."""


def run(task: Task) -> int:
    """Write `scores.jsonl` and the manifest. Returns 0, or the exit code of the signal on which it stopped."""
    with REQUEST, take(task.directory, patience_seconds=PATIENCE_SECONDS, alone=True):
        return _run_owned(task)


def _run_owned(task: Task) -> int:
    prompts, answers = read_prompts(task.inputs["prompts"]), read_answers(task.inputs)
    keys = list(answers)
    batches = [keys[start : start + _BATCH] for start in range(0, len(keys), _BATCH)]
    file = Resumable(task.directory / SCORES, batches)
    if file.rows:
        print(f"score: resuming after {file.rows:,} of {len(keys):,} answers", flush=True)
    progress, before = Progress("score", "answers", len(keys)), file.rows
    with LimitedReward(_reward(task), task.runtime.get("limit_seconds")) as limited:
        while file.done < len(batches):
            if (code := must_stop("score", file, len(keys))) is not None:
                return code
            lines = [answers[key] for key in batches[file.done]]
            found = limited.lines([prompts[line["prompt"]] for line in lines], lines)
            if found is not None:
                file.append(found)
            progress.update(file.rows - before)
    _finish(task, read_lines(file.path) if keys else [])
    return 0


def _reward(task: Task) -> Reward:
    arguments = dict(task.config["arguments"])
    if "reward_model" in task.inputs:
        arguments["model"] = str(model_folder(task.inputs["reward_model"]))
    reward = load_reward(task.config["reward"], Path(task.runtime["file"]), arguments | task.runtime["arguments"])
    if (reward.name, Path(task.runtime["file"]).parent) == ("reward_model", REWARDS):
        reward([], [], [])  # loads the model, or says once why not, and not for each answer
    return reward


def quantiles(values: list[float]) -> dict[str, float]:
    """Percentage -> quantile, and the mean; empty for no value."""
    if not values:
        return {}
    found = np.percentile(np.array(values, dtype=np.float64), QUANTILES).tolist()
    named = {str(share): round(value, 6) for share, value in zip(QUANTILES, found, strict=True)}
    return {"mean": round(sum(values) / len(values), 6), **named}


def _unasked(task: Task) -> str:
    """How many prompts were not asked, because they are too long."""
    shards = (manifest.read(path) for name, path in task.inputs.items() if name.startswith(SHARD))
    long = sum(shard.get("dropped", {}).get("prompt_too_long", 0) for shard in shards)
    return f": {long:,} leave no room for generate.max_new_tokens in what the model can read" if long else ""


def _finish(task: Task, lines: list[Line]) -> None:
    values = [line["score"] for line in lines if line["score"] is not None]
    reasons = Counter(line["reason"] for line in lines if line["score"] is None)
    failed = "".join(f"\n  no score {count:,}: {reason}" for reason, count in reasons.most_common(10))
    if not lines:
        raise DataError(f"reward {task.config['reward']}: no prompt has an answer{_unasked(task)}; give other prompts")
    if not values:
        raise DataError(
            f"reward {task.config['reward']}: none of {len(lines):,} answers has a score; " + " ".join(failed.split())
        )
    source = TransformSource(task.config["reward"], Path(task.runtime["file"]), "register_reward")
    found = quantiles(values)
    print(
        f"{len(values):,} scores, mean {found['mean']:g}, quantiles {', '.join(f'{k}% {v:g}' for k, v in list(found.items())[1:])}{failed}"
    )
    task.finish(
        rows_in=len(lines),
        rows_out=len(values),
        dropped=dict(reasons.most_common(50)),
        scores=found,
        files=[{"path": SCORES}, *source.keep(task.directory)],
    )
