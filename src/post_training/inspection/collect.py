"""Examples of a training stage at every step: raw, transformed, formatted, tokens."""

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from post_training import models
from post_training.config import resolve
from post_training.config.trees import read_config
from post_training.core import json_lines, manifest
from post_training.core.errors import UserError
from post_training.data import shapes
from post_training.data.loss_mask import input_ids_and_labels
from post_training.data.mixing.shards import Tokenized
from post_training.data.reading.readers import read_blocks
from post_training.data.tokens.chat_template import ChatTemplate, resolve_template, special_tokens
from post_training.inspection.tokens import Token, tokens_of
from post_training.on_policy.select import CANDIDATES
from post_training.plan import Plan, Stage, make_plan
from post_training.plan.make import make

# A tokenised row's number: its source row in the lower bits, the part of it in those above.
_PART_BIT = 40
_ROW_BITS = (1 << _PART_BIT) - 1
_OVERLONG = {"drop": "dropped", "truncate": "cut off", "split": "split"}


@dataclass
class Sequence:
    """One input of the model: a conversation, or a prompt with one of its answers."""

    name: str
    text: str
    """As the chat template wrote it."""
    tokens: list[Token]

    @property
    def trained(self) -> int:
        """Number of tokens that are trained on."""
        return sum(token.trained for token in self.tokens)


@dataclass
class Example:
    """One example of a source row, or the row alone where it gave none."""

    dataset: str
    row: int
    """Number of the source row over all files of the dataset, from 1; blank lines of JSON Lines count."""
    part: int = 0
    raw: Any = None
    transformed: dict[str, Any] | None = None
    sequences: list[Sequence] = field(default_factory=list)
    fate: str = ""
    """Why it is not trained on; empty when it may be."""
    place: str = ""
    """Its file, and the line or row in it, where there are several files."""
    unused: list[str] = field(default_factory=list)
    """Columns of the dataset that its transform did not read."""


class Steps(NamedTuple):
    """Manifests of one dataset on its way to the mix."""

    raw: Path
    transformed: Path
    filtered: Path | None
    tokenized: Path
    sliced: bool = False
    """Whether the configuration takes a part of the rows."""


class Source(NamedTuple):
    """One source row, and its line or row in its own file."""

    record: Any
    file: Path
    line: int


def prepared(path: str, overrides: list[str], stage: str | None) -> tuple[Plan, str]:
    """The plan of a configuration, with the data of one training stage made where it is missing; and that stage's name.

    Raises UserError for a stage that the pipeline does not have.
    """
    plan = make_plan(resolve(read_config(path), {"set": overrides}))
    name = stage or plan.pipeline.stages[-1]
    if name not in plan.mixed:
        raise UserError(f"--stage: found {name!r}; this configuration has {', '.join(plan.mixed)}")
    make(plan, plan.mixed[name])
    return plan, name


NO_ROW = "there is no such row in the source"


def steps_of(plan: Plan, mixed: Stage) -> dict[str, Steps]:
    """Dataset -> its steps."""
    found = {}
    for name, tokenized in mixed.inputs.items():
        rows, filtered = tokenized.inputs["rows"], None
        if rows.kind == "filter":
            rows, filtered = rows.inputs["rows"], plan.base / rows.manifest
        # What a model wrote comes from candidates: a prompt with all its answers.
        raw = plan.base / (rows if rows.kind == "select" else rows.inputs["raw"]).manifest
        sliced = rows.config.get("slice") is not None
        found[name] = Steps(raw, plan.base / rows.manifest, filtered, plan.base / tokenized.manifest, sliced)
    return found


def examples(plan: Plan, stage: str, count: int, rows: list[str], seed: int) -> list[Example]:
    """Examples of the source rows in `rows` (`5`, or `dataset:5`), or else of `count` random ones.

    Raises UserError for an entry of `rows` that is neither.
    """
    mixed = plan.mixed[stage]
    steps = steps_of(plan, mixed)
    opened = {name: Tokenized.open(name, own.tokenized, mixed.config["rows"], 0) for name, own in steps.items()}
    wanted = _asked(rows, steps) if rows else _random(opened, count, seed)
    return [
        example
        for name, numbers in wanted.items()
        for example in _Dataset(plan, mixed, name, steps[name], opened[name]).examples(numbers)
    ]


def _asked(rows: list[str], datasets: Collection[str]) -> dict[str, set[int]]:
    wanted: dict[str, set[int]] = {}
    for text in rows:
        name, colon, number = text.rpartition(":")
        if not number.isdecimal() or (colon and name not in datasets):
            expected = f"a row's number or <dataset>:<number>; datasets are {', '.join(datasets)}"
            raise UserError(f"--row: found {text!r}, expected {expected}")
        for dataset in [name] if colon else datasets:
            wanted.setdefault(dataset, set()).add(int(number))
    return wanted


def _random(opened: dict[str, Tokenized], count: int, seed: int) -> dict[str, set[int]]:
    names, numbers = list(opened), np.concatenate([dataset.numbers for dataset in opened.values()]) & _ROW_BITS
    owners = np.repeat(np.arange(len(names)), [len(dataset.numbers) for dataset in opened.values()])
    wanted: dict[str, set[int]] = {}
    for index in np.random.default_rng(seed).choice(len(numbers), min(count, len(numbers)), replace=False):
        wanted.setdefault(names[owners[index]], set()).add(int(numbers[index]))
    return wanted


class _Dataset:
    """One dataset of a mix, at every step."""

    def __init__(self, plan: Plan, mixed: Stage, name: str, steps: Steps, opened: Tokenized) -> None:
        self.name, self.steps, self.opened = name, steps, opened
        self.capacity, self.overlong = mixed.config["max_seq_length"], mixed.config["overlong"]
        tokenized = mixed.inputs[name]
        self.generated = steps.raw == steps.transformed
        folder = models.folder(plan.base / tokenized.inputs["model"].manifest)
        template = resolve_template(tokenized.config["chat_template"], folder)
        self.shape = shapes.load(tokenized.config["rows"])
        self.template = ChatTemplate(template, special_tokens(folder))
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        facts = manifest.read(steps.transformed)
        self.first_row = facts.get("first_row", 0)
        self.unused = facts.get("columns", {}).get("unused", [])

    def examples(self, numbers: set[int]) -> list[Example]:
        """All examples of these source rows, in the order of their numbers."""
        sources, tokens = self._sources(numbers), self._tokens(numbers)
        removed = {} if self.steps.filtered is None else self._lines(self.steps.filtered, "removed", numbers)
        made: dict[int, list[Example]] = {number: [] for number in sorted(numbers)}
        for (number, part), line in self._lines(self.steps.transformed, "rows", numbers).items():
            content = {key: value for key, value in line.items() if key not in ("row", "part")}
            example = Example(self.name, number, part, sources[number].record, content)
            columns = tokens.get((number, part))
            if (number, part) in removed:
                example.fate = _removed(removed[number, part])
            else:
                example.fate = self._fate(columns, number, part)
            if columns is not None:
                example.sequences = self._sequences(line, columns[1])
            made[number].append(example)
        for number in (number for number, found in made.items() if not found):
            source = sources.get(number)
            fate = self._rejected(source) if source else NO_ROW
            made[number] = [Example(self.name, number, raw=source.record if source else None, fate=fate)]
        several = not self.generated and len(manifest.read(self.steps.raw)["files"]) > 1
        for example in chain.from_iterable(made.values()):
            example.unused = self.unused
            if several and (source := sources.get(example.row)):
                example.place = f"{source.file} {source.line:,}"
        return list(chain.from_iterable(made.values()))

    def _sources(self, numbers: set[int]) -> dict[int, Source]:
        if self.generated:
            file = self.steps.raw.with_name(CANDIDATES)
            lines = enumerate(json_lines.read(file))
            return {line["row"]: Source(line, file, at) for at, line in lines if line["row"] in numbers}
        files = [self.steps.raw.parent / entry["path"] for entry in manifest.read(self.steps.raw)["files"]]
        found: dict[int, Source] = {}
        records = 0
        for block in read_blocks(files):
            # Data of before rows were counted from 1 have no blank lines in their numbers, and count from 0.
            first = block.before + block.first if self.first_row else records
            last = block.before + block.last if self.first_row else records + block.size - 1
            if any(first <= number <= last for number in numbers):
                for index, (line, record) in enumerate(block.records()):
                    number = block.before + line if self.first_row else records + index
                    if number in numbers:
                        found[number] = Source(_plain(record), block.file, line)
            records += block.size
            if len(found) == len(numbers):
                break
        return found

    def _lines(self, made: Path, name: str, numbers: set[int]) -> dict[tuple[int, int], dict[str, Any]]:
        """(row, part) -> its line of a stage's `<name>.jsonl`."""
        lines = json_lines.read(made.parent / f"{name}.jsonl")
        return {(line["row"], line.get("part", 0)): line for line in lines if line["row"] in numbers}

    def _tokens(self, numbers: set[int]) -> dict[tuple[int, int], tuple[int, dict[str, Any]]]:
        """(row, part) -> its length and its columns."""
        kept = np.flatnonzero(
            np.isin(
                self.opened.numbers & _ROW_BITS,
                np.fromiter((number for number in numbers if number <= _ROW_BITS), dtype=np.int64),
            )
        )
        columns = {
            name: list(self.opened.values(self.opened.documents[kept], name)) for name in self.shape.SCHEMA.names
        }
        return {
            (int(number) & _ROW_BITS, int(number) >> _PART_BIT): (
                int(self.opened.lengths[position]),
                input_ids_and_labels({name: values[index] for name, values in columns.items()}),
            )
            for index, (position, number) in enumerate(zip(kept, self.opened.numbers[kept], strict=True))
        }

    def _rejected(self, source: Source) -> str:
        if self.generated:
            return f"not selected: {source.record['reason']}"
        number = "line" if self.first_row else "row"
        for line in json_lines.read(self.steps.transformed.parent / "rejects.jsonl"):
            if (line["file"], line[number]) == (str(source.file), source.line):
                skipped = line["reason"] in manifest.read(self.steps.transformed)["skipped"]
                return f"{'left out' if skipped else 'rejected'}: {line['reason']}: {line['detail']}"
        if self.steps.sliced:
            return "outside of the part that split asks for"
        return "a part of examples that are listed by the first row of their group"

    def _fate(self, columns: tuple[int, dict[str, Any]] | None, number: int, part: int) -> str:
        if columns is None:
            for line in json_lines.read(self.steps.tokenized.with_name("rejects.jsonl")):
                if (line["row"], line.get("part", 0)) == (number, part):
                    return f"dropped when it was tokenised: {line['reason']}: {line['detail']}"
            return f"dropped when it was tokenised: one of {manifest.read(self.steps.tokenized)['dropped']}"
        if columns[0] <= self.capacity:
            return ""
        fate = f"{_OVERLONG[self.overlong]} by the mix"
        return f"{columns[0]:,} tokens, more than max_seq_length={self.capacity}: {fate}"

    def _sequences(self, line: dict[str, Any], columns: dict[str, Any]) -> list[Sequence]:
        tools, conversations = line.get("tools"), self.shape.conversations(line)
        texts = [self.template.render(messages, tools)[0] for messages, prompt in conversations if not prompt]
        return [
            Sequence(name, text, tokens_of(self.tokenizer, ids, trained))
            for text, (name, ids, trained) in zip(texts, self.shape.sequences(columns), strict=True)
        ]


def _removed(line: dict[str, Any]) -> str:
    """A line of a filter's `removed.jsonl` in words."""
    reason = ": ".join(filter(None, [line["reason"], line["detail"]]))
    partner = f" (beside {json.dumps(line['partner'])})" if "partner" in line else ""
    return f"removed by data.filters: {reason}{partner}"


def _plain(record: Any) -> Any:
    """A record as JSON values."""
    if isinstance(record, bytes):
        try:
            return json.loads(record)
        except ValueError:
            return record.decode(errors="replace")
    return record if isinstance(record, dict) else repr(record)
