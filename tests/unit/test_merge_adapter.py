"""Adapters of somebody's own become a model: PEFT's own merge as oracle, for the kinds that people bring, and a line for what cannot be."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import LLAMA, build_task, task

from post_training.core import manifest
from post_training.core.adapters import adapter_files, base_of
from post_training.core.errors import ConfigError, UserError
from post_training.core.fingerprint import file_sha256
from post_training.models import build, folder
from post_training.models.download import check_loadable
from post_training.release import merge_adapter

KEY = "model.name_or_path"
KINDS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "modules": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "tied": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "rows": {"trainable_token_indices": [1, 2]},
    "resized": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "pickled": {},
    "bfloat16": {},
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory, corpus, model_manifest):
    """Tied or not -> manifest of a model."""
    output = tmp_path_factory.mktemp("tied") / "scratch" / "manifest.json"
    build.run(build_task(output, corpus, config=LLAMA | {"tie_word_embeddings": True}))
    return {False: model_manifest, True: output}


def made(place, base, kind="lora", **more):
    """Adapters whose values are not those of a start, and PEFT's own merge of them."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    tokenizer = AutoTokenizer.from_pretrained(base)
    if kind == "resized":
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|new|>"]})
        model.resize_token_embeddings(len(tokenizer))
        tokenizer.save_pretrained(place)
    model.name_or_path = str(base)
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", **KINDS.get(kind, {}), **more
    )
    adapted = get_peft_model(model, config)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    adapted.save_pretrained(place, safe_serialization=kind != "pickled")
    assert (place / "adapter_model.bin").is_file() == (kind == "pickled")
    (place / "optimizer.pt").write_bytes(b"of a checkpoint")
    return adapted.merge_and_unload(safe_merge=True).state_dict()


def merge_task(tmp_path, adapters, base):
    files = [[path.name, file_sha256(path)] for path in adapter_files(adapters, KEY)]
    runtime = {"folder": str(adapters), "trust_remote_code": False, "max_shard_size": "200KB"}
    return task(
        "merge_adapter", {"sha256": files}, runtime, {"base": base}, tmp_path / "models" / "m" / "manifest.json"
    )


def as_bfloat16(tmp_path, base):
    """The same model with its weights in that format."""
    from transformers import AutoModelForCausalLM

    place = tmp_path / "narrow"
    shutil.copytree(base.parent, place)
    AutoModelForCausalLM.from_pretrained(folder(base), dtype=torch.bfloat16).save_pretrained(place / "model")
    return place / "manifest.json"


@pytest.mark.parametrize("kind", KINDS)
def test_the_merged_model_is_pefts(tmp_path, bases, kind):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = bases[kind in ("tied", "rows")]
    base = as_bfloat16(tmp_path, base) if kind == "bfloat16" else base
    expected = made(tmp_path / "a", folder(base), kind)
    asked = merge_task(tmp_path, tmp_path / "a", base)
    merge_adapter.run(asked)
    place, facts = folder(asked.output), manifest.read(asked.output)
    check_loadable(place)
    found = {name: tensor for path in place.glob("*.safetensors") for name, tensor in load_file(path).items()}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items()) and len(found) >= 20
    assert {t.dtype for t in found.values()} == {torch.bfloat16 if kind == "bfloat16" else torch.float32}
    assert facts["checks"]["merge_logit_difference"] <= (5e-2 if kind == "bfloat16" else 1e-5)
    assert facts["checks"]["adapter_logit_difference"] > 1e-3
    assert {entry["path"] for entry in facts["files"]} >= {"model/config.json", "model/tokenizer.json"}
    tokenizer, model = AutoTokenizer.from_pretrained(place), AutoModelForCausalLM.from_pretrained(place)
    assert ("<|new|>" in tokenizer.get_vocab()) == (kind == "resized")
    assert model.config.vocab_size == 272 + (kind == "resized") == model.lm_head.weight.shape[0]
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == (kind in ("tied", "rows"))


def test_adapters_of_another_model_are_one_line(tmp_path, bases, corpus):
    made(tmp_path / "a", folder(bases[False]))
    file = tmp_path / "a" / "adapter_model.safetensors"
    tensors, config = load_file(file), (tmp_path / "a" / "adapter_config.json").read_text()
    first = next(name for name in tensors if "lora_A" in name)
    other = tmp_path / "wide" / "scratch" / "manifest.json"
    build.run(build_task(other, corpus, config=LLAMA | {"hidden_size": 32, "num_hidden_layers": 1}))

    def refused(base=bases[False]):
        with pytest.raises(UserError) as caught:
            merge_adapter.run(merge_task(tmp_path, tmp_path / "a", base))
        assert "\n" not in str(caught.value) and not (tmp_path / "models" / "m" / "manifest.json").exists()
        return str(caught.value)

    assert "cannot be put into the model" in refused(other)
    save_file({name: tensor for name, tensor in tensors.items() if name != first}, file)
    assert f"1 tensors are missing ({first})" in refused()
    save_file(tensors | {"base_model.model.more.lora_A.weight": torch.zeros(2)}, file)
    assert "1 tensors have no place (base_model.model.more.lora_A.weight)" in refused()
    file.write_bytes(file.read_bytes()[:90])
    assert "cannot be read" in refused()
    save_file(tensors, file)
    asked = merge_task(tmp_path, tmp_path / "a", bases[False])
    (tmp_path / "a" / "adapter_config.json").write_text(config + " ")
    with pytest.raises(UserError, match="changed since the run was planned"):
        merge_adapter.run(asked)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "PROMPT_TUNING"}, "adapters of the kind PROMPT_TUNING cannot be merged into weights; name a model, or LoRA"),
        ({"peft_type": "PREFIX_TUNING"}, "adapters of the kind PREFIX_TUNING cannot be merged"),
        ({"peft_type": None}, "adapters of the kind None cannot be merged"),
        ({"task_type": "SEQ_CLS"}, "adapters for SEQ_CLS, expected CAUSAL_LM"),
        ({"base_model_name_or_path": None}, "does not say of which model the adapters are; write the model's folder or Hub id"),
        ({"base_model_name_or_path": "/gone/model"}, "its model /gone/model is not here; write the model's folder or Hub id"),
        ({"base_model_name_or_path": "SELF"}, "is its own model, by way of"),
    ],
)  # fmt: skip
def test_what_cannot_be_merged_is_refused_while_planning(tmp_path, changes, message):
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "org/name"} | changes
    config = {key: str(tmp_path) if value == "SELF" else value for key, value in config.items()}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError) as caught:
        base_of(tmp_path, KEY)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_files_that_decide(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"has adapter_config\.json and no adapter_model\.safetensors"):
        adapter_files(tmp_path, KEY)
    with pytest.raises(ConfigError, match="cannot be read"):
        base_of(tmp_path, KEY)
    for name in (
        "adapter_model.safetensors",
        "adapter_model.bin",
        "optimizer.pt",
        "trainer_state.json",
        "tokenizer.json",
    ):
        (tmp_path / name).touch()
    assert [path.name for path in adapter_files(tmp_path, KEY)] == ["adapter_config.json", "adapter_model.safetensors", "tokenizer.json"]  # fmt: skip
    with pytest.raises(UserError, match="holds adapters and no model; copy them into a folder of yours"):
        check_loadable(tmp_path)
