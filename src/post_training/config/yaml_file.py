"""One YAML file into plain containers; whatever is wrong with it is one line with file, line and column."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import GrammarParseError, KeyValidationError

from post_training.core.errors import UserError, brief

# Spaces that YAML takes for letters, and characters without a width; text copied from a web page or a chat has them.
_INVISIBLE = re.compile(r"[\u00a0\u00ad\u2000-\u200f\u2028-\u202f\u205f\u2060\u3000\ufeff]")


def load_file(path: str | Path) -> dict[str, Any]:
    """Read one YAML file into plain containers. Raises UserError when it is no mapping."""
    text = _text(path)
    try:
        loaded = OmegaConf.create(text) if text.strip() else OmegaConf.create({})
        tree = OmegaConf.to_container(loaded, resolve=False)
    except yaml.MarkedYAMLError as error:
        raise UserError(f"config error: {path}: {_yaml_problem(text, error)}") from None
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        problem = f"line {line}: a control character (U+{ord(text[error.position]):04X}), which YAML forbids; delete it"
        raise UserError(f"config error: {path}: {problem}") from None
    except KeyValidationError:
        problem = "a key is empty or no text; give it a name, or quote it"
        raise UserError(f"config error: {path}: {problem}") from None
    except GrammarParseError as error:
        problem = f"{error.full_key}: no `${{...}}` that can be read; write ${{section.key}}"
        raise UserError(f"config error: {path}: {problem}") from None
    except Exception as error:  # YAML and OmegaConf raise many kinds; all are the file's fault
        if "recursion depth" in str(error):
            raise UserError(f"config error: {path}: is nested too deeply for a configuration") from None
        problem = brief(error, 2000) or f"found {text.strip()[:40]!r}, expected lines of `key: value`"
        raise UserError(f"config error: {path}: not a YAML mapping: {problem}") from None
    if not isinstance(tree, dict) or (tree and ":" not in text):
        kind = "a list" if isinstance(tree, list) else f"the text {text.strip().splitlines()[0][:40]!r}"
        raise UserError(f"config error: {path}: found {kind}, expected a mapping: lines of `key: value`")
    for key in filter(_INVISIBLE.search, _keys(tree)):
        number = next((number for number, line in enumerate(text.splitlines(), 1) if key in line), 1)
        raise UserError(f"config error: {path}: line {number}: {_invisible(key)}")
    return {str(key): value for key, value in tree.items()}


def _text(path: str | Path) -> str:
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        problem = f"config error: {path}: cannot be read ({error.strerror}); give the path of a YAML file"
        raise UserError(problem) from None
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"config error: {path}: is UTF-16; save it as UTF-8")
    if b"\x00" in data:
        line = data[: data.index(b"\x00")].count(b"\n") + 1
        raise UserError(f"config error: {path}: line {line}: holds a NUL byte, so it is no text; give a YAML file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        problem = f"line {line}: byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8"
        raise UserError(f"config error: {path}: {problem}") from None


def _yaml_problem(text: str, error: yaml.MarkedYAMLError) -> str:
    """What is wrong in which line and column, and what to do."""
    escape = any(part in (error.problem or "") for part in ("escape", "hexdecimal"))
    begun = not escape and any(
        part in (error.context or "") for part in ("while scanning a simple key", "quoted scalar")
    )
    mark = (error.context_mark if begun else None) or error.problem_mark or error.context_mark
    if mark is None:
        return brief(error)
    lines = [*text.splitlines(), ""]
    where, line = f"line {mark.line + 1}, column {mark.column + 1}", lines[min(mark.line, len(lines) - 1)]
    problem, shown = error.problem or "not YAML", repr(line.strip()[:60])
    if "\t" in line[: len(line) - len(line.lstrip())] or "'\\t'" in problem:
        return f"{where}: found a tab in the indentation, which YAML forbids; use spaces"
    if "duplicate key" in problem:
        key = line.strip().partition(":")[0]
        same = [
            number
            for number, other in enumerate(lines[: mark.line], 1)
            if other.startswith(f"{line[: mark.column]}{key}:")
        ]
        first = f"in line {same[-1]}" if same else "above"
        return f"{where}: {key} is there twice, {first} and here; keep one, with the keys of both"
    for number in (mark.line, mark.line - 1):  # what it makes of a line may be found out in the next one
        if 0 <= number < len(lines) and _INVISIBLE.search(lines[number]):
            return f"line {number + 1}: {_invisible(lines[number])}"
    if "expected ',' or '}'" in problem and "${" in line:
        return f'{where}: a `${{...}}` within {{ }} needs quotes: "${{section.key}}"'
    if problem.startswith("mapping values") and ": " in line[: mark.column]:
        return f"{where}: a second colon in one line ({shown}); quote the value"
    before = lines[mark.line - 1] if mark.line else ""
    if problem.startswith("mapping values") and re.match(r"\s*(- )?[a-z_]\w*:[^\s/]", before):
        return f"line {mark.line}: no `key: value` ({before.strip()[:60]!r}); a space follows the colon"
    problem = "escape" if escape else problem
    for part, words in _PROBLEMS.items():
        if part in problem or (begun and part in str(error.context)):
            return f"{where}: {words.format(line=shown, character=line[mark.column : mark.column + 1])}"
    return f"{where}: {problem}"


_INDENTATION = "the indentation fits no line above ({line}); indent keys of one section alike, with spaces"
# Parts of the parser's messages, and what to say instead.
_PROBLEMS = {
    "did not find expected key": _INDENTATION,
    "mapping values are not allowed": _INDENTATION,
    "block end": _INDENTATION,
    "'-' indicator": _INDENTATION,
    "escape": "a backslash within double quotes begins an escape ({line}); write single quotes",
    "unhashable key": "a list or mapping stands where a name belongs ({line}); quote text that begins with {{ or [",
    "quoted scalar": "the quote that begins here has no end ({line}); close it",
    "could not find expected ':'": "no `key: value` ({line}); a space follows the colon",
    "cannot start any token": "{character!r} cannot begin a value; quote it, as in 'text'",
    "found another document": "a second document begins ('---'); keep one",
    "could not determine a constructor for the tag": "tags such as ! and !! are not read ({line}); write the value itself",
    "found undefined alias": "*name is used before any &name ({line}); define it above, or write the value itself",
}


def _invisible(text: str) -> str:
    found = _INVISIBLE.search(text)
    assert found is not None
    seen = _INVISIBLE.sub("", text).strip()[:40]
    return f"an invisible character (U+{ord(found[0]):04X}) at {seen!r}; delete it, and type a plain space where one belongs"


def _keys(tree: Any) -> Iterator[str]:
    if isinstance(tree, dict):
        yield from map(str, tree)
    for value in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _keys(value)
