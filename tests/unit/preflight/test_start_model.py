"""A starting model that is not what it says is refused by its headers, in any family, without its weights being read."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from post_training.core.errors import UserError
from post_training.core.locate import model_folder
from post_training.models.download import check_loadable
from post_training.preflight import start_model

FAMILIES = {
    "llama": {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "tie_word_embeddings": True},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4},
    "mixtral": {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4},
    "qwen3": {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16},
}  # fmt: skip


@pytest.fixture(scope="module", params=FAMILIES)
def saved(request, tmp_path_factory):
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = FAMILIES[request.param] | ({} if request.param == "gpt2" else {"num_hidden_layers": 2})
    config = AutoConfig.for_model(request.param, vocab_size=100, **sizes)
    folder = tmp_path_factory.mktemp(request.param) / "model"
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def test_tensors_by_name_and_shape(saved, tmp_path):
    assert start_model._weights(saved, False).verdict == "ok"
    folder = shutil.copytree(saved, tmp_path / "model")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if ".1." in name and "attn" in name and tensors[name].dim() == 2)
    embedding = next(name for name, tensor in tensors.items() if tensor.shape == (100, 64))
    faults = {
        "missing (": {key: value for key, value in tensors.items() if key != name},
        "all begin with '_orig_mod.'": {f"_orig_mod.{key}": value for key, value in tensors.items()},
        "is [90, 64], expected [100, 64]": tensors | {embedding: torch.zeros(90, 64)},
    }
    for said, changed in faults.items():
        save_file(changed, file, {"format": "pt"})
        found = start_model._weights(folder, False)
        assert found.verdict == "failure" and said in found.value and "\n" not in found.line(), found
    save_file(tensors | {"left.over": torch.zeros(2)}, file, {"format": "pt"})
    assert start_model._weights(folder, False).verdict == "warning"
    file.write_bytes(file.read_bytes()[:90])
    assert start_model._weights(folder, False).verdict == "failure"


def test_a_shard_that_is_missing_is_named(saved, tmp_path):
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "model"
    AutoModelForCausalLM.from_pretrained(saved).save_pretrained(folder, max_shard_size="40KB")
    assert start_model._weights(folder, False).verdict == "ok"
    (gone, *_) = sorted(folder.glob("*.safetensors"))
    gone.unlink()
    assert gone.name in start_model._weights(folder, False).value


def test_kinds_of_models_that_cannot_be_trained(tmp_path):
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "tokenizer.json").touch()
    for config, said in (
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised (gptq)"),
        ({"is_encoder_decoder": True, "model_type": "t5"}, "t5 is an encoder with a decoder"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError) as caught:
            check_loadable(tmp_path)
        assert said in str(caught.value) and "\n" not in str(caught.value)
    (tmp_path / "config.json").write_text("{}")
    check_loadable(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="holds LoRA adapters beside a model"):
        check_loadable(tmp_path)
    (tmp_path / "config.json").unlink()
    assert model_folder(str(tmp_path), "model.name_or_path") == tmp_path  # merged by a stage


@pytest.mark.parametrize(
    "given",
    [
        {"temperature": 0.6, "top_p": 0.9},
        {"early_stopping": True, "length_penalty": 0.5},
        {"temperature": 0.6, "early_stopping": True},
        {},
    ],
)
def test_a_generation_configuration_that_would_not_be_saved_is_mended(tmp_path, given):
    from types import SimpleNamespace

    from transformers import GenerationConfig

    from post_training.models.loading import fix_generation_config

    config = GenerationConfig(max_new_tokens=7, **given)
    fixed = fix_generation_config(SimpleNamespace(generation_config=config))
    assert bool(fixed) == bool(given) and "\n" not in fixed
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text())["max_new_tokens"] == 7
    assert given.get("temperature") == config.temperature
