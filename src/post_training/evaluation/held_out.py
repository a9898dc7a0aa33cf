"""One model on held-out rows: exact match and loss of answers, accuracy and margin of preferences.

Conversations: the last assistant turn is generated greedily and compared with the one in the data.
Preferences: right when the chosen answer has the higher log-probability, summed over its tokens.
Rows that a mix holds out: the mean loss of a trained token, and of pairs the same as of preferences.
Prompts: answered greedily, for a person to read.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from post_training.core import manifest
from post_training.core.errors import UserError
from post_training.core.fingerprint import file_sha256
from post_training.core.progress import Progress
from post_training.core.task import Task
from post_training.data import shapes
from post_training.data.tokens.chat_template import resolve_template
from post_training.data.view import open_rows
from post_training.evaluation.prompts import PROMPTS, read_prompts
from post_training.models import folder as model_folder
from post_training.models.files import stop_tokens
from post_training.models.loading import generate, load_for_inference, load_tokenizer

# Logits of a batch stay below this many bytes, whatever the vocabulary.
_LOGIT_BYTES = 1 << 30
HELD_OUT = "held-out "
"""Before a stage's name: the input that is its mix."""
Messages = list[dict[str, Any]]


def run(task: Task) -> None:
    """Write `samples.jsonl`, one line a row, and the manifest with `results` for each dataset."""
    folder = model_folder(task.inputs["model"])
    trust = bool(manifest.read(task.inputs["model"]).get("trust_remote_code"))
    judge = Judge(
        load_for_inference(folder, trust_remote_code=trust),
        load_tokenizer(folder, trust),
        resolve_template(task.config["chat_template"], folder),
        task.config["max_new_tokens"],
        task.runtime["batch_size"],
    )
    results: dict[str, dict[str, Any]] = {}
    samples: list[dict[str, Any]] = []
    rows_in = answered = 0
    dropped: Counter[str] = Counter()
    for name in (name for name in task.inputs if name.startswith(HELD_OUT)):
        results[name], used, long = judge.held_out(task.inputs[name], task.config["max_samples"])
        rows_in += used + long
        dropped["too long for the model"] += long
        print(f"evaluate: {name}: {json.dumps(results[name])}", flush=True)
    for name in (name for name in task.inputs if name != "model" and not name.startswith(HELD_OUT)):
        rows = read_rows(task.inputs[name].parent / "rows.jsonl", task.config["max_samples"])
        rows_in += len(rows)
        asked = [row for row in map(up_to_last_answer, rows) if row]
        kept = [row for row in asked if judge.fits(row)]
        dropped["no answer in the row"] += len(rows) - len(asked)
        dropped["too long for the model"] += len(asked) - len(kept)
        if not kept:
            raise UserError(
                f"{task.inputs[name]}: no row of {len(rows)} has an answer and is short enough for the model"
            )
        results[name], found = judge.preferences(kept) if "chosen" in kept[0] else judge.answers(kept)
        samples += [{"dataset": name, **sample} for sample in found]
        print(f"evaluate: {name}: {json.dumps(results[name])}", flush=True)
    if "prompts" in task.config:
        prompts = planned_prompts(Path(task.runtime["prompts"]), task.config["prompts"])
        kept = [prompt for prompt in prompts if judge.leaves_room(prompt["messages"])]
        dropped["too long for the model"] += len(prompts) - len(kept)
        rows_in, answered = rows_in + len(prompts), answered + len(kept)
        samples += [{"dataset": PROMPTS, **sample} for sample in judge.open_answers(kept)]
        print(f"evaluate: {PROMPTS}: {len(kept)} answers", flush=True)
    with open(task.directory / "samples.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
    rows_out = sum(result["rows"] for result in results.values()) + answered
    task.finish(results=results, rows_in=rows_in, rows_out=rows_out, dropped=dict(dropped))


def read_rows(path: Path, limit: int | None) -> list[dict[str, Any]]:
    """The first `limit` transformed rows."""
    with open(path, encoding="utf-8") as lines:
        rows = [json.loads(line) for _, line in zip(range(limit or 1 << 62), lines, strict=False)]
    if not rows:
        raise UserError(f"{path}: has no rows to evaluate on")
    return rows


def planned_prompts(path: Path, sha256: str) -> list[dict[str, Any]]:
    """The prompts, if they are those that the run was planned with."""
    if not path.is_file() or file_sha256(path) != sha256:
        raise UserError(f"{path}: changed since the run was planned; start again to use it as it is now")
    return read_prompts(path)


def up_to_last_answer(row: dict[str, Any]) -> dict[str, Any] | None:
    """A conversation cut after its last assistant turn, which is the one asked for; None where there is none."""
    if "chosen" in row:
        return row
    last = max((place for place, message in enumerate(row["messages"]) if message["role"] == "assistant"), default=0)
    return {"messages": row["messages"][: last + 1]} if last else None


class Judge:
    """A model with the template and the limits that it is asked under."""

    def __init__(self, model: Any, tokenizer: Any, template: str, max_new_tokens: int, batch_size: int) -> None:
        self.model, self.tokenizer, self.template = model, tokenizer, template
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size
        self.stop = stop_tokens(tokenizer, template)
        self.longest = getattr(model.config, "max_position_embeddings", None) or 1 << 62

    def fits(self, row: dict[str, Any]) -> bool:
        """Whether the row and a full answer stay within the model's positions."""
        if "chosen" in row:
            lengths = [len(self._encode(row["prompt"] + row[side])[0]) for side in ("chosen", "rejected")]
            return max(lengths) <= self.longest
        whole = len(self._encode(row["messages"])[0]) <= self.longest
        return whole and self.leaves_room(row["messages"][:-1])

    def leaves_room(self, messages: Messages) -> bool:
        """Whether a full answer to these turns stays within the model's positions."""
        return len(self._prompt(messages)) + self.max_new_tokens <= self.longest

    def answers(self, rows: list[dict[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Exact match of the generated last turn, and the mean loss a token of the given one."""
        conversations = [row["messages"] for row in rows]
        generated = self._generated([messages[:-1] for messages in conversations])
        scored = self._log_probabilities([self._encode(messages) for messages in conversations])
        samples = []
        for messages, (answer, stopped) in zip(conversations, generated, strict=True):
            expected = messages[-1]["content"].strip()
            # An answer that had to be cut off is not the expected one, even if it began like it.
            samples.append(
                {
                    "prompt": messages[:-1],
                    "expected": expected,
                    "answer": answer,
                    "correct": stopped and answer == expected,
                    "stopped": stopped,
                }
            )
        counted = sum(count for _, count in scored)
        result = {
            "kind": "exact_match",
            "rows": len(rows),
            "exact_match": _share(samples, "correct"),
            "loss": -sum(total for total, _ in scored) / max(counted, 1),
            "stopped": _share(samples, "stopped"),
        }
        return result, samples

    def open_answers(self, prompts: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The greedy answer to each prompt, in their order."""
        generated = self._generated([prompt["messages"] for prompt in prompts])
        return [
            {
                **({"id": prompt["id"]} if "id" in prompt else {}),
                "prompt": prompt["messages"],
                "answer": answer,
                "stopped": stopped,
            }
            for prompt, (answer, stopped) in zip(prompts, generated, strict=True)
        ]

    def preferences(self, rows: list[dict[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Share of pairs whose chosen answer is the likelier one, and the mean difference in nats."""
        encoded = [
            self._encode(row["prompt"] + row[side], skip=_turns(row["prompt"]))
            for row in rows
            for side in ("chosen", "rejected")
        ]
        totals = [total for total, _ in self._log_probabilities(encoded)]
        samples = []
        for index, row in enumerate(rows):
            chosen, rejected = totals[2 * index], totals[2 * index + 1]
            sides = {"prompt": row["prompt"], "chosen": row["chosen"], "rejected": row["rejected"]}
            samples.append({**sides, "chosen_logp": chosen, "rejected_logp": rejected, "correct": chosen > rejected})
        margin = sum(sample["chosen_logp"] - sample["rejected_logp"] for sample in samples) / len(samples)
        return {
            "kind": "preference",
            "rows": len(rows),
            "accuracy": _share(samples, "correct"),
            "margin": margin,
        }, samples

    def held_out(self, mix: Path, limit: int | None) -> tuple[dict[str, Any], int, int]:
        """A result on the held-out rows of a mix, as tokenised; and how many were used, and too long for the model."""
        documents = open_rows(mix, part="eval").distinct()
        shape = shapes.of_columns(documents.columns)
        numbers = np.random.default_rng(0).permutation(len(documents))[:limit]
        rows = [shape.sequences(documents[int(number)]) for number in numbers]
        kept = [row for row in rows if max(len(ids) for _, ids, _ in row) <= self.longest]
        if not kept:
            raise UserError(f"{mix}: no held-out row of {len(rows)} is short enough for the model")
        scored = self._log_probabilities(
            # Nothing predicts the first token.
            [(ids.tolist(), (np.flatnonzero(trained[1:]) + 1).tolist()) for row in kept for _, ids, trained in row]
        )
        if [name for name, _, _ in kept[0]] == ["chosen", "rejected"]:
            margins = [chosen - rejected for (chosen, _), (rejected, _) in zip(scored[::2], scored[1::2], strict=True)]
            right = sum(margin > 0 for margin in margins) / len(margins)
            result = {"kind": "preference", "accuracy": right, "margin": sum(margins) / len(margins)}
        else:
            tokens = sum(count for _, count in scored)
            result = {"kind": "loss", "tokens": tokens, "loss": -sum(total for total, _ in scored) / max(tokens, 1)}
        return {**result, "rows": len(kept)}, len(kept), len(rows) - len(kept)

    def _generated(self, conversations: list[Messages]) -> list[tuple[str, bool]]:
        """The greedy next turn of each conversation, and whether it came to its end."""
        prompts = [self._prompt(messages) for messages in conversations]
        generated: list[list[int]] = [[] for _ in prompts]
        # Like lengths together: less padding.
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        progress = Progress("evaluate: answers", "rows", len(prompts))
        for batch in _batches(order, self.batch_size):
            ids = generate(
                self.model, [prompts[i] for i in batch], self.stop, self.tokenizer.pad_token_id, self.max_new_tokens
            )
            for index, answer in zip(batch, ids, strict=True):
                generated[index] = answer
            progress.update(sum(map(bool, generated)))
        return [
            (self.tokenizer.decode(ids, skip_special_tokens=True).strip(), ids[-1] in self.stop) for ids in generated
        ]

    def _prompt(self, messages: Messages) -> list[int]:
        text = self.tokenizer.apply_chat_template(
            messages, chat_template=self.template, tokenize=False, add_generation_prompt=True
        )
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _encode(self, messages: Messages, skip: int | None = None) -> tuple[list[int], list[int]]:
        """Ids of a conversation and the places of its answer: assistant turns after the first `skip`, or the last."""
        encoded = self.tokenizer.apply_chat_template(
            messages, chat_template=self.template, return_dict=True, return_assistant_tokens_mask=True
        )
        ids, mask = list(encoded["input_ids"]), encoded["assistant_masks"]
        runs: list[list[int]] = []
        for place, inside in enumerate(mask):
            if inside and place and not mask[place - 1]:
                runs.append([])
            if inside and runs:
                runs[-1].append(place)
        chosen = runs[_turns(messages) - 1 if skip is None else skip :]
        return ids, [place for run in chosen for place in run]

    def _log_probabilities(self, rows: list[tuple[list[int], list[int]]]) -> list[tuple[float, int]]:
        """Summed log-probability (nats) of the answer's tokens, and their number, for each row."""
        import torch

        results: list[tuple[float, int]] = [(0.0, 0)] * len(rows)
        order = sorted(range(len(rows)), key=lambda index: len(rows[index][0]))
        width = max(len(ids) for ids, _ in rows)
        fitting = _LOGIT_BYTES // (4 * width * self.model.config.get_text_config().vocab_size)
        progress, done = Progress("evaluate: probabilities", "sequences", len(rows)), 0
        for batch in _batches(order, max(1, min(self.batch_size, fitting))):
            longest = max(len(rows[index][0]) for index in batch)
            pad = self.tokenizer.pad_token_id
            ids = torch.tensor(
                [rows[i][0] + [pad] * (longest - len(rows[i][0])) for i in batch], device=self.model.device
            )
            mask = torch.tensor(
                [[1] * len(rows[i][0]) + [0] * (longest - len(rows[i][0])) for i in batch], device=ids.device
            )
            with torch.inference_mode():
                logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            for line, index in enumerate(batch):
                places = torch.tensor(rows[index][1], device=ids.device, dtype=torch.long)
                # Place p is predicted from p - 1.
                chosen = torch.log_softmax(logits[line, places - 1].float(), dim=-1)
                total = chosen.gather(1, ids[line, places][:, None]).sum()
                results[index] = (float(total), len(places))
            done += len(batch)
            progress.update(done)
        return results


def _turns(messages: Messages) -> int:
    return sum(message["role"] == "assistant" for message in messages)


def _batches(order: list[int], size: int) -> list[list[int]]:
    return [order[start : start + size] for start in range(0, len(order), size)]


def _share(samples: list[dict[str, Any]], key: str) -> float:
    return sum(bool(sample[key]) for sample in samples) / len(samples)
