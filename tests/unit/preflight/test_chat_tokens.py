"""Chat tokens that a model has never read, by the rows of its embeddings, where adapters would leave them so."""

import shutil

import pytest
import torch
from tiny import TEMPLATE, pipeline_of

from post_training.models import folder
from post_training.preflight.chat_tokens import alike_rows, chat_tokens
from post_training.preflight.shape import ModelShape
from post_training.preflight.subject import Subject

CHAT = ["<|im_start|>", "<|im_end|>"]
FAMILIES = {
    "llama": {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4},
    "gpt_neox": {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2},
}


@pytest.fixture
def checked(tmp_path, model_manifest):
    """(family, how the rows of the chat tokens came about, files, keys of model.lora) -> the check."""
    from transformers import AutoConfig, AutoModelForCausalLM

    def check(family="llama", rows="resized", shards="5GB", pickled=False, **lora):
        config = AutoConfig.for_model(family, vocab_size=270, **FAMILIES[family])
        model, place = AutoModelForCausalLM.from_config(config), tmp_path / "m"
        model.resize_token_embeddings(272)  # Transformers draws new rows around the mean of all
        matrices = {
            id(one.weight): one.weight.data for one in (model.get_input_embeddings(), model.get_output_embeddings())
        }
        for matrix in matrices.values():
            drawn = matrix[270:272].clone()
            matrix[[270, 271]] = matrix[[1, 2]]  # the chat tokens' ids are 1 and 2
            matrix[[1, 2]] = {"resized": drawn, "equal": matrix[[5, 5]], "zero": 0 * drawn, "own": matrix[[1, 2]]}[rows]
        shutil.rmtree(place, ignore_errors=True)
        model.save_pretrained(place, max_shard_size=shards)
        if pickled:
            torch.save(model.state_dict(), place / "pytorch_model.bin")
            (place / "model.safetensors").unlink()
        for file in folder(model_manifest).glob("*token*"):
            shutil.copyfile(file, place / file.name)
        text = tmp_path / "chat.jinja"
        text.write_text(TEMPLATE)
        view = pipeline_of(text, **({} if lora.pop("off", False) else {"model__lora": lora})).views["sft"]
        return chat_tokens(Subject("sft", view, tmp_path, place, ModelShape.of(place), None, None, tmp_path))

    return check


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rows", ["resized", "equal", "zero"])
def test_tokens_that_were_never_trained_are_named_with_the_key(checked, family, rows):
    found = checked(family, rows)
    assert found.verdict == "warning" and "<|im_start|>, <|im_end|> are like" in found.value
    assert 'set model.lora.trainable_tokens=["<|im_start|>", "<|im_end|>"]' in found.remedy
    assert "\n" not in found.line()


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_their_own_are_silent(checked, family):
    found = checked(family, "own")
    assert (found.verdict, found.value) == ("ok", "2 control tokens of the template have rows of their own")


def test_however_the_weights_are_stored(checked):
    assert checked(shards="40KB").verdict == checked(pickled=True).verdict == "warning"


def test_what_trains_them_silences_it(checked):
    assert checked(off=True).verdict == checked(trainable_tokens=CHAT).verdict == "ok"
    assert checked(modules_to_save=["embed_tokens", "lm_head"]).verdict == "ok"
    one = checked(trainable_tokens=["<|im_start|>"])  # alone, it is like the mean of all
    assert one.verdict == "warning" and one.value.startswith("the rows of <|im_end|> are like")
    assert 'set model.lora.trainable_tokens=["<|im_start|>", "<|im_end|>"]' in one.remedy
    assert checked(modules_to_save=["embed_tokens"]).verdict == "warning"  # the output's rows are as they were


def test_distances():
    import numpy as np

    draw = np.random.default_rng(0)
    others, row = draw.normal(3, 1, (256, 64)), draw.normal(3, 1, 64)
    assert alike_rows(np.stack([row, row + 1e-3, draw.normal(3, 1, 64)]), others) == [True, True, False]
    assert alike_rows(np.stack([row, others.mean(axis=0) + 1e-3, np.zeros(64)]), others) == [False, True, True]
