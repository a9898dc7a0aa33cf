"""Rows -> token ids: one block of them at a time, as a worker does it."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import numpy as np
import orjson
import pyarrow as pa

from post_training import registry
from post_training.data import shapes
from post_training.data.chat_template import ChatTemplate, special_tokens
from post_training.data.encode import Encoder
from post_training.errors import DataError

Block = tuple[pa.RecordBatch, Counter[str], int, int]
"""Rows, dropped by reason, tokens, trained tokens."""


class Tokenization:
    """Tokenises blocks of rows of one shape."""

    def __init__(self, folder: Path, template: str, shape: str) -> None:
        self.template = ChatTemplate(template, special_tokens(folder))
        self.encoder = Encoder(folder)
        self.shape = shapes.load(shape)

    def block(self, lines: tuple[bytes, ...]) -> Block:
        """One block of `rows.jsonl`."""
        rows = [orjson.loads(line) for line in lines]
        dropped: Counter[str] = Counter()
        made = self.shape.tokenize(rows, self.template, self.encoder, dropped)
        schema = block_schema(self.shape)
        columns = {name: [row[name] for row in made] for name in schema.names}
        arrays = [
            pa.array(columns[name], pa.int64()) if name == "row" else _list_array(columns[name])
            for name in schema.names
        ]
        batch = pa.record_batch(arrays, schema=schema)
        tokens, trained = self.shape.token_counts(batch)
        return batch, dropped, int(tokens.sum()), int(trained.sum())


def block_schema(shape: ModuleType) -> pa.Schema:
    """Columns of a tokenised shard: the shape's, and the number that each row has in `rows.jsonl`."""
    return shape.SCHEMA.append(pa.field("row", pa.int64()))


def check_template(folder: Path, template: str) -> int:
    """The token that ends an answer; refuse a template that does not train it, or whose tokens the tokenizer lacks.

    A model trained without a stop token never stops; one whose control tokens are cut up learns a format of fragments.
    """
    tokenization = Tokenization(folder, template, "messages")
    config = orjson.loads((folder / "tokenizer.json").read_bytes())
    special = {token["id"]: token["content"] for token in config.get("added_tokens", []) if token.get("special")}
    declared = registry.template_tokens(template)
    known = {token["content"] for token in config.get("added_tokens", [])}
    lacking = [token for token in declared.needed if token not in known] if declared else []
    if lacking:
        raise DataError(
            f"data.chat_template: the tokenizer in {folder} has no {', '.join(lacking)}, which the template writes; choose "
            f"a template that fits the model (its control tokens: {_some(special.values())})"
        )
    conversation = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        text, spans = tokenization.template.render(conversation)
    except ValueError as error:
        raise DataError(f"data.chat_template: cannot render a question and its answer ({error}); mend it") from None
    ((ids, mask),) = tokenization.encoder.encode([text], [spans])
    if not mask.any():
        raise DataError("data.chat_template: trains on nothing of an answer; put {% generation %} around it")
    last = int(ids[mask][-1])
    if last not in special:
        raise DataError(
            "data.chat_template: the last trained token of an answer is not a special token of the tokenizer, so the model "
            f"would not learn to stop; end the generation block with one of {_some(special.values())}"
        )
    return last


def _some(tokens: Iterable[str]) -> str:
    return ", ".join(list(tokens)[:8]) or "none"


def _list_array(values: list[np.ndarray]) -> pa.ListArray:
    offsets = np.zeros(len(values) + 1, dtype=np.int32)
    np.cumsum([len(value) for value in values], out=offsets[1:])
    flat = np.concatenate(values) if values else np.zeros(0, dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat.astype(np.int32)))
