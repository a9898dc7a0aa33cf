"""A block of rows -> lines of `rows.jsonl` and of `rejects.jsonl`."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from post_training.data.reading.records import Block, Problem, parse
from post_training.data.rows import InvalidRow, Rules, checker
from post_training.data.transforms import Skip, load_transform

Rejection = tuple[str, str, bool]
"""Reason code, detail, and whether the transform skipped a valid row on purpose."""


@dataclass
class BlockResult:
    """Results of a block of rows."""

    lines: bytes = b""
    """Of `rows.jsonl`."""
    rejects: bytes = b""
    """Lines of `rejects.jsonl`."""
    rows_in: int = 0
    rows_out: int = 0
    examples: int = 0
    """Lines of `rows.jsonl`."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Source rows without an example, by reason, including `skipped`."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Those that the transform skipped on purpose."""
    dropped_examples: Counter[str] = field(default_factory=Counter)
    trimmed_rows: int = 0
    trimmed_turns: int = 0
    first_rejection: str = ""
    """The one at which `data.strict` stops."""

    def add(self, other: "BlockResult") -> None:
        """Add the counts of other rows."""
        for name in ("rows_in", "rows_out", "examples", "trimmed_rows", "trimmed_turns"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("dropped", "skipped", "dropped_examples"):
            getattr(self, name).update(getattr(other, name))

    def reject(self, found: Rejection, file: Path, number: int, record: Any, of_example: bool = False) -> None:
        """Count a row that gave nothing, or an example of a row that gave others; `number` counts from 0 in its file."""
        reason, detail, by_choice = found
        (self.dropped_examples if of_example else self.dropped)[reason] += 1
        if by_choice:
            self.skipped[reason] += 1
        elif not self.first_rejection:
            self.first_rejection = f"{file}: row {number + 1:,}: {reason}: {detail}"
        entry = {
            "file": str(file),
            "row": number + 1,
            "reason": reason,
            "detail": detail[:500],
            "excerpt": _excerpt(record),
        }
        texts = {key: value.encode(errors="replace").decode() for key, value in entry.items() if isinstance(value, str)}
        self.rejects += orjson.dumps(entry | texts) + b"\n"


class Application:
    """A transform and the validation behind it."""

    def __init__(self, config: dict[str, Any], file: Path) -> None:
        self.transform = load_transform(config["transform"], file, config["arguments"])
        self.rules = Rules(config["last_turn"])
        self.check = checker(config["rows"])

    def block(self, block: Block, base: int) -> BlockResult:
        """Every record of a block; `base` is the number of its file's first record over all files."""
        done = BlockResult(rows_in=block.rows)
        self.rules.trimmed_rows = self.rules.trimmed_turns = 0
        first = block.first + block.skip
        made_lines: list[bytes] = []
        for number, record in enumerate(block.records(), start=first):
            row = parse(record) if type(record) is bytes else record
            try:
                made = _invalid(row) if type(row) is Problem else self.transform(row)
                if type(made) is dict:
                    made_lines.append(_dump({"row": base + number, **self.check(made, self.rules)}))
                    done.rows_out += 1
                    continue
                lines, rejections = self._parts(made, base + number)
            except Exception as error:  # a user's transform may fail in any way; the row counts as the cause
                lines, rejections = [], [rejection(error, row)]
            made_lines += lines
            done.rows_out += bool(lines)
            for reason in rejections if lines else rejections[:1]:
                done.reject(reason, block.file, number, record, of_example=bool(lines))
        done.examples = len(made_lines)
        made_lines.append(b"")
        done.lines = b"\n".join(made_lines)
        done.trimmed_rows, done.trimmed_turns = self.rules.trimmed_rows, self.rules.trimmed_turns
        return done

    def line(self, example: Any, place: dict[str, int]) -> bytes:
        """One line of `rows.jsonl`, without its end."""
        if not isinstance(example, dict):
            raise InvalidRow("not_an_object", f"the transform returned {type(example).__name__}")
        return _dump({**place, **self.check(example, self.rules)})

    def _parts(self, made: Any, number: int) -> tuple[list[bytes], list[Rejection]]:
        """Lines and rejections of a row that gave several examples, or a value that is not an example."""
        parts = list(made) if isinstance(made, list | tuple | Iterator) else [made]
        lines: list[bytes] = []
        rejections = [] if parts else [("no_example", "the transform made nothing of it", False)]
        for part, example in enumerate(parts):
            try:
                lines.append(self.line(example, {"row": number, "part": part} if len(parts) > 1 else {"row": number}))
            except Exception as error:
                rejections.append(rejection(error, {}))
        return lines, rejections


def _dump(example: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(example)
    except TypeError as error:  # an integer of 65 bits, half a surrogate pair, a type of Python's own
        raise InvalidRow("undecodable_text" if "surrogate" in str(error) else "not_json", str(error)) from None


def _invalid(row: Problem) -> Any:
    raise InvalidRow(row.reason, row.detail)


def rejection(error: Exception, row: Any) -> Rejection:
    """The rejection for an exception of a transform or of the validation."""
    if isinstance(error, MemoryError):
        raise error
    if isinstance(error, InvalidRow):
        return error.reason, error.detail, False
    if isinstance(error, KeyError):
        has = f" (the row has {', '.join(map(str, row))})" if isinstance(row, dict) else ""
        return "missing_column", f"{error}{has}", False
    if isinstance(error, TypeError | AttributeError):
        return "wrong_type", str(error), False
    if isinstance(error, ValueError):
        reason, separator, detail = str(error).partition(": ")
        named = bool(separator) and reason.isidentifier()
        return (*((reason, detail) if named else ("unusable_row", str(error))), isinstance(error, Skip))
    return "transform_error", f"{type(error).__name__}: {error}", False


def _excerpt(record: Any) -> str:
    if isinstance(record, Problem):
        return record.excerpt
    if isinstance(record, bytes):
        return record[:200].decode(errors="replace")
    try:
        shortened = {key: value[:200] if isinstance(value, str) else value for key, value in record.items()}
        return repr(shortened)[:200]
    except (RecursionError, AttributeError):
        return f"{type(record).__name__}, nested too deeply to be shown"
