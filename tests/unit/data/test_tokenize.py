"""Ids, labels and files of the tokenize stage."""

import itertools
import json
import os

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import as_read
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers
from tokenizers_of import many

from post_training.core.errors import DataError
from post_training.data import registry
from post_training.data.loss_mask import IGNORED
from post_training.data.tokens import shards
from post_training.data.tokens.blocks import Settings, Tokenization, record_batch
from post_training.data.tokens.chat_template import CLOSE, OPEN
from post_training.data.tokens.encode import Encoder
from post_training.data.tokens.tokenizer_file import TokenizerFile

CHATML = registry.chat_template_text("chatml")
END = "<|im_end|>"
# Letters, digits, blanks and line ends in quantity (they merge across boundaries), and what takes several bytes or tokens.
ALPHABET = "aeT3. \n\n\n\t\r'é日👍\u200d🏽\u0301\u2028\u0000ß<|}{"
texts = st.text(ALPHABET, min_size=1, max_size=30).filter(str.strip)


@st.composite
def conversations(draw):
    turns = [{"role": "system", "content": draw(texts)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        turns += [{"role": "user", "content": draw(texts)}, {"role": "assistant", "content": draw(texts)}]
    return turns


def runs_of(ids, labels):
    """The ids of each uninterrupted run of trained tokens."""
    pairs = zip(ids, labels, strict=True)
    return [[i for i, _ in run] for trained, run in itertools.groupby(pairs, lambda p: p[1] != IGNORED) if trained]


def rows_of(tokenization, *rows):
    """(the tokenised rows, dropped by reason) of a block."""
    block = tokenization.block([orjson.dumps({"row": 7 + index, **row}) for index, row in enumerate(rows)])
    assert block.rows_in == len(rows) == len(block.rows) + sum(block.dropped.values())
    return as_read(record_batch([block], tokenization.shape, {}).to_pylist()), block.dropped


def encoded(encoder, text, spans):
    """Ids and mask of a text of which spans are trained on."""
    for start, end in sorted(spans, reverse=True):
        text = f"{text[:start]}{OPEN}{text[start:end]}{CLOSE}{text[end:]}"
    return encoder.encode([text])[0]


def encoder_of(folder):
    return Encoder(TokenizerFile.read(folder))


@pytest.fixture(scope="module")
def tokenization(bpe_folder):
    return Tokenization(bpe_folder, Settings(CHATML, "messages"))


@settings(max_examples=150, deadline=None)
@given(conversations())
def test_documents_decode_to_the_rendering_and_labels_are_the_answers(tokenization, bpe, messages):
    (row,), dropped = rows_of(tokenization, {"messages": messages})
    assert not dropped
    ids, labels = row["input_ids"], row["labels"]
    assert (row["row"], row["part"]) == (7, 0) and len(ids) == len(labels)
    text, _ = tokenization.template.render(messages)
    assert bpe.decode(ids, skip_special_tokens=False) == text
    assert all(label in (token, IGNORED) for token, label in zip(ids, labels, strict=True))
    answers = [turn["content"] for turn in messages if turn["role"] == "assistant"]
    decoded = [bpe.decode(run, skip_special_tokens=False) for run in runs_of(ids, labels)]
    for found, answer in zip(decoded, answers, strict=True):
        # The header's line end belongs to the first token where the two merged, as in Transformers' masks.
        merged = answer[0].isspace() and found == f"\n{answer}{END}"
        assert found == f"{answer}{END}" or merged


@settings(max_examples=60, deadline=None)
@given(conversations(), texts, texts)
def test_a_pair_decodes_to_its_two_conversations(bpe_folder, bpe, messages, chosen, rejected):
    prompt = messages[:-1]
    answers = {
        name: [{"role": "assistant", "content": text}] for name, text in (("chosen", chosen), ("rejected", rejected))
    }
    tokenization = Tokenization(bpe_folder, Settings(CHATML, "preference"))
    found, dropped = rows_of(tokenization, {"prompt": prompt, **answers})
    if chosen == rejected:
        assert dropped == {"identical_pair": 1} and not found
        return
    (row,) = found
    for name, answer in answers.items():
        text, _ = tokenization.template.render([*prompt, *answer])
        assert bpe.decode(row["prompt_ids"] + row[f"{name}_ids"], skip_special_tokens=False) == text


def wordpiece():
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer, trainers.WordPieceTrainer


def unigram():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer, trainers.UnigramTrainer


def byte_level_nfc():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer, trainers.BpeTrainer


def byte_level_replacing():
    """A normaliser that moves text but keeps its length in bytes: the sum of byte lengths looks right and is not."""
    tokenizer, trainer = byte_level_nfc()
    parts = [normalizers.Replace("aa", "b"), normalizers.Replace("T", "ee")]
    tokenizer.normalizer = normalizers.Sequence(parts)
    return tokenizer, trainer


def byte_fallback():
    """Like Llama 2: characters outside of the vocabulary become one token a byte, all with one offset."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    return tokenizer, trainers.BpeTrainer


KINDS = [wordpiece, unigram, byte_level_nfc, byte_level_replacing, byte_fallback]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.__name__)
def other_folder(request, tmp_path_factory):
    tokenizer, trainer = request.param()
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)] if request.param is byte_fallback else []
    options = {"special_tokens": ["[UNK]", "<unk>", *bytes_], "vocab_size": 500, "show_progress": False}
    if request.param in (byte_level_nfc, byte_level_replacing):
        options["initial_alphabet"] = sorted(pre_tokenizers.ByteLevel.alphabet())
    if request.param is unigram:
        options["unk_token"] = "<unk>"
    tokenizer.train_from_iterator(["user assistant\n aeT3. aa TT ee bb é ß don't the tea at"] * 30, trainer(**options))
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ("<|im_start|>", END)])
    folder = tmp_path_factory.mktemp(request.param.__name__)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


ANSWERS = ["aTe", "xaa", "T aa", "é3", "don't", "日x", "x日", "👍", "e\u0301a", "xaa\nTT aa.", "x" + "a" * 8]


def test_masks_of_other_tokenizers_are_those_of_transformers(other_folder):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(other_folder)
    tokenization = Tokenization(other_folder, Settings(CHATML, "messages"))
    template, encoder = tokenization.template, tokenization.encoder
    for first, second in itertools.permutations(ANSWERS, 2):
        roles = ("user", "assistant") * 2
        # A normaliser that shortens one turn and lengthens the next leaves the sum of the lengths as it was.
        contents = (first, second, second, first)
        messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
        expected = theirs.apply_chat_template(
            messages, chat_template=CHATML, return_dict=True, return_assistant_tokens_mask=True
        )
        text, spans = template.render(messages)
        ids, mask = encoded(encoder, text, spans)
        assert ids.tolist() == expected["input_ids"], text
        assert mask.astype(int).tolist() == expected["assistant_masks"], text


def test_an_answer_that_begins_with_a_removed_character_is_trained_on(tmp_path):
    """The normaliser makes `aa` one letter, so the first `a` is in no token. Transformers gives up the row's masks there."""
    tokenizer, trainer = byte_level_replacing()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(["q"], trainer(initial_alphabet=alphabet, vocab_size=256, show_progress=False))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    text = "q aaT\nq aaT"  # the same number of bytes before and after: q bee
    ids, mask = encoded(encoder_of(tmp_path), text, [(2, 5), (8, 11)])
    assert [tokenizer.id_to_token(token) for token in ids] == list("qĠbeeĊqĠbee")
    # Of a last character that is two tokens the first counts, as in Transformers; real answers end with a stop token.
    assert mask.astype(int).tolist() == [0, 0, 1, 1, 0, 0, 0, 0, 1, 1, 0]


def test_blanks_that_are_in_no_token_train_nothing_outside_of_the_span(tmp_path):
    tokenizer, trainer = wordpiece()
    tokenizer.train_from_iterator(["a b c"] * 5, trainer(special_tokens=["[UNK]"], show_progress=False))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    encoder = encoder_of(tmp_path)
    text = "a  b  c"
    for span, expected in {
        (1, 5): [0, 1, 0],
        (1, 3): [0, 0, 0],
        (2, 7): [0, 1, 1],
        (0, 2): [1, 0, 0],
        (5, 7): [0, 0, 1],
    }.items():
        _, mask = encoded(encoder, text, [span])
        assert mask.astype(int).tolist() == expected, span


def test_any_number_of_workers_writes_the_same_bytes(stages, tmp_path, read, tokens, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    monkeypatch.setattr(shards, "LEAST_BYTES", 20_000)
    monkeypatch.setattr(shards, "_BLOCK_ROWS", 37)
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in many(550)))
    transformed = stages.transform(source)
    found = {}
    for num_proc in (1, 2, 3, None, 50):
        manifest = stages.tokenize(transformed, num_proc=num_proc, name=f"n{num_proc}")
        found[num_proc] = read(manifest)
        assert not list(manifest.parent.glob(".*"))
    assert all(f["files"] == found[1]["files"] for f in found.values())
    assert [entry["path"] for entry in found[1]["files"]] == [f"tokens-{n:05d}.arrow" for n in range(4)]
    assert [row["row"] for row in tokens(manifest)] == list(range(1, 551))


def test_dropped_rows_are_counted(stages, tmp_path, read, tokens):
    template = (
        "{% for m in messages %}{% if m.content == 'bad' %}{{ raise_exception('bad') }}{% endif %}{{ m.role }}:"
        "{% if m.role == 'assistant' and m.content != 'quiet' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}\n{% endfor %}"
    )
    answers = ["good", "quiet", "bad", "good", "\ufdd0"]
    rows = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": a}]} for a in answers]
    manifest = stages.tokens_of(rows, template=template)
    found = read(manifest)
    assert found["dropped"] == {"no_trained_token": 1, "template_error": 1, "reserved_character": 1}
    assert found["rows_in"] == 5 == found["rows_out"] + sum(found["dropped"].values())
    assert [row["row"] for row in tokens(manifest)] == [1, 4]
    assert found["tokens"] == sum(len(row["input_ids"]) for row in tokens(manifest))
    assert set(found["lengths"]) == {"p50", "p90", "p99", "max"}


@pytest.mark.parametrize(
    "template, said",
    [
        (CHATML.replace("{{ '<|im_end|>' }}\n{%- endgeneration -%}", "{%- endgeneration -%}{{ '<|im_end|>' }}"), "stop"),
        (CHATML.replace("{{ '<|im_end|>' }}\n{%- endgeneration -%}\n{{ '\\n' }}", "{{ '<|im_end|>\\n' }}{%- endgeneration -%}"), "stop"),
        (CHATML.replace("im_end", "end_of_turn"), "no <.end_of_turn.>, which the template writes"),
        (CHATML.split("\n", 1)[1].replace("im_end", "end_of_turn"), "not a special token"),
        ("{% generation %}{% endgeneration %}{{ messages[0].content }}", "trains on nothing"),
        ("{% generation %}{{ messages[0].content + 1 }}{% endgeneration %}", "cannot render .*can only concatenate"),
        ("{% generation %}{{ raise_exception('a system turn, please') }}{% endgeneration %}", "a system turn, please"),
    ],
)  # fmt: skip
def test_templates_without_a_stop_token_in_the_loss_are_refused(stages, template, said):
    assert template != CHATML
    with pytest.raises(DataError, match=rf"data\.chat_template: .*{said}") as caught:
        stages.tokens_of(many(2), template=template)
    assert "\n" not in str(caught.value)
    assert not (stages.base / "data" / "tokenize" / "d" / "manifest.json").exists()


def test_a_model_without_tokenizer_json(stages, tmp_path):
    folder = tmp_path / "no_tokenizer"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    stages.model.write_text(json.dumps({"folder": str(folder)}))
    with pytest.raises(DataError, match=r"no_tokenizer/tokenizer\.json: .*save_pretrained"):
        stages.tokens_of(many(2))


def test_truncation_and_padding_saved_with_a_tokenizer_are_ignored(bpe, bpe_folder, tmp_path):
    altered = Tokenizer.from_str(bpe.to_str())
    altered.enable_truncation(4)
    altered.enable_padding(length=50)
    altered.save(str(tmp_path / "tokenizer.json"))
    text = "There are 12 of them. " * 3
    ids, _ = encoded(encoder_of(tmp_path), text, [])
    plain, _ = encoded(encoder_of(bpe_folder), text, [])
    assert ids.tolist() == plain.tolist() and len(ids) > 4


def test_rows_that_changed_under_their_manifest(stages, tmp_path):
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in many(3)))
    transformed = stages.transform(source)
    rows = transformed.parent / "rows.jsonl"
    rows.write_bytes(b"".join(rows.read_bytes().splitlines(keepends=True)[:2]))
    with pytest.raises(DataError, match=r"holds 2 rows, its manifest says 3"):
        stages.tokenize(transformed)
