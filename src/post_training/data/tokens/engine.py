"""Engines that encode text: the `tokenizers` library, or `fastokens`, some fifty times as fast, if it gives the same ids.

That is checked: both encode a corpus of hard cases once a job, and a sample of the job's own text throughout.
"""

import contextlib
import importlib.metadata
import itertools
import os
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from tokenizers import __version__ as tokenizers_version

from post_training.data.tokens.tokenizer_file import TokenizerFile

Ids = npt.NDArray[np.int32]
Offsets = npt.NDArray[np.int64]
PRELOAD = "POST_TRAINING_PRELOAD_TOKENIZER"
"""Environment variable of the fork server: the tokenizer.json that it loads once for all workers."""
_loaded: dict[str, Any] = {}


class EngineFails(Exception):
    """The fast engine cannot be used for this tokenizer or text."""


class Engine(Protocol):
    """Encodes complete texts, without adding tokens to them."""

    name: str

    def encode(self, texts: list[str]) -> tuple[Ids, Offsets]:
        """All ids one after the other, int32, and where each text's begin, int64 `[texts + 1]`."""


class HuggingFace:
    """The `tokenizers` library; it uses threads unless TOKENIZERS_PARALLELISM=false."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.name = f"tokenizers {tokenizers_version}"
        self._tokenizer = tokenizer

    def encode(self, texts: list[str]) -> tuple[Ids, Offsets]:
        """See `Engine`."""
        found = [
            np.array(encoding.ids, dtype=np.int32)
            for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        ]
        return flat(found)


class Fastokens:
    """The optional package `fastokens`. Raises EngineFails for whatever goes wrong in it."""

    def __init__(self, file: TokenizerFile) -> None:
        try:
            self.name = fastokens_name()
            self._tokenizer = _loaded.get(str(file.path)) or _load_fastokens(str(file.path))
        except BaseException as error:
            raise _failure(error) from None

    def encode(self, texts: list[str]) -> tuple[Ids, Offsets]:
        """See `Engine`."""
        try:
            ids, offsets = self._tokenizer.encode_batch_flat(texts)
        except BaseException as error:
            raise _failure(error) from None
        return np.frombuffer(ids, dtype=np.int32), np.frombuffer(offsets, dtype=np.int64)


def _failure(error: BaseException) -> BaseException:
    """A panic of a Rust library is no Exception; an interrupt by the user stays one."""
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return error
    return EngineFails(f"it fails ({type(error).__name__}: {' '.join(str(error).split())[:200]})")


def fastokens_name() -> str:
    """Name and version, as manifests have it; raises PackageNotFoundError when it is not installed."""
    return f"fastokens {importlib.metadata.version('fastokens')}"


def _load_fastokens(path: str) -> Any:
    import fastokens

    tokenizer = fastokens.Tokenizer.from_file(path)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def preload() -> None:
    """In the fork server: load the tokenizer that its workers share in memory."""
    path = os.environ.get(PRELOAD)
    if path:
        with contextlib.suppress(BaseException):  # a worker will meet the same, and say so
            _loaded[path] = _load_fastokens(path)


def flat(arrays: Sequence[npt.NDArray[Any]]) -> tuple[Any, Offsets]:
    """Arrays one after the other, and where each begins."""
    offsets = np.zeros(len(arrays) + 1, dtype=np.int64)
    np.cumsum([len(array) for array in arrays], out=offsets[1:])
    return (np.concatenate(arrays) if arrays else np.zeros(0, dtype=np.int32)), offsets


def hard_cases(control: Sequence[str]) -> list[str]:
    """Texts on which tokenizers differ: blanks, digits, scripts, combining marks, code, and control tokens in text."""
    pieces = [
        *("", " ", "  ", "\n", "\n\n", "\t", "\r\n", "\u00a0", "\u2028", "\u0085", "\u3000", "\u200b", "\ufeff", "\0"),
        *("    \t  ", " don't", "{{ x }}", "def f(x):\n    return x\n", "#### 10", "a" * 300, "=" * 80, "ab " * 50),
        *"a The I'LL 's ſ ß İ é e\u0301 \u0301 ﬁ Ω ａ １２ ½ ٣٤ 0 12 123 1234567 3.14 1,000 x1y2 0x1F … —".split(),
        *"日本語の文章です。 中文，标点 한국어 ไทย हिन्दी العربية עברית Привет ქართული".split(),
        *"👍🏽 👩‍👩‍👧 🇨🇭 \U0001f600 \ufffd \ue000 \U0010fffd <| |> </ !!! \\n $$".split(),
        *"__init__ camelCaseHTML A.B.C. https://a.b/c?d=e&f#g".split(),
    ]
    pieces += list(control)[:40]
    mixed = [first + second for first, second in itertools.product(pieces, repeat=2)]
    return [*pieces, *mixed, *("".join(pieces[start::7]) for start in range(7)), "\n".join(pieces)]
