"""Rows -> token ids: one block of them at a time, as a worker does it."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from post_training.data.chat_template import ChatTemplate, special_tokens
from post_training.data.encode import Encoder
from post_training.errors import DataError

IGNORED = -100
"""The label of a token that is not trained on, as torch's cross entropy has it."""
_IDS = pa.list_(pa.int32())
SCHEMAS = {
    "messages": pa.schema([("input_ids", _IDS), ("labels", _IDS), ("row", pa.int64())]),
    "preference": pa.schema([("prompt_ids", _IDS), ("chosen_ids", _IDS), ("rejected_ids", _IDS), ("row", pa.int64())]),
}
Block = tuple[pa.RecordBatch, Counter[str], int, int]
"""Rows, dropped by reason, tokens, trained tokens."""


class Tokenization:
    """Tokenises blocks of rows of one shape."""

    def __init__(self, folder: Path, template: str, shape: str) -> None:
        self.template = ChatTemplate(template, special_tokens(folder))
        self.encoder = Encoder(folder)
        self.shape = shape

    def block(self, lines: tuple[bytes, ...]) -> Block:
        """One block of `rows.jsonl`."""
        rows = [orjson.loads(line) for line in lines]
        dropped: Counter[str] = Counter()
        made = (self._messages if self.shape == "messages" else self._preference)(rows, dropped)
        columns = {name: [row[name] for row in made] for name in SCHEMAS[self.shape].names}
        arrays = [
            _list_array(columns[f.name]) if f.type == _IDS else pa.array(columns[f.name], f.type)
            for f in SCHEMAS[self.shape]
        ]
        tokens = sum(
            len(values) for name, values in ((n, v) for n in columns if n not in ("row", "labels") for v in columns[n])
        )
        if self.shape == "messages":
            trained = sum(int((labels != IGNORED).sum()) for labels in columns["labels"])
        else:
            trained = sum(len(ids) for name in ("chosen_ids", "rejected_ids") for ids in columns[name])
        return pa.record_batch(arrays, schema=SCHEMAS[self.shape]), dropped, tokens, trained

    def _messages(self, rows: list[dict[str, Any]], dropped: Counter[str]) -> list[dict[str, Any]]:
        texts, spans, kept = [], [], []
        for row in rows:
            try:
                text, trained = self.template.render(row["messages"], row.get("tools"))
            except ValueError as error:
                dropped[str(error).partition(":")[0]] += 1
                continue
            texts.append(text)
            spans.append(trained)
            kept.append(row["row"])
        made = []
        for number, (ids, mask) in zip(kept, self.encoder.encode(texts, spans), strict=True):
            if mask.any():
                made.append({"input_ids": ids, "labels": np.where(mask, ids, np.int32(IGNORED)), "row": number})
            else:
                dropped["no_trained_token"] += 1
        return made

    def _preference(self, rows: list[dict[str, Any]], dropped: Counter[str]) -> list[dict[str, Any]]:
        texts, kept = [], []
        for row in rows:
            prompt, tools = row["prompt"], row.get("tools")
            try:
                asked, _ = self.template.render(prompt, tools, add_generation_prompt=True)
                chosen, _ = self.template.render([*prompt, *row["chosen"]], tools)
                rejected, _ = self.template.render([*prompt, *row["rejected"]], tools)
            except ValueError as error:
                dropped[str(error).partition(":")[0]] += 1
                continue
            texts += [asked, chosen, rejected]
            kept.append(row["row"])
        encoded = [ids for ids, _ in self.encoder.encode(texts, [[]] * len(texts))]
        made = []
        triples = zip(kept, encoded[0::3], encoded[1::3], encoded[2::3], strict=True)
        for number, prompt_ids, chosen_ids, rejected_ids in triples:
            # An answer starts where the renderings diverge, which is before the prompt's end where tokens merge across it.
            shared = min(_common(prompt_ids, chosen_ids), _common(prompt_ids, rejected_ids))
            answers = {"chosen_ids": chosen_ids[shared:], "rejected_ids": rejected_ids[shared:]}
            if not len(answers["chosen_ids"]) or not len(answers["rejected_ids"]):
                dropped["no_trained_token"] += 1
            elif np.array_equal(answers["chosen_ids"], answers["rejected_ids"]):
                dropped["identical_pair"] += 1
            else:
                made.append({"prompt_ids": prompt_ids[:shared], **answers, "row": number})
        return made


def document_lengths(batch: pa.RecordBatch) -> np.ndarray:
    """Tokens of each row, int64: of a conversation, or of a pair's prompt with its longer answer."""

    def lengths(name: str) -> np.ndarray:
        return np.diff(batch.column(name).offsets.to_numpy()).astype(np.int64)

    if "input_ids" in batch.schema.names:
        return lengths("input_ids")
    return lengths("prompt_ids") + np.maximum(lengths("chosen_ids"), lengths("rejected_ids"))


def check_stop_token(folder: Path, template: str) -> int:
    """The token that ends an answer; refuse a template that does not train it, or a tokenizer that cuts it up.

    A model trained without it never stops.
    """
    tokenization = Tokenization(folder, template, "messages")
    conversation = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        text, spans = tokenization.template.render(conversation)
    except ValueError as error:
        raise DataError(f"data.chat_template: cannot render a question and its answer ({error}); mend it") from None
    ((ids, mask),) = tokenization.encoder.encode([text], [spans])
    if not mask.any():
        raise DataError("data.chat_template: trains on nothing of an answer; put {% generation %} around it")
    last = int(ids[mask][-1])
    config = orjson.loads((folder / "tokenizer.json").read_bytes())
    special = {token["id"]: token["content"] for token in config.get("added_tokens", []) if token.get("special")}
    if last not in special:
        raise DataError(
            "data.chat_template: the last trained token of an answer is not a special token of the tokenizer, so the model "
            f"would not learn to stop; end the generation block with one of {', '.join(list(special.values())[:8]) or 'its special tokens (it has none)'}"
        )
    return last


def _list_array(values: list[np.ndarray]) -> pa.ListArray:
    offsets = np.zeros(len(values) + 1, dtype=np.int32)
    np.cumsum([len(value) for value in values], out=offsets[1:])
    flat = np.concatenate(values) if values else np.zeros(0, dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat.astype(np.int32)))


def _common(first: np.ndarray, second: np.ndarray) -> int:
    """Length of the common prefix."""
    size = min(len(first), len(second))
    different = np.flatnonzero(first[:size] != second[:size])
    return int(different[0]) if len(different) else size
