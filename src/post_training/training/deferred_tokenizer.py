"""A tokenizer that is read from its files when something needs it: training on token ids needs it at the first save.

Reading one of 131,072 entries takes 1.2 s. Before the first step TRL and Transformers ask for the names
and ids of the padding, end and begin tokens alone, which stand at the head of `tokenizer.json`.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

_HEAD_CHARACTERS = 1 << 20
_ROLES = ("pad_token", "eos_token", "bos_token")
# Classes without control tokens of their own, which would stand in for those that the files leave out.
_GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")


def defer(folder: Path, load: Callable[[], Any]) -> Any:
    """What `load` would give, read at the first need; at once if the files do not say plainly what is asked before."""
    known = control_tokens(folder)
    return DeferredTokenizer(load, known) if known else load()


def control_tokens(folder: Path) -> dict[str, tuple[str, int] | None] | None:
    """Token and id of each role as the tokenizer would give them; None where the files leave that open.

    A padding and an end token must be there (without a padding token TRL sets one), and stand among the added tokens.
    """
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        with open(folder / "tokenizer.json", encoding="utf-8") as file:
            head = file.read(_HEAD_CHARACTERS)
        added, _ = json.JSONDecoder().raw_decode(head, head.index("[", head.index('"added_tokens"')))
        ids = {token["content"]: token["id"] for token in added}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    older = [name for name in ("special_tokens_map.json", "added_tokens.json") if (folder / name).exists()]
    if "auto_map" in config or older:
        return None
    known: dict[str, tuple[str, int] | None] = {}
    for role in _ROLES:
        told = config.get(role)
        token = told.get("content") if isinstance(told, dict) else told
        if isinstance(token, str) and token in ids:
            known[role] = (token, ids[token])
        elif token is None and role == "bos_token" and config.get("tokenizer_class") in _GENERIC:
            known[role] = None
        else:
            return None
    return known


class DeferredTokenizer(PreTrainedTokenizerBase):
    """Answers for its control tokens; at any other question it becomes the real tokenizer, class and all."""

    def __init__(self, load: Callable[[], Any], known: dict[str, tuple[str, int] | None]) -> None:
        # The base class's own would begin to make a tokenizer.
        answers: dict[str, Any] = {"get_vocab": lambda: _Vocabulary(self, {pair[0] for pair in known.values() if pair})}
        for role, pair in known.items():
            answers |= {role: pair and pair[0], f"{role}_id": pair and pair[1]}
        object.__getattribute__(self, "__dict__").update(load=load, answers=answers)

    def __getattribute__(self, name: str) -> Any:
        answers = object.__getattribute__(self, "__dict__")["answers"]
        if name in answers:
            return answers[name]
        if name == "__class__":
            return DeferredTokenizer
        return getattr(_become_real(self), name)

    def __setattr__(self, name: str, value: Any) -> None:
        answers = object.__getattribute__(self, "__dict__")["answers"]
        if name not in answers or answers[name] != value:
            setattr(_become_real(self), name, value)

    def __len__(self) -> int:
        return len(_become_real(self))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the real one."""
        return _become_real(self)(*args, **kwargs)

    def __repr__(self) -> str:
        return repr(_become_real(self))


class _Vocabulary(Mapping[str, int]):
    """TRL looks whether the padding token is in the vocabulary; everything else is the real one's to say."""

    def __init__(self, tokenizer: Any, known: set[str]) -> None:
        self.tokenizer, self.known = tokenizer, known

    def __contains__(self, token: object) -> bool:
        return token in self.known or token in self._real()

    def __getitem__(self, token: str) -> int:
        return self._real()[token]

    def __iter__(self) -> Iterator[str]:
        return iter(self._real())

    def __len__(self) -> int:
        return len(self._real())

    def _real(self) -> dict[str, int]:
        if type(self.tokenizer) is DeferredTokenizer:
            _become_real(self.tokenizer)
        return dict(self.tokenizer.get_vocab())


def _become_real(deferred: DeferredTokenizer) -> Any:
    """Turn the object into the tokenizer, so that everything that holds it has that."""
    own = object.__getattribute__(deferred, "__dict__")
    real = own["load"]()
    own.clear()
    own.update(real.__dict__)
    object.__setattr__(deferred, "__class__", type(real))
    return deferred
