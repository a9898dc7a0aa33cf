"""One dataset -> `rows.jsonl` of validated examples and `rejects.jsonl` of the rest, with reasons.

A source row gives one example, or several (pairs of n answers, paths of a tree). Always: rows_in = rows_out + the sum
over `dropped`, in source rows, where rows_out counts those that gave an example; `examples` counts the lines of
`rows.jsonl`. An example that is refused while its row gave others is in `dropped_examples`. A line carries `row`, the
number of its source row (from 0, over all files), and `part` where that row gave several.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import orjson

from post_training.data.rows import validate
from post_training.data.sources import Problem, Record, read_rows
from post_training.data.transforms import Transform, load_transform
from post_training.errors import DataError
from post_training.fingerprint import file_sha256
from post_training.progress import Progress
from post_training.task import Task


def run(task: Task) -> None:
    """Body of the rule `transform`."""
    raw = task.input_manifest("raw")
    files = [task.inputs["raw"].parent / entry["path"] for entry in raw["files"]]
    transform = load_transform(task.config["transform"], Path(task.runtime["file"]), task.config["arguments"])
    task.directory.mkdir(parents=True, exist_ok=True)
    rows_path, rejects_path = task.directory / "rows.jsonl", task.directory / "rejects.jsonl"
    dropped: Counter[str] = Counter()
    dropped_examples: Counter[str] = Counter()
    rows_in = examples = 0
    progress = Progress("transform", "rows")
    unfinished = rows_path.with_suffix(".jsonl.tmp")
    with unfinished.open("wb") as rows, rejects_path.open("wb") as rejects:
        for record in read_rows(files):
            rows_in += 1
            lines, faults = _apply(transform, record, task.config["rows"], rows_in - 1)
            rows.writelines(lines)
            examples += len(lines)
            if not lines:
                dropped[faults[0][0]] += 1
            for reason, detail in faults if lines else faults[:1]:
                if lines:
                    dropped_examples[reason] += 1
                _reject(rejects, record, reason, detail)
                if task.runtime.get("strict"):
                    raise DataError(
                        f"{record.file}: row {record.number}: {reason}: {detail}; data.strict stops at the first"
                    )
            progress.update(rows_in)
    # What a person reads after a failure is in place before the verdict.
    rows_out = rows_in - dropped.total()
    print(f"{rows_in:,} rows in, {rows_out:,} out{_summary(dropped)}")
    _check(task, rows_in, rows_out, dropped, rejects_path)
    unfinished.replace(rows_path)
    described = [
        {"path": p.name, "bytes": p.stat().st_size, "sha256": file_sha256(p)} for p in (rows_path, rejects_path)
    ]
    task.finish(
        rows_in=rows_in,
        rows_out=rows_out,
        examples=examples,
        dropped=dict(dropped),
        dropped_examples=dict(dropped_examples),
        files=described,
    )


def _apply(transform: Transform, record: Record, shape: str, number: int) -> tuple[list[bytes], list[tuple[str, str]]]:
    """The lines of `rows.jsonl` that a record gives, and (reason, detail) of each example that it does not."""
    if isinstance(record.row, Problem):
        return [], [(record.row.reason, record.row.detail)]
    try:
        made = transform(record.row)
        parts = list(made) if isinstance(made, list | tuple | Iterator) else [made]
    except KeyError as error:
        return [], [("missing_column", f"{error} (the row has {', '.join(record.row)})")]
    except (TypeError, AttributeError) as error:
        return [], [("wrong_type", str(error))]
    except ValueError as error:
        reason, separator, detail = str(error).partition(": ")
        is_code = bool(separator) and reason.isidentifier()
        return [], [(reason, detail) if is_code else ("unusable_row", str(error))]
    except Exception as error:  # a user's transform may fail in any way; the row is at fault until shown otherwise
        return [], [("transform_error", f"{type(error).__name__}: {error}")]
    lines, faults = [], [] if parts else [("no_example", "the transform made nothing of it")]
    for part, example in enumerate(parts):
        row, reason, detail = validate(example, shape)
        if row is None:
            faults.append((reason, detail))
            continue
        place = {"row": number} if len(parts) == 1 else {"row": number, "part": part}
        try:
            lines.append(orjson.dumps({**place, **row}) + b"\n")
        except TypeError as error:  # half a surrogate pair, an integer of 65 bits, a type of Python's own, deep in it
            faults.append(("not_json", str(error)))
    return lines, faults


def _reject(rejects: IO[bytes], record: Record, reason: str, detail: str) -> None:
    row = record.row
    excerpt = row.excerpt if isinstance(row, Problem) else str(row)[:200]
    entry = {
        "file": str(record.file),
        "row": record.number,
        "reason": reason,
        "detail": detail[:500],
        "excerpt": excerpt,
    }
    rejects.write(
        orjson.dumps({k: v.encode(errors="replace").decode() if isinstance(v, str) else v for k, v in entry.items()})
        + b"\n"
    )


def _check(task: Task, rows_in: int, rows_out: int, dropped: Counter[str], rejects: Path) -> None:
    tolerated = task.runtime.get("max_reject_fraction", 0.0)
    if rows_in == 0:
        raise DataError(f"{task.inputs['raw']}: the source has no rows; check its path and split")
    found = f"{rejects}: {dropped.total():,} of {rows_in:,} rows rejected ({dropped.total() / rows_in:.1%})"
    if rows_out == 0:
        raise DataError(f"{found}{_summary(dropped)}; nothing is left; choose a transform that fits the source")
    if dropped.total() / rows_in > tolerated:
        raise DataError(
            f"{found}{_summary(dropped)}; more than data.max_reject_fraction={tolerated:g}; mend the source, choose another "
            "transform, or raise the limit"
        )


def _summary(dropped: Counter[str]) -> str:
    return "".join(
        f"{': ' if index == 0 else ', '}{reason} {count:,}"
        for index, (reason, count) in enumerate(dropped.most_common())
    )
