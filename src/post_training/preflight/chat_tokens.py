"""Whether the model has ever read the chat template's own tokens: rows of the embeddings that are alike were never trained.

Adapters leave the embeddings as they are, so that such a token stays noise, and the one that ends an answer is never written. A few
rows are read from the weights' files, and nothing else of them.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from post_training.core.errors import brief
from post_training.data import registry
from post_training.data.tokens.chat_template import (
    ChatTemplate,
    as_passed,
    resolve_template,
    special_tokens,
    text_and_spans,
)
from post_training.data.tokens.tokenizer_file import TokenizerFile
from post_training.models.parts import TOKENS, Parts, token_ids
from post_training.models.weights import read_pickle, shapes, weight_files
from post_training.preflight.check import Check, check
from post_training.preflight.subject import Subject

NAME = "model.chat_tokens"
Rows = npt.NDArray[np.float64]
_TURNS = [
    {"role": "system", "content": "a"},
    {"role": "user", "content": "b"},
    {"role": "assistant", "content": "c"},
    {"role": "user", "content": "d"},
    {"role": "assistant", "content": "e"},
]
_SAMPLE = 256
_ALIKE = 0.1
"""Of the usual distance between two rows: rows that were made equal, or drawn around the mean of all rows, are closer."""


def chat_tokens(subject: Subject) -> Check:
    """Rows of the template's control tokens, where adapters leave the embeddings as they are."""
    lora = subject.view["model"]["lora"]
    if lora is None:
        return Check(NAME, "all weights are trained")
    if subject.own["init_from"] != "base":
        return Check(NAME, "checked of the stage before")
    try:
        written = _written(subject)
        trained = set(token_ids(subject.folder, lora["trainable_tokens"] or []))
        found = untrained(subject, [index for index in written.values() if index not in trained])
    except Exception as error:  # of the template, the tokenizer or the weights, which have checks of their own
        return Check(NAME, f"not known: {brief(error)}")
    if found is None:
        return Check(NAME, "not known: the files hold no embedding of the model's size")
    tokens = [token for token, index in written.items() if index in found]
    listed = ", ".join(f'"{token}"' for token in dict.fromkeys([*(lora["trainable_tokens"] or []), *tokens]))
    return check(
        NAME,
        f"the rows of {', '.join(tokens)} are like one another, or like the mean of all: the model has never read these tokens"
        if tokens
        else f"{len(written)} control tokens of the template have rows of their own",
        warns=tokens,
        remedy=f"adapters cannot change that, and answers may not end: set {TOKENS}=[{listed}]",
    )


def _written(subject: Subject) -> dict[str, int]:
    """The control tokens that the template writes, with their ids."""
    folder = subject.folder
    text = resolve_template(registry.chat_template_text(subject.view["data"]["chat_template"]), folder)
    template, file = ChatTemplate(text, special_tokens(folder)), TokenizerFile.read(folder)
    try:
        marked = template.render_marked(as_passed(_TURNS))
    except ValueError:  # a template may have no system turn
        marked = template.render_marked(as_passed(_TURNS[1:]))
    ids = set(file.load().encode(text_and_spans(marked)[0], add_special_tokens=False).ids)
    return {token: index for token, index in file.control.items() if index in ids}


def untrained(subject: Subject, tokens: list[int]) -> list[int] | None:
    """Those of the tokens whose rows were never trained, in an embedding that is not trained as a whole; None where no row can be read."""
    shape, lora = subject.shape, subject.view["model"]["lora"]
    found: dict[int, None] = {}
    for name in shape.parts.with_rows():
        if name in shape.parts.in_full(lora):
            continue
        others = [int(row) for row in np.linspace(0, shape.vocabulary - 1, _SAMPLE)]
        rows = rows_of(subject.folder, shape.parts, name, (shape.vocabulary, shape.hidden), [*tokens, *others])
        if rows is None:
            return None
        alike = alike_rows(rows[: len(tokens)], rows[len(tokens) :])
        found |= dict.fromkeys(token for token, same in zip(tokens, alike, strict=True) if same)
    return list(found)


def alike_rows(rows: Rows, others: Rows) -> list[bool]:
    """Which rows `[n, hidden]` are like another of them, like the mean of all, or like nothing at all, by the distances of other rows."""
    usual = float(np.median(np.linalg.norm(others[1:] - others[:-1], axis=1)))
    targets = [others.mean(axis=0), np.zeros(rows.shape[1])]
    return [
        any(
            float(np.linalg.norm(row - other)) <= _ALIKE * usual
            for other in [*targets, *(one for place, one in enumerate(rows) if place != index)]
        )
        for index, row in enumerate(rows)
    ]


def rows_of(folder: Path, parts: Parts, name: str, shape: tuple[int, int], wanted: list[int]) -> Rows | None:
    """Rows of an embedding by the last part of its module's name, float64 `[wanted, hidden]`; None where no file has it.

    Files may have another name for it (GPT-NeoX: `embed_out`): the one tensor of its shape that is not the other embedding.
    """
    from safetensors import safe_open

    sized: dict[str, Path] = {}
    for path in weight_files(folder):
        sized |= {key: path for key, size in shapes(path).items() if tuple(size) == shape}
    named = [key for key in sized if f".{key}".endswith(f".{name}.weight")]
    taken = tuple(f".{other}.weight" for other in (parts.embedding, parts.head) if other and other != name)
    found = named or [key for key in sized if not f".{key}".endswith(taken)]
    if len(found) != 1:
        return None
    (key,) = found
    if sized[key].suffix == ".bin":
        return np.asarray(read_pickle(sized[key], "cpu")[key][wanted].double())
    with safe_open(sized[key], framework="pt") as file:
        part = file.get_slice(key)
        return np.stack([part[row : row + 1][0].double().numpy() for row in wanted])
