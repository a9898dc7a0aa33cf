"""Tokens with their text."""

from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

# Of bytes that are no character, such as in a row that was cut, there is no end to wait for.
_MOST_TOKENS_OF_A_CHARACTER = 8


@dataclass
class Token:
    """One token of a sequence."""

    id: int
    text: str
    trained: bool


def tokens_of(tokenizer: Tokenizer, ids: Any, trained: Any) -> list[Token]:
    """Each token of a sequence with its text: ids int [n], trained bool [n].

    A character that several tokens make up is the text of the first of them, and the others have none.
    """
    found: list[Token] = []
    begun: list[Token] = []
    for number, mark in zip(ids.tolist(), trained.tolist(), strict=True):
        found.append(Token(number, tokenizer.decode([number], skip_special_tokens=False), mark))
        if "\ufffd" not in found[-1].text and not begun:
            found[-1].text = found[-1].text or str(tokenizer.id_to_token(number))
            continue
        begun.append(found[-1])
        text = tokenizer.decode([token.id for token in begun], skip_special_tokens=False)
        if "\ufffd" not in text or len(begun) == _MOST_TOKENS_OF_A_CHARACTER:
            for token in begun:
                token.text = ""
            begun[0].text = text
            begun = []
    for token in begun:
        token.text = str(tokenizer.id_to_token(token.id))
    return found
