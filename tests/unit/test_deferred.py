"""A deferred tokenizer answers as the real one would, and is it after the first question beyond."""

import json
import shutil

import pytest
from transformers import AutoTokenizer

from post_training.training.deferred_tokenizer import DeferredTokenizer, control_tokens, defer


@pytest.fixture
def folder(tmp_path, model_manifest):
    shutil.copytree(model_manifest.parent / "model", tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def deferred(folder):
    return defer(folder, lambda: AutoTokenizer.from_pretrained(folder))


def test_what_is_asked_before_the_first_step_reads_no_tokenizer(folder, deferred, tokenizer):
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

    for name in ("pad_token", "pad_token_id", "eos_token", "eos_token_id", "bos_token", "bos_token_id"):
        assert getattr(deferred, name) == getattr(tokenizer, name), name
        setattr(deferred, name, getattr(tokenizer, name))
    assert deferred.pad_token in deferred.get_vocab()
    assert isinstance(deferred, PreTrainedTokenizerBase) and not isinstance(deferred, ProcessorMixin)
    assert type(deferred) is DeferredTokenizer


@pytest.mark.parametrize(
    "ask",
    [
        lambda t: t("1 and 1?")["input_ids"],
        lambda t: len(t),
        lambda t: t.get_vocab()["a"],
        lambda t: "no such token" in t.get_vocab(),
        lambda t: len(t.get_vocab()),
        lambda t: t.decode([5, 6, 7]),
        lambda t: t.model_input_names,
        lambda t: repr(t),
        lambda t: t.all_special_tokens,
        lambda t: [setattr(t, "pad_token", "<|im_end|>"), t.pad_token_id],
    ],
)
def test_any_other_question_is_answered_by_the_real_one(deferred, folder, ask):
    real = AutoTokenizer.from_pretrained(folder)
    assert ask(deferred) == ask(real)
    assert type(deferred) is type(real)


def test_it_is_saved_as_the_real_one(deferred, folder, tmp_path):
    deferred.save_pretrained(tmp_path / "deferred")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "real")
    for path in (tmp_path / "real").iterdir():
        assert (tmp_path / "deferred" / path.name).read_bytes() == path.read_bytes()


def changed(folder, **values):
    path = folder / "tokenizer_config.json"
    config = {k: v for k, v in (json.loads(path.read_text()) | values).items() if v != "absent"}
    path.write_text(json.dumps(config))
    return control_tokens(folder)


def test_files_that_leave_it_open_are_read_at_once(folder):
    assert control_tokens(folder) is not None
    assert changed(folder, pad_token={"content": "<|endoftext|>", "special": True}) is not None
    assert changed(folder, tokenizer_class="LlamaTokenizer") is None  # has a begin token of its own
    assert changed(folder, tokenizer_class="LlamaTokenizer", bos_token="<|im_start|>")["bos_token"] == (
        "<|im_start|>",
        1,
    )
    assert changed(folder, pad_token="absent") is None
    assert changed(folder, pad_token="a") is None  # not among the added tokens
    assert changed(folder, pad_token="<|endoftext|>", auto_map={"AutoTokenizer": "x.y"}) is None
    assert changed(folder, auto_map="absent") is not None
    (folder / "special_tokens_map.json").write_text("{}")
    assert control_tokens(folder) is None
    (folder / "special_tokens_map.json").unlink()
    (folder / "tokenizer.json").unlink()
    assert control_tokens(folder) is None
