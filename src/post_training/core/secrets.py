"""Secrets come from the environment; whatever is written is masked, and a configuration that holds one is refused. Light.

What counts as one: the value of a variable such as HF_TOKEN or WANDB_API_KEY, the forms in which well-known services
hand out tokens, and the password in a URL. A W&B key of 40 hexadecimal digits looks like a commit, so it is known only by
its variable or by the name of a key.
"""

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

MASK = "***"
_SECRET_NAME = re.compile(r"(?i)(?:^|_)(?:token|api_?key|secret|secret_?key|access_?key|password|passwd|credentials?)$")
# Names that end so and hold no secret: control tokens, and counts of tokens.
_NOT_SECRET = re.compile(r"(?i)(?:^|_)(?:eos|bos|pad|unk|sep|cls|mask|image|stop|special|decoder_start)_token$")
_FORMS = (
    (re.compile(r"\bhf_[A-Za-z0-9]{16,}"), "a Hugging Face token"),
    (re.compile(r"\bapi_org_[A-Za-z0-9]{16,}"), "a Hugging Face token"),
    (re.compile(r"\bwandb_v\d+_[A-Za-z0-9_-]{16,}"), "a W&B key"),
    (
        re.compile(r"\b(?:gh[opsur]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}|glpat-[A-Za-z0-9_-]{16,})"),
        "a Git token",
    ),
    (re.compile(r"\bsk-[A-Za-z0-9_-]{24,}"), "an API key"),
    (re.compile(r"\bA(?:KIA|SIA)[A-Z0-9]{16}\b"), "an AWS key"),
    (re.compile(r"(?i)\bBearer [A-Za-z0-9._~+/-]{16,}=*"), "a bearer token"),
    (re.compile(r"(?<=://)[^\s/:@\"'<>\\]*:[^\s/:@\"'<>\\]+(?=@[\w.\[-])"), "a URL with a password"),
)
_SECRET_VALUE = re.compile(r"[\w.~+/=:-]{8,}")  # `<|im_end|>` is none, whatever its key is called
_HINT = re.compile(r"hf_|api_org_|wandb_v|gh[opsur]_|github_pat_|glpat-|sk-|A[KS]IA|[Bb]earer |://")
_SHORTEST = 10


def mask(text: str) -> str:
    """The text with every secret in it replaced."""
    for value in _of_environment():
        if value in text:
            text = text.replace(value, MASK)
    if _HINT.search(text):
        for form, _ in _FORMS:
            text = form.sub(MASK, text)
    return text


def find(value: str) -> str | None:
    """What kind of secret a text holds, or None."""
    if any(secret in value for secret in _of_environment()):
        return "a secret of the environment"
    return next((kind for form, kind in _FORMS if form.search(value)), None)


def find_in(tree: Any, path: str = "") -> tuple[str, str] | None:
    """The dotted key of the first secret in nested mappings and lists, and what kind it is; None without one."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            inner = f"{path}.{key}" if path else str(key)
            if isinstance(value, str) and is_secret_name(str(key)) and _SECRET_VALUE.fullmatch(value):
                return inner, "a secret by its name"
            if found := find_in(value, inner):
                return found
    elif isinstance(tree, list | tuple):
        for index, value in enumerate(tree):
            if found := find_in(value, f"{path}[{index}]"):
                return found
    elif isinstance(tree, str) and (kind := find(tree)):
        return path, kind
    return None


def is_secret_name(name: str) -> bool:
    """Whether a key or variable of this name holds a secret: `hub_token` and HF_TOKEN, but not `eos_token`."""
    return bool(_SECRET_NAME.search(name)) and not _NOT_SECRET.search(name)


@contextmanager
def masked_output() -> Iterator[None]:
    """Everything that this process prints, tracebacks too, is masked."""
    before = sys.stdout, sys.stderr
    mask_output()
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def mask_output() -> None:
    """From here on everything that this process prints is masked: the start of a worker process."""
    sys.stdout, sys.stderr = _Masked(sys.stdout), _Masked(sys.stderr)  # type: ignore[assignment]


class _Masked:
    """A text stream that masks what is written to it, a call at a time."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """As the stream's own."""
        self._stream.write(mask(text))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """As the stream's own."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _of_environment() -> list[str]:
    """Values of the variables that hold secrets, long ones first."""
    values = {value for name, value in os.environ.items() if len(value) >= _SHORTEST and is_secret_name(name)}
    return sorted(values, key=len, reverse=True)
