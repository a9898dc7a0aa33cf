"""Groups rows that share keys, such as the messages of a tree, wherever they are in the files, in little memory.

Rows are buffered on disk; memory holds eight bytes a row and the keys.
"""

import tempfile
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from post_training.data.apply_transform import Application, BlockResult, Place, Rejection, rejection
from post_training.data.reading.records import Block, Problem, parse
from post_training.data.rows import InvalidRow

_GROUPS_AT_ONCE = 1000


def apply_to_groups(application: Application, blocks: Iterator[Block], folder: Path) -> Iterator[BlockResult]:
    """Apply a transform to groups of rows, in the order of their first rows.

    Args:
        application: a transform that was registered with `group`.
        blocks: of the selected rows.
        folder: for the buffered rows.
    """
    with tempfile.TemporaryFile(dir=folder) as buffer:
        groups = _Groups()
        starts = array("Q")
        for block in blocks:
            done = BlockResult(rows_in=block.rows)
            for number, record in block.records():
                place = Place(block.file, number, block.before + number)
                row: Any = None
                try:
                    row = parse(record) if isinstance(record, bytes) else record
                    if isinstance(row, Problem):
                        raise InvalidRow(row.reason, row.detail)
                    keys = application.transform.group_keys(application.columns.row(row))
                    if wrong := [key for key in keys if isinstance(key, dict | list)]:
                        raise TypeError(
                            f"found {wrong[0]!r:.80} for the name of a message or tree, expected text or a number"
                        )
                    line = orjson.dumps([str(block.file), number, place.row, row], default=str)
                except Exception as error:
                    done.reject(rejection(error, row), place, record)
                    continue
                groups.add(keys)
                starts.append(buffer.tell())
                buffer.write(line)
            yield done
        starts.append(buffer.tell())
        done = BlockResult()
        for count, members in enumerate(groups):
            rows = []
            for member in members:
                buffer.seek(starts[member])
                rows.append(orjson.loads(buffer.read(starts[member + 1] - starts[member])))
            _apply(application, rows, done)
            if count % _GROUPS_AT_ONCE == _GROUPS_AT_ONCE - 1:
                application.report(done)
                yield done
                done = BlockResult()
        application.report(done)
        yield done


class _Groups:
    """Rows by number, joined where they share a key: union-find, in which each points to an earlier one or itself."""

    def __init__(self) -> None:
        self.earlier = array("Q")
        self.owner: dict[Any, int] = {}

    def add(self, keys: list[Any]) -> None:
        """One more row."""
        row = len(self.earlier)
        self.earlier.append(row)
        for key in keys:
            self.join(self.owner.setdefault(key, row), row)

    def join(self, first: int, second: int) -> None:
        """Merge the groups of two rows."""
        one, other = self.first_of(first), self.first_of(second)
        self.earlier[max(one, other)] = min(one, other)

    def first_of(self, row: int) -> int:
        """The first row of a group."""
        while self.earlier[row] != row:
            self.earlier[row] = row = self.earlier[self.earlier[row]]
        return row

    def __iter__(self) -> Iterator[list[int]]:
        """The groups, by their first rows."""
        self.owner.clear()
        members: dict[int, array[int]] = {}
        for row in range(len(self.earlier)):
            members.setdefault(self.first_of(row), array("Q")).append(row)
        for group in members.values():
            yield list(group)


def _apply(application: Application, members: list[list[Any]], done: BlockResult) -> None:
    """Apply the transform to one group: lines for its examples, a rejection for each unused row."""
    rows = [row for *_, row in members]
    seen = [application.columns.again(row) for row in rows]
    reasons: dict[int, Rejection] = {}
    used: set[int] = set()
    examples: list[tuple[list[int], Any]] = []
    try:
        for indices, made in application.transform(seen):
            if isinstance(made, ValueError):
                reasons.update((index, rejection(made, {})) for index in indices)
            else:
                examples.append((indices, made))
    except Exception as error:
        examples = []
        reasons = dict.fromkeys(range(len(rows)), rejection(error, rows[0]))
    failed: list[tuple[list[int], Rejection]] = []
    for part, (indices, example) in enumerate(examples):
        place = {"row": members[0][2]} if len(examples) == 1 else {"row": members[0][2], "part": part}
        try:
            done.lines += application.line(example, place, rows[indices[0]]) + b"\n"
            done.examples += 1
            used.update(indices)
        except Exception as error:
            failed.append((indices, rejection(error, {})))
    for indices, found in failed:
        unused = [index for index in indices if index not in used]
        reasons = dict.fromkeys(unused, found) | reasons
        if not unused:
            *where, row = members[indices[-1]]
            done.reject(found, _place(*where), row, of_example=True)
    done.rows_out += len(used)
    for index, (*where, row) in enumerate(members):
        if index not in used:
            done.reject(reasons.get(index, ("not_used", "the transform made nothing of it", True)), _place(*where), row)


def _place(file: str, line: int, row: int) -> Place:
    return Place(Path(file), line, row)
