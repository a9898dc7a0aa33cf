"""Rows of a stage's mix as they were at every step: raw, transformed, formatted, tokens."""

import json
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from post_training import models
from post_training.config import resolve
from post_training.config.trees import read_config
from post_training.core import manifest
from post_training.core.errors import UserError
from post_training.data import shapes
from post_training.data.loss_mask import input_ids_and_labels
from post_training.data.mixing.shards import Tokenized
from post_training.data.reading.sources import read_blocks
from post_training.data.tokens.chat_template import ChatTemplate, resolve_template, special_tokens
from post_training.plan import Plan, Stage, make_plan
from post_training.plan.make import make


@dataclass
class Token:
    """One token of a sequence."""

    id: int
    text: str
    trained: bool


@dataclass
class Sequence:
    """What the model reads of a row: all of a conversation, or a prompt with one of its answers."""

    name: str
    text: str
    """As the chat template wrote it."""
    tokens: list[Token]

    @property
    def trained(self) -> int:
        """Tokens that are trained on."""
        return sum(token.trained for token in self.tokens)


@dataclass
class Example:
    """One example of one source row, or what became of it."""

    dataset: str
    row: int
    """Number of the source row, from 0 over all files of the dataset."""
    part: int = 0
    raw: Any = None
    transformed: dict[str, Any] | None = None
    sequences: list[Sequence] = field(default_factory=list)
    fate: str = ""
    """Why it is not trained on; empty when it may be."""


def prepared(path: str, overrides: list[str], stage: str | None) -> tuple[Plan, str]:
    """The plan of a configuration, with the data of one training stage made where it is missing; and that stage's name.

    Raises UserError for a stage that the pipeline does not have.
    """
    plan = make_plan(resolve(read_config(path), {"set": overrides}))
    method = stage or plan.pipeline.stages[-1]
    if method not in plan.mixed:
        raise UserError(f"--stage: found {method!r}; this configuration has {', '.join(plan.mixed)}")
    make(plan, plan.mixed[method])
    return plan, method


def datasets_of(plan: Plan, mixed: Stage) -> dict[str, tuple[Stage, Stage, Stage]]:
    """Dataset -> its download, transform and tokenise stages."""
    found = {}
    for name, tokenized in mixed.inputs.items():
        transformed = tokenized.inputs["rows"]
        if transformed.kind == "filter":
            transformed = transformed.inputs["rows"]
        found[name] = (transformed.inputs["raw"], transformed, tokenized)
    return found


def examples(plan: Plan, method: str, count: int, rows: list[str], seed: int) -> list[Example]:
    """Rows that are asked for by number (`5`, or `dataset:5`), or else `count` random ones."""
    mixed = plan.mixed[method]
    datasets = datasets_of(plan, mixed)
    opened = {
        name: Tokenized.open(name, plan.base / stages[2].manifest, mixed.config["rows"], 0)
        for name, stages in datasets.items()
    }
    wanted = _asked(rows, datasets) if rows else _random(opened, count, seed)
    found = []
    for name, numbers in wanted.items():
        look = _Look(plan, mixed, name, datasets[name], opened[name])
        found += look.examples(numbers)
    return found


def _asked(rows: list[str], datasets: dict[str, Any]) -> dict[str, set[int]]:
    wanted: dict[str, set[int]] = {}
    for text in rows:
        name, colon, number = text.rpartition(":")
        if not number.isdecimal() or (colon and name not in datasets):
            raise UserError(
                f"--row: found {text!r}, expected a row's number or <dataset>:<number>; datasets are {', '.join(datasets)}"
            )
        for dataset in [name] if colon else datasets:
            wanted.setdefault(dataset, set()).add(int(number))
    return wanted


def _random(opened: dict[str, Tokenized], count: int, seed: int) -> dict[str, set[int]]:
    names = list(opened)
    sizes = [len(dataset.numbers) for dataset in opened.values()]
    chosen = np.random.default_rng(seed).choice(sum(sizes), min(count, sum(sizes)), replace=False)
    starts = np.cumsum([0, *sizes[:-1]])
    wanted: dict[str, set[int]] = {}
    for place in chosen:
        owner = int(np.searchsorted(starts, place, side="right")) - 1
        number = int(opened[names[owner]].numbers[place - starts[owner]]) & _ROW
        wanted.setdefault(names[owner], set()).add(number)
    return wanted


_ROW = (1 << 40) - 1


class _Look:
    """One dataset, at every step."""

    def __init__(
        self, plan: Plan, mixed: Stage, name: str, stages: tuple[Stage, Stage, Stage], opened: Tokenized
    ) -> None:
        from tokenizers import Tokenizer

        self.name, self.opened, self.capacity = name, opened, mixed.config["max_seq_length"]
        self.overlong = mixed.config["overlong"]
        self.raw, self.transformed, self.tokenized = (plan.base / stage.manifest for stage in stages)
        folder = models.folder(plan.base / stages[2].inputs["model"].manifest)
        config = stages[2].config
        rows = stages[2].inputs["rows"]
        self.filtered = plan.base / rows.manifest if rows.kind == "filter" else None
        self.shape = shapes.load(config["rows"])
        self.template = ChatTemplate(resolve_template(config["chat_template"], folder), special_tokens(folder))
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def examples(self, numbers: set[int]) -> list[Example]:
        """All examples of these source rows, in the order of their numbers."""
        raw = self._raw(numbers)
        lines = self._lines(numbers)
        tokens = self._tokens(numbers)
        removed = self._removed(numbers)
        found = []
        for number in sorted(numbers):
            if number not in raw:
                found.append(Example(self.name, number, fate="there is no such row in the source"))
                continue
            own = {part: line for (row, part), line in lines.items() if row == number}
            if not own:
                found.append(Example(self.name, number, raw=raw[number], fate=self._rejected(number)))
            for part, line in own.items():
                example = Example(self.name, number, part, raw[number], line)
                row = tokens.get((number, part))
                example.fate = removed.get((number, part)) or self._fate(row)
                if row is not None:
                    example.sequences = self._sequences(line, row[1])
                found.append(example)
        return found

    def _raw(self, numbers: set[int]) -> dict[int, Any]:
        files = [self.raw.parent / entry["path"] for entry in manifest.read(self.raw)["files"]]
        records = chain.from_iterable(block.records() for block in read_blocks(files))
        found = {}
        for number, record in enumerate(records):
            if number in numbers:
                found[number] = _plain(record)
            if len(found) == len(numbers):
                break
        return found

    def _lines(self, numbers: set[int]) -> dict[tuple[int, int], dict[str, Any]]:
        found = {}
        with (self.transformed.parent / "rows.jsonl").open("rb") as lines:
            for line in lines:
                row = json.loads(line)
                if row["row"] in numbers:
                    found[row["row"], row.get("part", 0)] = row
        return found

    def _removed(self, numbers: set[int]) -> dict[tuple[int, int], str]:
        """(row, part) -> why data.filters took it out."""
        if self.filtered is None:
            return {}
        found = {}
        with (self.filtered.parent / "removed.jsonl").open("rb") as lines:
            for line in lines:
                entry = json.loads(line)
                if entry["row"] in numbers:
                    beside = f" (beside {json.dumps(entry['partner'])})" if "partner" in entry else ""
                    why = ": ".join(filter(None, [entry["reason"], entry["detail"]]))
                    found[entry["row"], entry.get("part", 0)] = f"removed by data.filters: {why}{beside}"
        return found

    def _tokens(self, numbers: set[int]) -> dict[tuple[int, int], tuple[int, dict[str, Any]]]:
        """(row, part) -> its length and its columns."""
        rows = self.opened.numbers & _ROW
        places = np.flatnonzero(np.isin(rows, np.fromiter(numbers, dtype=np.int64)))
        records = self.opened.documents[places]
        columns = {name: list(self.opened.values(records, name)) for name in self.shape.SCHEMA.names}
        return {
            (int(rows[place]), int(self.opened.numbers[place] >> 40)): (
                int(self.opened.lengths[place]),
                input_ids_and_labels({name: values[index] for name, values in columns.items()}),
            )
            for index, place in enumerate(places)
        }

    def _rejected(self, number: int) -> str:
        position = number
        for entry in manifest.read(self.raw)["files"]:
            path = self.raw.parent / entry["path"]
            with (self.transformed.parent / "rejects.jsonl").open("rb") as lines:
                own = [line for line in map(json.loads, lines) if Path(line["file"]).name == path.name]
            for line in own:
                if line["row"] == position + 1:
                    return f"rejected: {line['reason']}: {line['detail']}"
            break
        return "rejected; see rejects.jsonl"

    def _fate(self, row: tuple[int, dict[str, Any]] | None) -> str:
        if row is None:
            return f"dropped when it was tokenised: one of {manifest.read(self.tokenized)['dropped']}"
        length = row[0]
        if length > self.capacity:
            done = {"drop": "dropped", "truncate": "cut off", "split": "split"}[self.overlong]
            return f"{length:,} tokens, more than max_seq_length={self.capacity}: {done} by the mix"
        return ""

    def _sequences(self, line: dict[str, Any], columns: dict[str, Any]) -> list[Sequence]:
        texts = [
            self.template.render(messages, line.get("tools"))[0]
            for messages, prompt in self.shape.conversations(line)
            if not prompt
        ]
        return [
            Sequence(name, text, tokens_of(self.tokenizer, ids, trained))
            for text, (name, ids, trained) in zip(texts, self.shape.sequences(columns), strict=True)
        ]


def tokens_of(tokenizer: Any, ids: Any, trained: Any) -> list[Token]:
    """Each token of a sequence with its text: ids int [n], trained bool [n], tokenizer of the library `tokenizers`."""
    found = []
    for number, mark in zip(ids.tolist(), trained.tolist(), strict=True):
        text = tokenizer.decode([number], skip_special_tokens=False)
        # A part of a character has no text of its own.
        name = tokenizer.id_to_token(number) if not text or "\ufffd" in text else text
        found.append(Token(number, str(name), mark))
    return found


def _plain(record: Any) -> Any:
    """A record as JSON values, for showing."""
    if isinstance(record, bytes):
        try:
            return json.loads(record)
        except ValueError:
            return record.decode(errors="replace")
    return record if isinstance(record, dict) else repr(record)
