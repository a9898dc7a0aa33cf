"""Trainers of TRL on the rows of a mix, and collators that return the same tensors as TRL's, a hundred times as fast.

TRL's collators iterate over Python lists of tokens: 2 million tokens a second on a core of the rank.
These return the same tensors, bit for bit, from the arrays of `view.Rows`; or, for a model that takes documents without padding,
what models/padding_free.py does with TRL's: all documents one behind the other, and `layout`.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from post_training.data.loss_mask import IGNORED, Ids
from post_training.data.shapes.preference import margin
from post_training.data.view import Row, Rows
from post_training.models.own_forward import offer_own_forward
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
        models = (self.model, getattr(self, "ref_model", None))  # type: ignore[attr-defined]
        for model in [self.accelerator.unwrap_model(one) for one in models if one is not None]:  # type: ignore[attr-defined]
            offer_own_forward(model)
            if padding_free:
                without_padding(model)

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        """TRL calls it in its constructors and would look for text."""
        return dataset


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


def collate_step(collator: Any, parts: list[list[Row]]) -> list[Batch]:
    """The batches of several micro-batches, in one pass where the collator has a method `step`."""
    at_once = getattr(collator, "step", None)
    return at_once(parts) if at_once else [collator(rows) for rows in parts]


class DocumentsCollator(PackedCollator):
    """As PackedCollator, with `layout`."""

    def __call__(self, rows: list[Row]) -> Batch:
        """Collate rows of `input_ids`, `labels` and, if they hold several documents, `seq_lengths`."""
        batch = super().__call__(rows)
        labels = batch["labels"][0]
        scored = torch.nonzero(labels != IGNORED)[:, 0]
        return {**batch, "layout": {"before": scored - 1, "targets": labels[scored][None]}}


def answers(parts: list[list[tuple[Ids, Ids]]], prefix: str = "") -> list[Batch]:
    """Micro-batches, each of prompts with their answers as one row of documents, for TRL's trainers of preferences.

    Of the padded batch TRL still reads where answers are, to sum up what belongs to one, and its shape: int64
    `[sequences, 1 + longest answer]`, one place for a prompt, as `completion_mask`. It is also what stands in for token
    ids, which the model reads in `layout`; see models/padding_free.py. All are made in one pass, and are slices of it:
    small ones would take ten times as long each by itself.

    Args:
        parts: of each micro-batch, token ids of prompts and of their answers.
        prefix: of the keys.
    """
    sequences = [pair for part in parts for pair in part]
    prompts, sizes = (np.array([len(pair[side]) for pair in sequences]) for side in (0, 1))
    lengths, begun = prompts + sizes, np.minimum(prompts, 1)
    counts = np.array([len(part) for part in parts])
    firsts = np.cumsum(counts) - counts
    numbers = np.arange(len(parts)).repeat(counts)  # of the micro-batch of each sequence
    starts, bounds = _before(lengths), np.append(_before(np.add.reduceat(lengths, firsts)), lengths.sum())
    ids = np.concatenate([part for pair in sequences for part in pair], dtype=np.int64, casting="unsafe")
    # Nothing predicts the first token of a document.
    targets = sizes + begun - 1
    scored = np.append(_before(np.add.reduceat(targets, firsts)), targets.sum())
    number = np.arange(scored[-1]) - _before(targets).repeat(targets)
    before = number + (starts + np.maximum(prompts, 1) - 1).repeat(targets)
    wanted = ids[before + 1]
    before -= bounds[:-1].repeat(np.diff(scored))
    # The masks, one after the other: a row is a place for the prompt, and as many as the longest answer has.
    widths = 1 + np.maximum.reduceat(targets, firsts)
    rows = _before(widths[numbers])
    blocks = np.append(rows[firsts], rows[-1] + widths[-1])
    mask = np.zeros(blocks[-1], dtype=np.int64)
    mask[rows] = 1 - begun
    mask[(rows + 1).repeat(targets) + number] = 1
    line = np.arange(len(sequences)) - firsts[numbers]
    places = number + (line * (widths[numbers] - 1)).repeat(targets)
    positions = np.arange(bounds[-1]) - starts.repeat(lengths)
    index = line.astype(np.int32).repeat(lengths)
    edges = (starts - bounds[numbers]).astype(np.int32)
    longest = np.maximum.reduceat(lengths, firsts).tolist()
    names = [prefix + name for name in ("input_ids", "attention_mask", "completion_mask")]
    return [
        {
            **dict.fromkeys(names, torch.from_numpy(mask[slice(*block)].reshape(count, -1))),
            f"{prefix}layout": {
                "inputs": {
                    "input_ids": torch.from_numpy(ids[None, slice(*tokens)]),
                    "position_ids": torch.from_numpy(positions[None, slice(*tokens)]),
                    "seq_idx": torch.from_numpy(index[None, slice(*tokens)]),
                    **dict.fromkeys(
                        ("cu_seq_lens_q", "cu_seq_lens_k"),
                        torch.from_numpy(np.append(edges[first : first + count], np.int32(tokens[1] - tokens[0]))),
                    ),
                    **dict.fromkeys(("max_length_q", "max_length_k"), size),
                },
                "before": torch.from_numpy(before[slice(*span)]),
                "targets": torch.from_numpy(wanted[None, slice(*span)]),
                "places": torch.from_numpy(places[slice(*span)]),
            },
        }
        for first, count, size, tokens, span, block in zip(
            firsts.tolist(), counts.tolist(), longest, *map(_spans, (bounds, scored, blocks)), strict=True
        )
    ]


def _before(sizes: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Where each of some parts begins that lie one behind the other."""
    return np.cumsum(sizes) - sizes


def _spans(bounds: npt.NDArray[Any]) -> list[tuple[int, int]]:
    """Begin and end of each part."""
    return list(itertools.pairwise(bounds.tolist()))


class PairsCollator:
    """As PreferenceCollator, by `answers`."""

    def __call__(self, rows: list[Any]) -> Batch:
        """Collate rows of `prompt_ids`, `chosen_ids` and `rejected_ids`."""
        return self.step([rows])[0]

    def step(self, parts: list[list[Any]]) -> list[Batch]:
        """Collate several micro-batches of such rows."""
        sides = ("chosen_ids", "rejected_ids")
        batches = answers([[(row["prompt_ids"], row[name]) for name in sides for row in rows] for rows in parts])
        return [batch | _beside_tokens(rows) for batch, rows in zip(batches, parts, strict=True)]


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
    `[pairs]` `ref_chosen_logps`, `ref_rejected_logps` and `margin`, where the rows have them.
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
        return {name: torch.from_numpy(array) for name, array in arrays.items()} | _beside_tokens(rows)


def _beside_tokens(rows: list[Any]) -> Batch:
    """Stored log-probabilities and margins of pairs that have them, float32 `[pairs]`."""
    names = ("ref_chosen_logps", "ref_rejected_logps")
    values = {name: [float(row[name]) for row in rows] for name in names if name in rows[0]}
    values |= {"margin": [margin(row) for row in rows]} if "margin" in rows[0] else {}
    return {name: torch.tensor(found) for name, found in values.items()}


def _width(lengths: list[int], multiple: int | None) -> int:
    longest = max(lengths)
    return longest + -longest % (multiple or 1)
