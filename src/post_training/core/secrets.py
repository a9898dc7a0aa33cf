"""Secrets come from the environment only: output and files are masked, and a configuration that holds a secret is refused.

A secret is the value of a variable such as HF_TOKEN or WANDB_API_KEY, a token in the form that a well-known service gives
out, the password in a URL, or what signs one. A W&B key of 40 hexadecimal digits looks like a commit, so only the name of its variable or
key gives it away.
"""

import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

MASK = "***"
_SECRET_NAME = re.compile(r"(?i)(?:^|_)(?:token|api_?key|secret|secret_?key|access_?key|password|passwd|credentials?)$")
# Names that end so and hold no secret: control tokens, and counts of tokens.
_NOT_SECRET = re.compile(r"(?i)(?:^|_)(?:eos|bos|pad|unk|sep|cls|mask|image|stop|special|decoder_start)_token$")
_FORMS = {
    "a Hugging Face token": r"\b(?:hf|api_org)_[A-Za-z0-9]{16,}",
    "a W&B key": r"\bwandb_v\d+_[A-Za-z0-9_-]{16,}",
    "a Git token": r"\b(?:gh[opsur]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}|glpat-[A-Za-z0-9_-]{16,})",
    "an API key": r"\bsk-[A-Za-z0-9_-]{24,}",
    "an AWS key": r"\bA(?:KIA|SIA)[A-Z0-9]{16}\b",
    "a bearer token": r"(?i:\bBearer [A-Za-z0-9._~+/-]{16,}=*)",
    "a URL with a password": r"(?<=://)[^\s/:@\"'<>\\]*:[^\s/:@\"'<>\\]+(?=@[\w.\[-])",
    "a signed URL": r"(?i:(?<=[?&])(?:x-(?:amz|goog)-(?:signature|security-token)|signature|sig|(?:access_)?token|api_?key)"
    r"=[^\s&\"'<>\\]{8,})",
}
_ANY_FORM = re.compile("|".join(f"({form})" for form in _FORMS.values()))
_SECRET_VALUE = re.compile(r"[\w.~+/=:-]{8,}")  # not `<|im_end|>`, whatever its key is called
_SHORTEST = 10


def mask(text: str) -> str:
    """The text with every secret in it replaced."""
    for value in _of_environment():
        text = text.replace(value, MASK)
    return _ANY_FORM.sub(MASK, text)


def find(value: str) -> str | None:
    """The kind of the first secret in a text, or None."""
    if any(secret in value for secret in _of_environment()):
        return "a secret of the environment"
    found = _ANY_FORM.search(value)
    return list(_FORMS)[found.lastindex - 1] if found and found.lastindex else None


def find_in(tree: Any, path: str = "") -> tuple[str, str] | None:
    """The dotted key and the kind of the first secret in nested mappings and lists; None without one."""
    if isinstance(tree, str):
        kind = find(tree)
        return (path, kind) if kind else None
    if isinstance(tree, Mapping):
        entries = [(f"{path}.{key}" if path else str(key), str(key), value) for key, value in tree.items()]
    elif isinstance(tree, list | tuple):
        entries = [(f"{path}[{index}]", "", value) for index, value in enumerate(tree)]
    else:
        return None
    for inner, name, value in entries:
        if isinstance(value, str) and is_secret_name(name) and _SECRET_VALUE.fullmatch(value):
            return inner, "a secret by its name"
        if found := find_in(value, inner):
            return found
    return None


def is_secret_name(name: str) -> bool:
    """Whether a key or variable of this name holds a secret: `hub_token` and HF_TOKEN, but not `eos_token`."""
    return bool(_SECRET_NAME.search(name)) and not _NOT_SECRET.search(name)


@contextmanager
def masked_output() -> Iterator[None]:
    """Mask everything that this process prints, tracebacks too."""
    before = sys.stdout, sys.stderr
    mask_output()
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def mask_output() -> None:
    """Mask everything that this process prints from here on; for the start of a worker process."""
    sys.stdout, sys.stderr = _Masked(sys.stdout), _Masked(sys.stderr)  # type: ignore[assignment]


class _Masked:
    """A text stream that masks line by line, so that a secret in two writes is seen; `flush` writes an unfinished line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._line, self._lock = stream, "", threading.RLock()

    def write(self, text: str) -> int:
        """Write the lines that are complete, and keep the rest for the next call."""
        with self._lock:
            lines, end, self._line = (self._line + text).rpartition("\n")
            if end:
                self._stream.write(mask(lines + end))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write each of the texts."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Write what is kept, and flush the stream."""
        with self._lock:
            if self._line:
                self._stream.write(mask(self._line))
                self._line = ""
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _of_environment() -> list[str]:
    """Values of the variables that hold secrets, long ones first."""
    values = {value for name, value in os.environ.items() if len(value) >= _SHORTEST and is_secret_name(name)}
    return sorted(values, key=len, reverse=True)
