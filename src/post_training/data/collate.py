"""Trainers of TRL on the rows of a mix, and collators that return the same tensors as TRL's, a hundred times as fast.

TRL's collators iterate over Python lists of tokens: 2 million tokens a second on a core of the rank.
These return the same tensors, bit for bit, from the arrays of `view.Rows`; or, for a model that takes documents without padding,
what models/padding_free.py does with TRL's: all documents one behind the other, and `layout`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from post_training.data.loss_mask import IGNORED, Ids
from post_training.data.view import Row, Rows
from post_training.models.padding_free import without_padding

Batch = dict[str, Any]


class OnRows:
    """Mixin over a TRL trainer: trains on the rows of a mix, which are tokenised already.

    TRL's constructors insist on a `datasets.Dataset`, of which they look at the columns and the first
    row. Training itself goes through Transformers' Trainer, which takes anything with `len` and `[i]`.
    """

    def __init__(self, view: dict[str, Any], rows: Rows, *, padding_free: bool = False, **kwargs: Any) -> None:
        """Make TRL's trainer.

        Args:
            view: the stage's flat configuration, for methods that need it.
            rows: of the mix.
            padding_free: whether the model computes documents one behind the other, instead of padded ones.
            kwargs: TRL's arguments.
        """
        from datasets import Dataset

        first = Dataset.from_list([{name: values.tolist() for name, values in rows[0].items()}])
        super().__init__(train_dataset=first, **kwargs)  # type: ignore[call-arg]
        self.train_dataset: Any = rows
        self.without_padding = padding_free
        self.data_collator: Any = as_fast(self.data_collator, padding_free)
        for model in (self.model, getattr(self, "ref_model", None)) if padding_free else ():  # type: ignore[attr-defined]
            if model is not None:
                without_padding(self.accelerator.unwrap_model(model))  # type: ignore[attr-defined]


def as_fast(collator: Any, padding_free: bool = False) -> Any:
    """The fast collator with the settings that TRL gave its own; another one is left as it is."""
    from trl.trainer.dpo_trainer import DataCollatorForPreference
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    if type(collator) is DataCollatorForLanguageModeling and not collator.return_position_ids:
        kind = DocumentsCollator if padding_free else PackedCollator if collator.padding_free else PaddedCollator
        return kind(collator.pad_token_id, collator.pad_to_multiple_of)
    if type(collator) is DataCollatorForPreference:
        # Rows that are longer than `max_length` are not in the mix, so there is nothing to cut off.
        return (
            PairsCollator() if padding_free else PreferenceCollator(collator.pad_token_id, collator.pad_to_multiple_of)
        )
    return collator


@dataclass
class PackedCollator:
    """All documents of a batch in one sequence, with restarting positions and no attention mask.

    Returns int64 `[1, tokens]`: `input_ids`, `labels` (-100 at each document's start, which nothing
    predicts), `position_ids`; int32: `seq_idx` `[1, tokens]`, `cu_seq_lens_q` and `_k` `[documents + 1]`;
    and the longest document as `max_length_q` and `_k`. Padding counts as documents of one token, as in TRL.
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None

    def __call__(self, rows: list[Row]) -> Batch:
        """Collate rows of `input_ids`, `labels` and, if they hold several documents, `seq_lengths`."""
        lengths = [row["seq_lengths"] if "seq_lengths" in row else [len(row["input_ids"])] for row in rows]
        padding = -sum(len(row["input_ids"]) for row in rows) % (self.pad_to_multiple_of or 1)
        sizes = np.concatenate([*lengths, [1] * padding] if padding else lengths, dtype=np.int64)
        ends = np.cumsum(sizes)
        starts, total = ends - sizes, int(ends[-1])
        ids, labels = np.empty((1, total), dtype=np.int64), np.empty((1, total), dtype=np.int64)
        for array, name, pad in ((ids, "input_ids", self.pad_token_id), (labels, "labels", IGNORED)):
            if len(rows) == 1:
                array[0, : total - padding] = rows[0][name]
            else:
                np.concatenate([row[name] for row in rows], out=array[0, : total - padding])
            array[0, total - padding :] = pad
        labels[0, starts] = IGNORED
        positions = np.arange(total) - np.repeat(starts, sizes)
        boundaries = torch.from_numpy(np.append(starts, total).astype(np.int32))
        longest = int(sizes.max())
        return {
            "input_ids": torch.from_numpy(ids),
            "labels": torch.from_numpy(labels),
            "position_ids": torch.from_numpy(positions[None]),
            "cu_seq_lens_q": boundaries,
            "cu_seq_lens_k": boundaries,
            "max_length_q": longest,
            "max_length_k": longest,
            "seq_idx": torch.from_numpy(np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)[None]),
        }


class DocumentsCollator(PackedCollator):
    """As PackedCollator, with `layout`."""

    def __call__(self, rows: list[Row]) -> Batch:
        """Collate rows of `input_ids`, `labels` and, if they hold several documents, `seq_lengths`."""
        batch = super().__call__(rows)
        labels = batch["labels"][0]
        scored = torch.nonzero(labels != IGNORED)[:, 0]
        return {**batch, "layout": {"before": scored - 1, "targets": labels[scored][None]}}


def answers(sequences: list[tuple[Ids, Ids]], prefix: str = "") -> Batch:
    """Prompts with their answers as one row of documents, in a batch for TRL's trainers of preferences.

    Of the padded batch TRL still reads where answers are, to sum up what belongs to one, and its shape: int64
    `[sequences, 1 + longest answer]`, one place for a prompt, as `completion_mask`. It is also what stands in for token
    ids, which the model reads in `layout`; see models/padding_free.py.

    Args:
        sequences: token ids of a prompt and of its answer.
        prefix: of the keys.
    """
    prompts, sizes = (np.array([len(pair[side]) for pair in sequences]) for side in (0, 1))
    lengths, begun = prompts + sizes, np.minimum(prompts, 1)
    ends = np.cumsum(lengths)
    starts, total, count = ends - lengths, int(ends[-1]), len(sequences)
    ids = np.empty((1, total), dtype=np.int64)
    np.concatenate([part for pair in sequences for part in pair], out=ids[0])
    # Nothing predicts the first token of a document.
    targets = sizes + begun - 1
    number = np.arange(targets.sum()) - np.repeat(np.cumsum(targets) - targets, targets)
    before = number + np.repeat(starts + np.maximum(prompts, 1) - 1, targets)
    width = int(targets.max())
    mask = np.empty((count, 1 + width), dtype=np.int64)
    mask[:, 0], mask[:, 1:] = 1 - begun, np.arange(width) < targets[:, None]
    bounds, padded = torch.from_numpy(np.append(starts, total).astype(np.int32)), torch.from_numpy(mask)
    longest = int(lengths.max())
    inputs = {
        "input_ids": torch.from_numpy(ids),
        "position_ids": torch.from_numpy((np.arange(total) - np.repeat(starts, lengths))[None]),
        "seq_idx": torch.from_numpy(np.repeat(np.arange(count, dtype=np.int32), lengths)[None]),
        **dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), bounds),
        **dict.fromkeys(("max_length_q", "max_length_k"), longest),
    }
    layout = {
        "inputs": inputs,
        "before": torch.from_numpy(before),
        "targets": torch.from_numpy(ids[:, before + 1]),
        "places": torch.from_numpy(number + np.repeat(np.arange(count) * width, targets)),
    }
    names = ("input_ids", "attention_mask", "completion_mask")
    return {**{prefix + name: padded for name in names}, f"{prefix}layout": layout}


class PairsCollator:
    """As PreferenceCollator, by `answers`."""

    def __call__(self, rows: list[Any]) -> Batch:
        """Collate rows of `prompt_ids`, `chosen_ids` and `rejected_ids`."""
        sides = ("chosen_ids", "rejected_ids")
        return answers([(row["prompt_ids"], row[name]) for name in sides for row in rows]) | _reference(rows)


@dataclass
class PaddedCollator:
    """A row of the batch for each row: int64 `[rows, longest]` `input_ids`, `labels` and `attention_mask`."""

    pad_token_id: int
    pad_to_multiple_of: int | None = None

    def __call__(self, rows: list[Row]) -> Batch:
        """Collate rows of `input_ids` and `labels`."""
        width = _width([len(row["input_ids"]) for row in rows], self.pad_to_multiple_of)
        ids = np.full((len(rows), width), self.pad_token_id, dtype=np.int64)
        labels = np.full((len(rows), width), IGNORED, dtype=np.int64)
        mask = np.zeros((len(rows), width), dtype=np.int64)
        for line, row in enumerate(rows):
            length = len(row["input_ids"])
            ids[line, :length], labels[line, :length], mask[line, :length] = row["input_ids"], row["labels"], 1
        arrays = {"input_ids": ids, "labels": labels, "attention_mask": mask}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


@dataclass
class PreferenceCollator:
    """Prompt and chosen answer of each pair, then prompt and rejected answer of each.

    Returns int64 `[2 * pairs, longest]`: `input_ids`, `attention_mask` and `completion_mask` (1 in answers); and float32
    `[pairs]` `ref_chosen_logps` and `ref_rejected_logps`, where the rows have them.
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None

    def __call__(self, rows: list[Any]) -> Batch:
        """Collate rows of `prompt_ids`, `chosen_ids` and `rejected_ids`."""
        sides = [(row["prompt_ids"], row[name]) for name in ("chosen_ids", "rejected_ids") for row in rows]
        width = _width([len(prompt) + len(answer) for prompt, answer in sides], self.pad_to_multiple_of)
        ids = np.full((len(sides), width), self.pad_token_id, dtype=np.int64)
        attention, completion = np.zeros_like(ids), np.zeros_like(ids)
        for line, (prompt, answer) in enumerate(sides):
            start, end = len(prompt), len(prompt) + len(answer)
            ids[line, :start], ids[line, start:end] = prompt, answer
            attention[line, :end], completion[line, start:end] = 1, 1
        arrays = {"input_ids": ids, "attention_mask": attention, "completion_mask": completion}
        return {name: torch.from_numpy(array) for name, array in arrays.items()} | _reference(rows)


def _reference(rows: list[Any]) -> Batch:
    """The stored log-probabilities of pairs that have them, float32 `[pairs]`."""
    names = ("ref_chosen_logps", "ref_rejected_logps")
    return {name: torch.tensor([float(row[name]) for row in rows]) for name in names if name in rows[0]}


def _width(lengths: list[int], multiple: int | None) -> int:
    longest = max(lengths)
    return longest + -longest % (multiple or 1)
