"""The files between the stages: prompts, and lines about answers that are appended while a job may be killed.

prompts.jsonl   {"row", "part"?, "prompt": [messages], "tools"?, "columns": {...}}, the number of a line is its prompt's
answers.jsonl   {"prompt": number, "sample": 0 to n - 1, "answer": text, "tokens": number, "ended": whether not cut}
scores.jsonl    {"prompt", "sample", "score": number or null, "reason"?: why there is none}
"""

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson

from post_training.core import manifest
from post_training.core.errors import DataError
from post_training.run_dir.parent import snakemake_is_gone
from post_training.run_dir.stop import EXIT_CODES, REQUEST, STOPPED

PROMPTS, ANSWERS, SCORES = "prompts.jsonl", "answers.jsonl", "scores.jsonl"
SHARD = "answers "
"""Before a shard's number: its name among the inputs."""
SCORE = "score "
"""Before a reward's name: its scores among the inputs."""
Key = tuple[int, int]
"""Number of the prompt and of the answer."""
Line = dict[str, Any]
PATIENCE_SECONDS = 120.0
"""How long a job waits for one of a Snakemake that is gone, which ends after its batch."""


def prompt_digest(prompt: list[dict[str, Any]], tools: Any = None) -> str:
    """sha256 (hex) of what is asked, equal for equal prompts wherever they come from."""
    content = orjson.dumps([prompt, tools], option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(content).hexdigest()


def read_lines(path: Path) -> list[Line]:
    """Every line of a finished stage's file. Raises DataError for a damaged one."""
    try:
        return [orjson.loads(line) for line in path.read_bytes().splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); delete {path.with_name(manifest.NAME)} to make it again"
        ) from None


def read_prompts(prompts: Path) -> list[Line]:
    """The prompts beside a manifest."""
    return read_lines(prompts.with_name(PROMPTS))


def read_answers(inputs: Mapping[str, Path]) -> dict[Key, Line]:
    """All shards' answers, in the order of prompts and samples, which no number of shards changes."""
    lines = [
        line for name, path in inputs.items() if name.startswith(SHARD) for line in read_lines(path.with_name(ANSWERS))
    ]
    found = {
        (line["prompt"], line["sample"]): line for line in sorted(lines, key=lambda one: (one["prompt"], one["sample"]))
    }
    if len(found) != len(lines):
        raise DataError(
            f"{len(lines) - len(found)} answers are in two shards; delete the generate stages to make them again"
        )
    return found


def must_stop(what: str, file: "Resumable", total: int) -> int | None:
    """The exit code with which a job ends before its next batch, with a line that says why; None = it does not."""
    gone = snakemake_is_gone()
    if not REQUEST.wanted and not gone:
        return None
    why = f"stopped by {REQUEST.wanted.name}" if REQUEST.wanted else gone
    print(f"{what}: {why}, after {file.rows:,} of {total:,} answers", flush=True)
    return EXIT_CODES[REQUEST.wanted] if REQUEST.wanted else STOPPED


class Resumable:
    """A file that is written batch by batch, in an order that is known before: after a kill it continues where it was.

    Args:
        path: of the file.
        batches: the keys of each batch's lines.
    """

    def __init__(self, path: Path, batches: Iterable[list[Key]]) -> None:
        self.path, self.batches = path, list(batches)
        self.done = self._complete_batches()
        """How many batches are in the file, which is cut after them."""

    def _complete_batches(self) -> int:
        if not self.path.is_file():
            return 0
        lines = self.path.read_bytes().splitlines(keepends=True)
        done = first = size = 0
        for batch in self.batches:
            own = lines[first : first + len(batch)]
            if [_key(line) for line in own] != batch:
                break
            first += len(batch)
            size += sum(map(len, own))
            done += 1
        os.truncate(self.path, size)
        return done

    @property
    def rows(self) -> int:
        """Lines that are in the file."""
        return sum(len(batch) for batch in self.batches[: self.done])

    def append(self, lines: list[Line]) -> None:
        """Add the next batch's lines, on the disk when this returns."""
        assert [(line["prompt"], line["sample"]) for line in lines] == self.batches[self.done]
        with self.path.open("ab") as file:
            file.write(b"".join(orjson.dumps(line) + b"\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())
        self.done += 1


def _key(line: bytes) -> Key | None:
    """None for a line that a kill cut off."""
    if not line.endswith(b"\n"):
        return None
    try:
        found = orjson.loads(line)
        return found["prompt"], found["sample"]
    except (ValueError, KeyError, TypeError):
        return None
