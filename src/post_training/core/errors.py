"""Errors for the user, one line each: key or file, what was found, what was expected, how to fix it."""

import difflib
import re
import traceback
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from post_training.core.secrets import mask

_BETWEEN = r"[,;\s]+"


class UserError(Exception):
    """Something that the user can fix; shown as one line without a traceback, exit code 1. Secrets in it are masked."""

    def __init__(self, message: str = "") -> None:
        super().__init__(mask(message))


class ConfigError(UserError):
    """A configuration key that cannot work. The message begins with the key."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"config error: {key}: {' '.join(problem.split())}")
        self.key, self.problem = key, mask(problem)


class DataError(UserError):
    """A file or row that cannot be read or used. The message names both; line breaks of what it shows of them are blanks in it."""

    def __init__(self, message: str = "") -> None:
        super().__init__(re.sub(r"\s*[\r\n]\s*", " ", message))


def did_you_mean(word: str, offered: Iterable[str]) -> str:
    """`"Did you mean 'a'? "` or nothing, then what is on offer."""
    offered = sorted(set(offered))
    return f"{guess(word, offered)}On offer: {', '.join(offered)}"


def guess(word: str, offered: Iterable[str]) -> str:
    """`"Did you mean 'a'? "` or nothing, where there are too many to list."""
    close = closest(word, offered)
    return f"Did you mean {close!r}? " if close else ""


def closest(word: str, offered: Iterable[str], similar: float = 0.6) -> str | None:
    """The one that is spelled most like the word, if any is; `similar` is difflib's ratio, at most 1."""
    by_lower = {one.lower(): one for one in offered}
    found = difflib.get_close_matches(word.lower(), list(by_lower), n=1, cutoff=similar)
    return by_lower[found[0]] if found else None


def one_of(found: Any, offered: Collection[str], key: str) -> None:
    """Raise `ConfigError(key, ...)` with what was perhaps meant, unless the value is one of those on offer."""
    if found not in offered:
        raise ConfigError(key, f"found {found!r}. {did_you_mean(str(found), offered)}")


def require(holds: bool, key: str, problem: str) -> None:
    """Raise `ConfigError(key, problem)` unless it holds."""
    if not holds:
        raise ConfigError(key, problem)


def located(error: BaseException, file: str) -> str:
    """What somebody's code raised, `Kind: message (file, line 3)`, with the last line of that file that led to it."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    place = f" ({Path(file).name}, line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {brief(error)}{place}"


def at_least(least: int, found: Any, key: str) -> None:
    """Raise `ConfigError(key, ...)` for a number below the least; None is allowed."""
    require(found is None or found >= least, key, f"found {found}, expected {least} or more")


def written_as_list(value: Any) -> str:
    """`[a, b]`, of `a`, `a,b` and `a b`, as it would be written in YAML."""
    return f"[{', '.join(re.split(_BETWEEN, str(value).strip()))}]"


def brief(error: BaseException, longest: int = 300) -> str:
    """The message of a library's exception on one line, cut to `longest` characters."""
    return " ".join(str(error).split())[:longest]
