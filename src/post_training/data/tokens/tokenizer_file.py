"""Facts about a tokenizer from its `tokenizer.json`, without loading it."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
from tokenizers import Tokenizer

from post_training.core.errors import DataError

# Names of elements that Gemma has as tokens of their own, neither special nor written by its template: vocabulary.
_HTML = frozenset(
    "table caption thead tbody tfoot tr th td h1 h2 h3 h4 h5 h6 blockquote ul ol li strong em b i u s sub sup code".split()
)
# A byte of a character outside of the vocabulary, under byte fallback.
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer on disk."""

    path: Path
    byte_lengths: npt.NDArray[np.int64] | None
    """Bytes of each id's text where they are fixed (byte-level BPE); else None."""
    normalizer: str | None
    """Type of the normaliser (`NFC`, `Sequence`, ...)."""
    control: dict[str, int]
    """Control tokens: special ones, and added ones that are not vocabulary."""
    special: dict[int, str]
    """Added tokens that are marked as special."""
    unknown: int | None
    """Id of the unknown token."""

    @classmethod
    def read(cls, folder: Path) -> "TokenizerFile":
        """From a model folder."""
        path = folder / "tokenizer.json"
        try:
            found = orjson.loads(path.read_bytes())
            added = found.get("added_tokens") or []
            model = found["model"]
            vocab = model["vocab"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(_unreadable(path, error)) from None
        unknown = model.get("unk_id")
        if unknown is None and isinstance(vocab, dict):
            unknown = vocab.get(model.get("unk_token"))
        return cls(
            path,
            _byte_lengths(found),
            (found.get("normalizer") or {}).get("type"),
            {
                token["content"]: token["id"]
                for token in added
                if _is_control(token) and not (model.get("byte_fallback") and _BYTE.fullmatch(token["content"]))
            },
            {token["id"]: token["content"] for token in added if token.get("special")},
            unknown,
        )

    def load(self) -> Tokenizer:
        """The tokenizer, without truncation and padding saved with it: those would cut or fill every row in silence."""
        try:
            tokenizer = Tokenizer.from_file(str(self.path))
        except Exception as error:  # the library raises bare Exceptions
            raise DataError(_unreadable(self.path, error)) from None
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def load_renamed(self, names: dict[str, str]) -> Tokenizer:
        """A tokenizer that gives the same ids, in which some tokens are spelled otherwise (old -> new content)."""
        found = orjson.loads(self.path.read_bytes())
        model = found["model"]
        if model.get("merges"):  # a merge that makes a renamed token would make it from text
            model["merges"] = [merge for merge in model["merges"] if not _makes(merge, names)]
        renamed = _renamed(found, names)
        for token in renamed.get("added_tokens") or []:
            if token["content"] in names.values():
                token["normalized"] = False
        renamed["truncation"] = renamed["padding"] = None
        return Tokenizer.from_str(orjson.dumps(renamed).decode())


def _unreadable(path: Path, error: Exception) -> str:
    return (
        f"{path}: cannot be read as a tokenizer ({error}); save the model's tokenizer with "
        "AutoTokenizer.from_pretrained(...).save_pretrained(...) to make it"
    )


def _is_control(token: dict[str, Any]) -> bool:
    """Blanks and HTML elements among the added tokens are vocabulary: text is meant to become them."""
    content = token["content"]
    if token.get("special"):
        return bool(content)
    return bool(content.strip()) and not (content[:1] == "<" and content.strip("</>") in _HTML)


def _makes(merge: str | list[str], names: dict[str, str]) -> bool:
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left + right in names or left in names or right in names


def _renamed(value: Any, names: dict[str, str]) -> Any:
    """A JSON value with every string, key or value, that is a name replaced."""
    if isinstance(value, str):
        return names.get(value, value)
    if isinstance(value, dict):
        return {names.get(key, key): _renamed(item, names) for key, item in value.items()}
    return [_renamed(item, names) for item in value] if isinstance(value, list) else value


def _byte_lengths(tokenizer: dict[str, Any]) -> npt.NDArray[np.int64] | None:
    kinds = [part for part in _parts(tokenizer.get("pre_tokenizer")) if part.get("type") == "ByteLevel"]
    if tokenizer["model"].get("type") != "BPE" or not kinds or any(part.get("add_prefix_space") for part in kinds):
        return None
    added = tokenizer.get("added_tokens") or []
    # Tokens that swallow neighbouring blanks stand for more bytes than their text has.
    if any(token.get("lstrip") or token.get("rstrip") for token in added):
        return None
    vocab = tokenizer["model"]["vocab"]
    lengths = np.zeros(max([*vocab.values(), *(token["id"] for token in added)]) + 1, dtype=np.int64)
    ids = np.fromiter(vocab.values(), dtype=np.int64, count=len(vocab))
    lengths[ids] = np.fromiter(map(len, vocab), dtype=np.int64, count=len(vocab))  # a character of its alphabet a byte
    for token in added:
        lengths[token["id"]] = len(token["content"].encode())
    return lengths


def _parts(component: dict[str, Any] | None) -> Iterable[dict[str, Any]]:
    return [] if component is None else [component, *component.get("pretokenizers", [])]
