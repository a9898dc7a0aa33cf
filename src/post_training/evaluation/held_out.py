"""Evaluation of one model on held-out examples: exact match and loss of answers, accuracy and margin of preferences.

Conversations: the last assistant turn is generated greedily and compared with what the template writes for the one in the
data: content, reasoning and tool calls by fields, all of which must be right.
Preferences: correct when the chosen answer has the higher log-probability, summed over its tokens, or of a reward model the
higher score.
Held-out examples of a mix: the mean loss of a trained token, and of pairs the same as of preferences.
Prompts: answered greedily, without a score; those of a dataset with `score` give the mean of its rewards.
"""

import json
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from post_training.core import manifest
from post_training.core.errors import UserError
from post_training.core.progress import Progress
from post_training.core.task import Task
from post_training.data.tokens.chat_template import resolve_template
from post_training.evaluation.fields import compare_answers
from post_training.evaluation.preferences import SIDES, Result, held_out_rows, on_pairs, preference
from post_training.evaluation.probabilities import log_probabilities
from post_training.evaluation.prompts import PROMPTS, planned_prompts
from post_training.evaluation.reward_model import Scorer
from post_training.evaluation.rewarded import Weighted, load_rewards, rewarded, sampled
from post_training.models import folder as model_folder
from post_training.models.conversation import conversation_ids, rendered, text_ids
from post_training.models.files import stop_tokens
from post_training.models.loading import (
    answers_that_fit,
    generate,
    gives_scores,
    in_batches,
    load_for_inference,
    load_tokenizer,
    longest_input,
)
from post_training.on_policy.engine import Engine

HELD_OUT = "held-out "
"""Before a stage's name: the input that is its mix."""
_TOO_LONG = "too long for the model"
Messages = list[dict[str, Any]]


def run(task: Task) -> None:
    """Write `samples.jsonl`, one line an example, and the manifest with a result for each dataset.

    Raises UserError for a dataset without a usable example.
    """
    # Their processes start before the model is loaded: a copy of a process that uses a GPU could not use it.
    with ExitStack() as stack:
        rewards = {name: load_rewards(task, name) for name in task.config.get("score", {})}
        for _, reward in (one for own in rewards.values() for one in own):
            stack.enter_context(reward)
        _evaluate(task, rewards)


def _evaluate(task: Task, rewards_of: dict[str, Weighted]) -> None:
    folder = model_folder(task.inputs["model"])
    trust = bool(manifest.read(task.inputs["model"]).get("trust_remote_code"))
    model, tokenizer = load_for_inference(folder, trust_remote_code=trust), load_tokenizer(folder, trust)
    template, size = resolve_template(task.config["chat_template"], folder), task.runtime["batch_size"]
    ranks = gives_scores(folder)
    evaluator: Any = (
        Scorer(model, tokenizer, template, size)
        if ranks
        else Evaluator(model, tokenizer, template, task.config["max_new_tokens"], size)
    )
    results: dict[str, Result] = {}
    samples: list[dict[str, Any]] = []
    rows_in = answered = 0
    dropped: Counter[str] = Counter()
    for name in (name for name in task.inputs if name.startswith(HELD_OUT)):
        results[name], used, long = evaluator.held_out(task.inputs[name], task.config["max_samples"])
        rows_in += used + long
        dropped[_TOO_LONG] += long
        print(f"evaluate: {name}: {_summary(results[name])}", flush=True)
    for name in (name for name in task.inputs if name != "model" and not name.startswith(HELD_OUT)):
        rows = read_rows(task.inputs[name].parent / "rows.jsonl", task.config["max_samples"])
        rows_in += len(rows)
        rewards = rewards_of.get(name, [])
        asked = rows if rewards else [row for row in map(up_to_last_answer, rows) if row]
        if ranks and not any("chosen" in row for row in asked):
            dropped["no pair, for a reward model"] += len(rows)
            print(f"evaluate: {name}: has no pairs, and is left out for a reward model", flush=True)
            continue
        kept = [row for row in asked if (evaluator.leaves_room(row["prompt"]) if rewards else evaluator.fits(row))]
        dropped["no answer in the row"] += len(rows) - len(asked)
        dropped[_TOO_LONG] += len(asked) - len(kept)
        if not kept:
            problem = f"{task.inputs[name]}: no row of {len(rows)} has an answer and is short enough for the model"
            raise UserError(problem)
        if rewards:
            engine = evaluator.engine(task.config["score"][name]["sampling"])
            results[name], found = rewarded(kept, sampled(engine, kept, evaluator.batch_size), rewards)
        else:
            results[name], found = evaluator.preferences(kept) if "chosen" in kept[0] else evaluator.answers(kept)
        samples += [{"dataset": name, **sample} for sample in found]
        print(f"evaluate: {name}: {_summary(results[name])}", flush=True)
    if "prompts" in task.config:
        prompts = planned_prompts(Path(task.runtime["prompts"]), task.config["prompts"])
        kept = [prompt for prompt in prompts if evaluator.leaves_room(prompt["messages"])]
        dropped[_TOO_LONG] += len(prompts) - len(kept)
        rows_in, answered = rows_in + len(prompts), answered + len(kept)
        samples += [{"dataset": PROMPTS, **_shown(sample)} for sample in evaluator.open_answers(kept)]
        print(f"evaluate: {PROMPTS}: {len(kept)} answers", flush=True)
    with open(task.directory / "samples.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
    if not samples and not results:
        raise UserError(f"{folder}: a reward model ranks pairs, and none of the datasets has one")
    rows_out = sum(result["rows"] for result in results.values()) + answered
    task.finish(results=results, rows_in=rows_in, rows_out=rows_out, dropped=dict(dropped))


def read_rows(path: Path, limit: int | None) -> list[dict[str, Any]]:
    """The first `limit` transformed rows. Raises UserError when there are none."""
    with open(path, encoding="utf-8") as lines:
        rows = [json.loads(line) for _, line in zip(range(limit or 1 << 62), lines, strict=False)]
    if not rows:
        raise UserError(f"{path}: has no rows to evaluate on")
    return rows


def up_to_last_answer(row: dict[str, Any]) -> dict[str, Any] | None:
    """A conversation cut after its last assistant turn, which is the expected answer; None where there is none."""
    if "chosen" in row:
        return row
    last = max((index for index, message in enumerate(row["messages"]) if message["role"] == "assistant"), default=0)
    tools = {"tools": row["tools"]} if row.get("tools") else {}
    return {"messages": row["messages"][: last + 1], **tools} if last else None


class Evaluator:
    """A model with its chat template, and the limits of its answers."""

    def __init__(self, model: Any, tokenizer: Any, template: str, max_new_tokens: int, batch_size: int) -> None:
        self.model, self.tokenizer, self.template = model, tokenizer, template
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size
        self.stop = stop_tokens(tokenizer, template)
        self.longest = longest_input(model)

    def engine(self, sampling: dict[str, Any]) -> Engine:
        """The same model, for sampled answers."""
        return Engine(self.model, self.tokenizer, self.template, sampling | {"max_new_tokens": self.max_new_tokens})

    def fits(self, row: dict[str, Any]) -> bool:
        """Whether the example and a full answer stay within the model's positions."""
        if "chosen" in row:
            return all(
                len(self._encode(row["prompt"] + row[side])[0]) <= self.longest for side in ("chosen", "rejected")
            )
        tools = row.get("tools")
        fits = len(self._encode(row["messages"], tools=tools)[0]) <= self.longest
        return fits and self.leaves_room(row["messages"][:-1], tools)

    def leaves_room(self, messages: Messages, tools: Any = None) -> bool:
        """Whether a full answer to these turns stays within the model's positions."""
        return len(self._prompt(messages, tools)) + self.max_new_tokens <= self.longest

    def answers(self, rows: list[dict[str, Any]]) -> tuple[Result, list[dict[str, Any]]]:
        """Exact match of the generated last turn, as a whole and by fields, and the mean loss a token of the expected one."""
        samples = self.open_answers([{**row, "messages": row["messages"][:-1]} for row in rows])
        by_field = compare_answers(rows, samples, self._answer_text)
        encoded = [self._encode(row["messages"], tools=row.get("tools")) for row in rows]
        loss = _mean_loss(self._scored(encoded))
        rates = {"exact_match": _share(samples, "correct"), "loss": loss, "stopped": _share(samples, "stopped")}
        return {"kind": "exact_match", "rows": len(rows), **rates, **by_field}, samples

    def open_answers(self, prompts: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The greedy answer to each prompt, in their order; `text` has its control tokens, its stop token apart."""
        generated = self._generated([(prompt["messages"], prompt.get("tools")) for prompt in prompts])
        samples = []
        for prompt, ids in zip(prompts, generated, strict=True):
            stopped = ids[-1] in self.stop
            answer = self.tokenizer.decode(ids, skip_special_tokens=True).strip()
            identity = {"id": prompt["id"]} if "id" in prompt else {}
            text = self.tokenizer.decode(ids[:-1] if stopped else ids, skip_special_tokens=False)
            samples.append(
                {**identity, "prompt": prompt["messages"], "answer": answer, "stopped": stopped, "text": text}
            )
        return samples

    def preferences(self, rows: list[dict[str, Any]]) -> tuple[Result, list[dict[str, Any]]]:
        """Share of pairs whose chosen answer has the higher log-probability, and the mean difference in nats."""
        encoded = [
            self._encode(row["prompt"] + row[side], skip=_turns(row["prompt"])) for row in rows for side in SIDES
        ]
        return on_pairs(rows, [total for total, _ in self._scored(encoded)], "logp")

    def held_out(self, mix: Path, limit: int | None) -> tuple[Result, int, int]:
        """The result on the held-out examples of a mix; how many were used, and how many are too long for the model.

        Raises UserError when all are too long.
        """
        kept, dropped = held_out_rows(mix, limit, self.longest)
        scored = self._scored(
            # Nothing predicts the first token.
            [(ids.tolist(), (np.flatnonzero(trained[1:]) + 1).tolist()) for row in kept for _, ids, trained in row]
        )
        if [name for name, _, _ in kept[0]] == [*SIDES]:
            result = {"kind": "preference", **preference([total for total, _ in scored])}
        else:
            result = {"kind": "loss", "tokens": sum(count for _, count in scored), "loss": _mean_loss(scored)}
        return {**result, "rows": len(kept)}, len(kept), dropped

    def _scored(self, rows: list[tuple[list[int], list[int]]]) -> list[tuple[float, int]]:
        return log_probabilities(self.model, self.tokenizer.pad_token_id, rows, self.batch_size)

    def _generated(self, conversations: list[tuple[Messages, Any]]) -> list[list[int]]:
        """The greedy next turn of each conversation with its tools, as ids, a stop token among them."""
        prompts = [self._prompt(*conversation) for conversation in conversations]
        progress, pad = Progress("evaluate: answers", "rows", len(prompts)), self.tokenizer.pad_token_id
        lengths = [len(prompt) for prompt in prompts]
        at_a_time = min(self.batch_size, answers_that_fit(self.model, max(lengths, default=0) + self.max_new_tokens))

        def answer(some: list[list[int]]) -> list[list[int]]:
            return generate(self.model, some, self.stop, pad, self.max_new_tokens)

        return in_batches(prompts, lengths, at_a_time, answer, "evaluate", progress.update)

    def _text(self, messages: Messages, tools: Any, prompt: bool) -> str:
        return rendered(self.tokenizer, messages, self.template, tools, prompt)

    def _prompt(self, messages: Messages, tools: Any = None) -> list[int]:
        return conversation_ids(self.tokenizer, messages, self.template, tools, add_generation_prompt=True)

    def _answer_text(self, messages: Messages, tools: Any) -> str | None:
        """What the template writes for the last turn after the generation prompt, up to its stop token; None where it cannot."""
        try:
            prompt, text = self._text(messages[:-1], tools, True), self._text(messages, tools, False)
        except Exception:  # a template is a program, and may know no tools
            return None
        if not text.startswith(prompt):
            return None
        ids = text_ids(self.tokenizer, text[len(prompt) :])
        end = next((index for index, token in enumerate(ids) if token in self.stop), len(ids))
        return str(self.tokenizer.decode(ids[:end], skip_special_tokens=False))

    def _encode(self, messages: Messages, skip: int | None = None, tools: Any = None) -> tuple[list[int], list[int]]:
        """Ids of a conversation and the positions of its answer: assistant turns after the first `skip`, or the last."""
        settings = {"chat_template": self.template, "return_dict": True, "return_assistant_tokens_mask": True}
        encoded = self.tokenizer.apply_chat_template(messages, tools=tools, **settings)
        steps = np.diff([*encoded["assistant_masks"], 0])
        starts, ends = np.flatnonzero(steps == 1) + 1, np.flatnonzero(steps == -1) + 1
        runs = [
            range(*bounds) for bounds in zip(starts.tolist(), ends[len(ends) - len(starts) :].tolist(), strict=True)
        ]
        chosen = runs[_turns(messages) - 1 if skip is None else skip :]
        return list(encoded["input_ids"]), [position for run in chosen for position in run]


def _shown(sample: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in sample.items() if key != "text"}


def _turns(messages: Messages) -> int:
    return sum(message["role"] == "assistant" for message in messages)


def _share(samples: list[dict[str, Any]], key: str) -> float:
    return sum(bool(sample[key]) for sample in samples) / len(samples)


def _mean_loss(scored: list[tuple[float, int]]) -> float:
    return -sum(total for total, _ in scored) / max(sum(count for _, count in scored), 1)


def _summary(result: Result) -> str:
    """`loss 0.125, tokens 3,040, rows 40`, for the log."""
    return ", ".join(f"{key} {value:,.6g}" for key, value in result.items() if isinstance(value, int | float))
