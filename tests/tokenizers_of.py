"""Small tokenizers of every kind, each with control tokens of its own and a model folder; rows for them."""

import json

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

TEXT = ["user assistant\n aeT3. aa TT ee bb é ß don't the tea at <|im_ end|> s> [/INST] think tool_call"] * 30
SPECIAL = ("<|im_start|>", "<|im_end|>", "<s>", "</s>", "[SEP]", "<|endoftext|>")
ADDED = ("<think>", "</think>", "<tool_call>", "</tool_call>")


def wordpiece():
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    # Blanks alone: a control token that is in the vocabulary would be found as a word.
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer, trainers.WordPieceTrainer


def unigram():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer, trainers.UnigramTrainer


def metaspace_words():
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer, trainers.WordLevelTrainer


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, trainers.BpeTrainer


def byte_level_nfc():
    tokenizer, trainer = byte_level()
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer, trainer


def byte_fallback():
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return tokenizer, trainers.BpeTrainer


KINDS = {
    kind.__name__: kind for kind in (wordpiece, unigram, metaspace_words, byte_level, byte_level_nfc, byte_fallback)
}


def save(kind, folder):
    """Train one and save it as a model folder."""
    tokenizer, trainer = KINDS[kind]()
    options = {"special_tokens": ["[UNK]", "<unk>", *SPECIAL], "vocab_size": 600, "show_progress": False}
    if kind == "byte_fallback":
        options["special_tokens"] += [f"<0x{byte:02X}>" for byte in range(256)]
    if kind.startswith("byte_level"):
        options["initial_alphabet"] = sorted(pre_tokenizers.ByteLevel.alphabet())
    if kind == "unigram":
        options["unk_token"] = "<unk>"
    tokenizer.train_from_iterator(TEXT, trainer(**options))
    # Matched after normalising in one of them; not under `Prepend`, where the library then finds none inside of text.
    normalized = {"<think>"} if kind == "unigram" else set()
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=token in normalized) for token in ADDED])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "bos_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text("{}")
    return folder


def many(number):
    """Rows of short conversations."""

    def content(n, role):
        return f"{role} {n} " + "日👍\n"[n % 3] * (n % 5) + "x"

    turns = ("user", "assistant")
    return [{"messages": [{"role": role, "content": content(n, role)} for role in turns]} for n in range(number)]
