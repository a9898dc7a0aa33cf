"""Numbers, sizes and times as a person reads them."""

import json
from typing import Any

_GIB = 1 << 30


def duration(seconds: float) -> str:
    """`0:35`, `12:05`, `3:00:10`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def size(count: int) -> str:
    """Bytes as a person reads them."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count = count / 1000  # type: ignore[assignment]
    return f"{count:,.1f} TB"


def gib(size: float) -> str:
    """`12.3 GiB`, `40 MiB`."""
    return f"{size / _GIB:,.1f} GiB" if size >= 0.1 * _GIB else f"{size / (1 << 20):,.0f} MiB"


def number(value: Any) -> str:
    """A value as a person reads it."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value if isinstance(value, str) else json.dumps(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def with_error(told: dict[str, Any] | None) -> str:
    """`0.412 ± 0.010`, with the standard error where there is one."""
    if told is None:
        return "-"
    return f"{told['value']:.3f}" + (f" ± {told['stderr']:.3f}" if told["stderr"] is not None else "")
