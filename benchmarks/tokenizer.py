"""A model folder with a tokenizer of real size, for benchmarks: the 131k-entry multilingual "tekken" vocabulary.

`pip install mistral-common==1.13.1` brings it (only benchmarks use it); without that package a byte-level BPE
tokenizer of 32k entries is trained on the Python library's own text, and says so.

    python benchmarks/tokenizer.py FOLDER
"""

import base64
import importlib.util
import itertools
import json
import sys
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

NAMED = {0: "<unk>", 1: "<s>", 2: "</s>", 3: "<|im_start|>", 4: "<|im_end|>", 5: "<|endoftext|>"}


def build_tokenizer(folder: Path, entries: int | None = None) -> str:
    """Write tokenizer.json, tokenizer_config.json and config.json once; returns what the vocabulary is.

    With `entries` a small one is trained in a moment: to see that a benchmark works, not how fast anything is.
    """
    folder = Path(folder)
    name = folder / "name.txt"
    if name.is_file():
        return name.read_text()
    folder.mkdir(parents=True, exist_ok=True)
    bundled = None if entries else importlib.util.find_spec("mistral_common")
    if entries:
        tokenizer, what = trained(entries, texts=50), f"trained here, {entries:,} entries"
    elif bundled is not None and bundled.origin is not None:
        tokenizer, what = tekken(Path(bundled.origin).parent / "data" / "tekken_240911.json"), "tekken, 131,072 entries"
    else:
        tokenizer, what = trained(32_000), "trained here, 32,000 entries (mistral-common is not installed)"
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text("{}")
    name.write_text(what)
    return what


def tekken(path: Path) -> Tokenizer:
    """The published ranks as a BPE model, control tokens first as in the original."""
    published = json.loads(path.read_text())
    config = published["config"]
    reserved = config["default_num_special_tokens"]
    ranks = [base64.b64decode(entry["token_bytes"]) for entry in published["vocab"]]
    ranks = ranks[: config["default_vocab_size"] - reserved]
    rank_of = {token: rank for rank, token in enumerate(ranks)}
    specials = [NAMED.get(index, f"<SPECIAL_{index}>") for index in range(reserved)]
    spelled = [as_characters(token) for token in ranks]
    vocab = {token: index for index, token in enumerate([*specials, *spelled])}
    merges = []
    for token in ranks:
        if len(token) > 1:
            left, right = halves(token, rank_of)
            merges.append((as_characters(left), as_characters(right)))
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    split = pre_tokenizers.Split(Regex(config["pattern"]), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return tokenizer


def halves(token: bytes, rank_of: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens whose merge makes this one, found by merging its bytes in the order of rank."""
    parts, limit = [bytes([byte]) for byte in token], rank_of[token]
    while len(parts) > 2:
        pairs = [(rank_of.get(parts[i] + parts[i + 1], limit), i) for i in range(len(parts) - 1)]
        _, index = min(pairs)
        parts[index : index + 2] = [parts[index] + parts[index + 1]]
    return parts[0], parts[1]


def _alphabet() -> list[str]:
    """GPT-2's character of each byte."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    characters = {byte: chr(byte) for byte in shown} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}
    return [characters[byte] for byte in range(256)]


_CHARACTERS = _alphabet()


def as_characters(token: bytes) -> str:
    """Bytes in the byte-level alphabet."""
    return "".join(_CHARACTERS[byte] for byte in token)


def trained(entries: int, texts: int | None = None) -> Tokenizer:
    """Byte-level BPE of the Python library's own text, or of so many files of it."""
    from corpus import library_text

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = list(NAMED.values())
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=entries, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(itertools.islice(library_text(), texts), trainer)
    return tokenizer


if __name__ == "__main__":
    print(build_tokenizer(Path(sys.argv[1])))
