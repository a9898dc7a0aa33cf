"""Numbers, sizes, times and texts for terminals, logs and pages."""

import json
import shutil
import sys
import textwrap
from typing import Any

GIB = 1 << 30


def duration(seconds: float) -> str:
    """`0:35`, `12:05`, `3:00:10`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def size(count: float) -> str:
    """Bytes in decimal units: `512 bytes`, `12.3 MB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def gib(size: float) -> str:
    """Bytes in binary units: `12.3 GiB`, `40 MiB`."""
    return f"{size / GIB:,.1f} GiB" if size >= GIB else f"{size / (1 << 20):,.0f} MiB"


def number(value: Any) -> str:
    """`1,234`, `0.1235`; a text as it is, other values as JSON, and a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value if isinstance(value, str) else json.dumps(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def with_error(result: dict[str, Any] | None) -> str:
    """`0.412 ± 0.010`, from `value` and its standard error `stderr`, which may be None."""
    if result is None:
        return "-"
    return f"{result['value']:.3f}" + (f" ± {result['stderr']:.3f}" if result["stderr"] is not None else "")


def as_json(value: Any) -> str:
    """Indented JSON, or the text itself."""
    return value if isinstance(value, str) else json.dumps(value, indent=1, ensure_ascii=False, default=repr)


def plain(text: str) -> str:
    """The text with control characters, which a terminal would obey, written out; line ends and tabs stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)


def visible(text: str) -> str:
    """As `plain`, with signs for line ends and tabs."""
    return plain(text.replace("\n", "\u23ce").replace("\t", "\u21e5").replace("\r", "\u240d"))


def folded(text: str, width: int) -> str:
    """Lines no longer than a terminal; a longer path stays in one piece, to be copied."""
    return "\n".join(
        textwrap.fill(
            line,
            width,
            subsequent_indent=" " * (len(line) - len(line.lstrip())),
            break_long_words=False,
            break_on_hyphens=False,
        )
        for line in text.split("\n")
    )


def for_terminal(text: str) -> str:
    """A message for standard error: `folded` where that is a terminal."""
    return folded(text, shutil.get_terminal_size().columns) if sys.stderr.isatty() else text
