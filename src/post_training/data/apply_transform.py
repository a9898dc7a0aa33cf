"""A block of rows -> lines of `rows.jsonl` and of `rejects.jsonl`."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from post_training.data import shapes
from post_training.data.columns import Columns, Read, keys_of_objects
from post_training.data.media import media_columns, refuse_media
from post_training.data.message import KNOWN_KEYS
from post_training.data.null_fields import Nulls
from post_training.data.reading.records import Block, Problem, parse
from post_training.data.registry import TRANSFORMS
from post_training.data.rows import TURN_COLUMNS, InvalidRow, Rules, checker
from post_training.data.transforms import Skip, load_transform

Rejection = tuple[str, str, bool]
"""Reason code, detail, and whether the transform skipped a valid row on purpose."""


class Place(NamedTuple):
    """Where a source row is, counted from 1: the line of JSON Lines, blank ones counted, or the row of a table."""

    file: Path
    line: int
    """In its file."""
    row: int
    """Over all files, one after the other."""


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
    read: Read = field(default_factory=Read)
    nulls: Nulls = field(default_factory=Nulls)
    turn_keys: Counter[str] = field(default_factory=Counter)
    """Keys of turns that only a template may know -> turns."""

    def add(self, other: "BlockResult") -> None:
        """Add the counts of other rows."""
        for name in ("rows_in", "rows_out", "examples", "trimmed_rows", "trimmed_turns"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("dropped", "skipped", "dropped_examples", "turn_keys"):
            getattr(self, name).update(getattr(other, name))
        self.read.add(other.read)
        self.nulls.add(other.nulls)
        self.first_rejection = self.first_rejection or other.first_rejection

    def reject(self, found: Rejection, place: "Place", record: Any, of_example: bool = False) -> None:
        """Count a row that gave nothing, or an example of a row that gave others."""
        reason, detail, by_choice = found
        (self.dropped_examples if of_example else self.dropped)[reason] += 1
        if by_choice:
            self.skipped[reason] += 1
        elif not self.first_rejection:
            self.first_rejection = f"{place.file}: row {place.line:,}: {reason}: {_one_line(detail)}"
        entry = {
            "file": str(place.file),
            "line": place.line,
            "row": place.row,
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
        # A module of a user gets what the source has.
        shipped = file.parent == TRANSFORMS
        self.columns = Columns(config["arguments"], keys_of_objects(self.transform.arguments) if shipped else ())
        self.rules = Rules(config["last_turn"])
        self.nulls = Nulls()
        self.turn_keys: Counter[str] = Counter()
        self.shape = config["rows"]
        self.check = checker(self.shape)
        fixed = self.shape not in ("any", shapes.PROMPTS)
        self._key = shapes.load(self.shape).KEY if fixed else None
        self._media: dict[tuple[str, ...], list[str]] = {}

    def block(self, block: Block) -> BlockResult:
        """Every record of a block."""
        done = BlockResult(rows_in=block.rows)
        made_lines: list[bytes] = []
        for number, record in block.records():
            place = Place(block.file, number, block.before + number)
            row: Any = None
            try:
                row = parse(record) if type(record) is bytes else record
                made = _invalid(row) if type(row) is Problem else self.transform(self.columns.row(row))
                if isinstance(made, dict):
                    made_lines.append(self.line(made, {"row": place.row}, row))
                    done.rows_out += 1
                    continue
                lines, rejections = self._parts(made, place.row, row)
            except Exception as error:  # a user's transform may fail in any way; the row counts as the cause
                lines, rejections = [], [rejection(error, row)]
            made_lines += lines
            done.rows_out += bool(lines)
            for reason in rejections if lines else rejections[:1]:
                done.reject(reason, place, record, of_example=bool(lines))
        done.examples = len(made_lines)
        made_lines.append(b"")
        done.lines = b"\n".join(made_lines)
        self.report(done)
        return done

    def report(self, done: BlockResult) -> None:
        """Move what was noted since the last call to a result."""
        done.trimmed_rows, done.trimmed_turns = self.rules.trimmed_rows, self.rules.trimmed_turns
        done.read, done.nulls, done.turn_keys = self.columns.take(), self.nulls, self.turn_keys
        self.nulls, self.turn_keys, self.rules = Nulls(), Counter(), Rules(self.rules.last_turn)

    def line(self, example: Any, place: dict[str, int], row: Any = None) -> bytes:
        """One line of `rows.jsonl`, without its end; `row` is its source row."""
        if not isinstance(example, dict):
            raise InvalidRow("not_an_object", f"the transform returned {type(example).__name__}")
        if self._key is not None and self._key not in example:
            self._refuse_shape(example)
        checked = self.check(example, self.rules)
        if isinstance(row, dict):
            layout = tuple(row)
            media = self._media.get(layout)
            if media is None:
                media = self._media[layout] = media_columns(layout)
            if media:
                refuse_media(row, media, checked)
        for column in TURN_COLUMNS:
            for turn in checked.get(column, ()):
                if len(turn) > 2 and not KNOWN_KEYS.issuperset(turn):
                    self.turn_keys.update(turn.keys() - KNOWN_KEYS)
        line = _dump({**place, **checked})
        if b'"tool' in line and b"null" in line:
            self.nulls.clean(checked)
            line = _dump({**place, **checked})
        elif b'"tool_calls"' in line:
            self.nulls.note(checked)
        if b"\\u0000" in line and (where := _path_of_nul(checked)):
            raise InvalidRow("nul_character", f"{where} holds U+0000, which is no text; remove it")
        return line

    def _refuse_shape(self, example: dict[str, Any]) -> None:
        """Raise InvalidRow for a transform that gives rows of another shape than the stage takes."""
        found = shapes.name_of(example)
        if found is not None:
            made, taken = shapes.title(found), shapes.title(self.shape)
            raise InvalidRow("wrong_shape", f"the transform gives {made}; this stage takes {taken}")

    def _parts(self, made: Any, number: int, row: Any) -> tuple[list[bytes], list[Rejection]]:
        """Lines and rejections of a row that gave several examples, or a value that is not an example."""
        parts = list(made) if isinstance(made, list | tuple | Iterator) else [made]
        lines: list[bytes] = []
        rejections = [] if parts else [("no_example", "the transform made nothing of it", False)]
        for part, example in enumerate(parts):
            try:
                place = {"row": number, "part": part} if len(parts) > 1 else {"row": number}
                lines.append(self.line(example, place, row))
            except Exception as error:
                rejections.append(rejection(error, {}))
        return lines, rejections


def _dump(example: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(example, default=_number)
    except TypeError as error:  # an integer of 65 bits, half a surrogate pair, a type of Python's own
        found = f"{_unwritable(example)}: {error.__cause__}" if error.__cause__ else str(error)
        raise InvalidRow(_why_not_json(str(error)), found) from None


def _unwritable(value: Any, path: str = "") -> str:
    """Where the first value is that JSON does not have."""
    if not isinstance(value, dict | list):
        return path
    for key, child in value.items() if isinstance(value, dict) else enumerate(value):
        try:
            orjson.dumps(child, default=_number)
        except TypeError:
            return _unwritable(child, f"{path}.{key}".removeprefix("."))
    return path


def _number(value: Any) -> Any:
    """A decimal number of a table, in a column that a transform keeps."""
    if isinstance(value, Decimal) and value.is_finite():
        return int(value) if value == value.to_integral_value() else float(value)
    raise TypeError(f"{value!r:.60} is {type(value).__name__}, which JSON does not have")


def _why_not_json(problem: str) -> str:
    known = {"surrogate": "undecodable_text", "ecursion": "nested_too_deeply"}
    return next((reason for word, reason in known.items() if word in problem), "not_json")


def _path_of_nul(value: Any, path: str = "") -> str:
    """Where the first text with U+0000 is; empty where there is none."""
    if isinstance(value, str):
        return path if "\0" in value else ""
    if isinstance(value, dict):
        children = ((item, f"{path}.{key}".removeprefix(".")) for key, item in value.items())
        return next(filter(None, (path if "\0" in key else "" for key in value)), "") or _first(children)
    return _first((item, f"{path}[{index}]") for index, item in enumerate(value)) if isinstance(value, list) else ""


def _first(children: Iterable[tuple[Any, str]]) -> str:
    return next(filter(None, (_path_of_nul(item, path) for item, path in children)), "")


def _invalid(row: Problem) -> Any:
    raise InvalidRow(row.reason, row.detail)


def rejection(error: Exception, row: Any) -> Rejection:
    """The rejection for an exception of a transform or of the validation."""
    if isinstance(error, MemoryError):
        raise error
    if isinstance(error, InvalidRow):
        return error.reason, error.detail, False
    if isinstance(error, KeyError):
        name = error.args[0] if error.args else ""
        if isinstance(row, dict) and isinstance(name, str) and name in row:
            return "missing_column", f"{name} is null in this row", False
        has = f" (the row has {', '.join(map(_shown, row))})" if isinstance(row, dict) else ""
        return "missing_column", f"{error}{has}", False
    if isinstance(error, TypeError | AttributeError):
        detail = re.sub(r"^'(\w+)' object is not iterable$", r"found \1, expected a list", str(error))
        return ("nested_too_deeply" if "ecursion" in detail else "wrong_type"), detail, False
    if isinstance(error, RecursionError):
        return "nested_too_deeply", "nested more deeply than can be read", False
    if isinstance(error, ValueError):
        reason, separator, detail = str(error).partition(": ")
        named = bool(separator) and reason.isidentifier()
        return (*((reason, detail) if named else ("unusable_row", str(error))), isinstance(error, Skip))
    return "transform_error", f"{type(error).__name__}: {error}", False


def _shown(name: str) -> str:
    """A column's name, in quotation marks where blanks or invisible characters belong to it."""
    return name if name and name == name.strip() and name.isprintable() else repr(name)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]


def _excerpt(record: Any) -> str:
    if isinstance(record, Problem):
        return record.excerpt
    if isinstance(record, bytes):
        return record[:200].decode(errors="replace")
    try:
        record = dict(record)
        shortened = {key: value[:200] if isinstance(value, str) else value for key, value in record.items()}
        return repr(shortened)[:200]
    except (RecursionError, AttributeError):
        return f"{type(record).__name__}, nested too deeply to be shown"
