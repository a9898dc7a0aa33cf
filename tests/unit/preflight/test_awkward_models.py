"""Folders of models as people have them: each is what it says it is, or refused in one line that says what to do."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from post_training.core.errors import UserError
from post_training.core.locate import model_folder
from post_training.models import folder as folder_of
from post_training.models.download import check_loadable, wanted_files
from post_training.models.weights import weight_bytes
from post_training.preflight import start_model
from post_training.preflight.shape import ModelShape

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"


def keys(**changes):
    """Change keys of a JSON file of the folder: `config__hidden_size=65`; None takes one out."""

    def change(folder):
        for name, value in changes.items():
            file, _, key = name.partition("__")
            path = folder / f"{file}.json"
            found = json.loads(path.read_text()) if path.is_file() else {}
            found = {**found, key: value} if value is not None else {k: v for k, v in found.items() if k != key}
            path.write_text(json.dumps(found))

    return change


def text(name, content):
    return lambda folder: (folder / name).write_text(content)


def renamed(old, new):
    return lambda folder: (folder / old).rename(folder / new)


def tensors(change):
    def apply(folder):
        found = load_file(folder / "model.safetensors")
        change(found)
        save_file(found, folder / "model.safetensors", {"format": "pt"})

    return apply


def pickled(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def pickled_long_ago(folder):
    torch.save(
        load_file(folder / "model.safetensors"), folder / "pytorch_model.bin", _use_new_zipfile_serialization=False
    )
    (folder / "model.safetensors").unlink()


def in_shards(folder):
    found = load_file(folder / "model.safetensors")
    names, parts = sorted(found), {}
    for number, group in enumerate((names[::2], names[1::2]), 1):
        file = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({name: found[name] for name in group}, folder / file)
        parts |= dict.fromkeys(group, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": parts}))
    (folder / "model.safetensors").unlink()


def own_code(content):
    def change(folder):
        keys(
            config__auto_map={"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"}, config__model_type="own"
        )(folder)
        (folder / "own.py").write_text(content)

    return change


OWN = """
from transformers import LlamaConfig, LlamaForCausalLM


class Own(LlamaConfig):
    model_type = "own"


class OwnModel(LlamaForCausalLM):
    config_class = Own
"""


def quantised(key, kind):
    return keys(**{f"config__{key}": {"quant_method": kind}})


def in_8_bits(found):
    for name in found:
        if "proj" in name:
            found[name] = found[name].to(torch.float8_e4m3fn)


def in_integers(found):
    for name in list(found):
        if "proj" in name:
            found[name.replace(".weight", ".qweight")] = found.pop(name).to(torch.int32)


def with_number(number, dtype):
    def change(found):
        norm = found["model.norm.weight"].to(dtype)
        norm[3] = float(number)
        found["model.norm.weight"] = norm

    return change


def added_token(content):
    def change(folder):
        found = json.loads((folder / "tokenizer.json").read_text())
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        found["added_tokens"].append({"id": 5000, "content": content, "special": True, **flags})
        (folder / "tokenizer.json").write_text(json.dumps(found))

    return change


def safetensors_in_shards(change_index):
    def change(folder):
        found, parts = load_file(folder / "model.safetensors"), {}
        names = sorted(found)
        for number, group in enumerate((names[::2], names[1::2]), 1):
            file = f"model-0000{number}-of-00002.safetensors"
            save_file({name: found[name] for name in group}, folder / file, {"format": "pt"})
            parts |= dict.fromkeys(group, file)
        change_index(parts)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": parts}))
        (folder / "model.safetensors").unlink()

    return change


def narrow_norm(found):
    found["model.norm.weight"] = found["model.norm.weight"].bfloat16()


def with_head(values):
    """Tied by its configuration, with an output matrix beside the embedding."""

    def change(folder):
        keys(config__tie_word_embeddings=True)(folder)
        tensors(lambda found: found.update({"lm_head.weight": values(found["model.embed_tokens.weight"])}))(folder)

    return change


SOUND = {
    "as it is": lambda folder: None,
    "pickled": pickled,
    "pickled, in shards": in_shards,
    "pickled in PyTorch's old format": pickled_long_ago,
    "parts in other formats": tensors(narrow_norm),
    "no architectures": keys(config__architectures=None),
    "no pad token": keys(tokenizer_config__pad_token=None),
    "a generation configuration that is no JSON": text("generation_config.json", "{"),
    "one matrix, written twice": with_head(torch.clone),
    "one matrix, pickled twice": lambda folder: [with_head(torch.clone)(folder), pickled(folder)],
    "64 bits": tensors(lambda found: found.update({name: tensor.double() for name, tensor in found.items()})),
    "an index that names another shard": safetensors_in_shards(lambda parts: parts.update({min(parts): max(parts.values())})),
    "an index of too much": safetensors_in_shards(lambda parts: parts.update({"left.over": max(parts.values())})),
    "the inner model's names": tensors(lambda found: [found.update({name.removeprefix("model."): found.pop(name)}) for name in list(found)]),
    "the same weights again, under another name": lambda folder: shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors"),
}  # fmt: skip
REFUSED = {
    "no model_type": (keys(config__model_type=None), "Should have a `model_type` key in its config.json"),
    "unknown model_type": (keys(config__model_type="llama99"), "model type `llama99` but Transformers does not recognize"),
    "text for a number": (keys(config__num_hidden_layers="two"), "'num_hidden_layers' expected int, got str"),
    "sizes that do not divide": (keys(config__hidden_size=65), "hidden size (65) is not a multiple"),
    "unknown number format": (keys(config__dtype="float4"), "has no attribute 'float4'"),
    "unknown positions": (keys(config__rope_scaling={"rope_type": "nothing", "factor": 2.0}), "KeyError: 'nothing'"),
    "code that is not trusted": (own_code(OWN), "it is code of its own; read it, and set model.trust_remote_code=true"),
    "an encoder with a decoder": (keys(config__is_encoder_decoder=True), "is an encoder with a decoder"),
    "GPTQ": (quantised("quantization_config", "gptq"), "quantised (gptq), which cannot be trained; name the model that it was made from"),
    "AWQ": (quantised("quantization_config", "awq"), "quantised (awq)"),
    "FP8": (quantised("quantization_config", "fp8"), "quantised (fp8)"),
    "compressed-tensors": (quantised("compression_config", "compressed-tensors"), "quantised (compressed-tensors)"),
    "AutoGPTQ of old": (text("quantize_config.json", '{"bits": 4}'), "quantised (quantize_config.json)"),
    "8 bits, nowhere said": (tensors(in_8_bits), "proj.weight (F8_E4M3) is quantised, which cannot be trained"),
    "integers, nowhere said": (tensors(in_integers), "proj.qweight (I32) is quantised"),
    "GGUF in place of weights": (renamed("model.safetensors", "m.gguf"), "has no weights of a known name, but m.gguf"),
    "weights under another name": (renamed("model.safetensors", "consolidated.safetensors"), "but consolidated.safetensors; Transformers reads"),
    "an index of nothing": (lambda f: [renamed("model.safetensors", "model-00001-of-00001.safetensors")(f), text("model.safetensors.index.json", "{}")(f)], "does not say in which files the tensors are"),
    "pointers of Git LFS": (text("model.safetensors", LFS), "is a pointer of Git LFS, not the file; get it with `git lfs pull`"),
    "a pointer as tokenizer": (text("tokenizer.json", LFS), "tokenizer.json: is a pointer of Git LFS"),
    "an empty tokenizer": (text("tokenizer.json", "{}"), "the tokenizer cannot be read"),
    "no fast tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer.json (the fast tokenizer); make it once with"),
    "config.json is a list": (text("config.json", "[1]"), "config.json: cannot be read"),
    "more tokens than rows": (keys(config__vocab_size=260), "lm_head.weight is [272, 64], expected [260, 64]"),
    "an end token that is not there": (keys(tokenizer_config__eos_token="<|gone|>"), "ids are not below 272, the rows of the embedding: eos_token <|gone|> (272)"),
    "padding that is not there": (keys(tokenizer_config__pad_token="<|gone|>"), "pad_token <|gone|> (272)"),
    "an end of generation that is not there": (keys(generation_config__eos_token_id=[2, 300]), "eos_token_id of generation_config.json (300)"),
    "only one of two matrices": (tensors(lambda found: found.pop("lm_head.weight")), "1 missing (lm_head.weight); write tie_word_embeddings: true into config.json if lm_head.weight is the embedding"),
    "two matrices said to be one": (with_head(torch.zeros_like), "says tie_word_embeddings: true, and lm_head.weight and model.embed_tokens.weight are different matrices; write tie_word_embeddings: false"),
    "a token beyond the embedding": (added_token("<|new|>"), "ids are not below 272, the rows of the embedding: <|new|> (272)"),
    "tekken.json alone": (renamed("tokenizer.json", "tekken.json"), "has Mistral's tekken.json and no tokenizer.json; take tokenizer.json"),
    "a generation configuration that is a list": (text("generation_config.json", "[1]"), "generation_config.json: is list, expected an object"),
    "an infinite number in 16 bits": (tensors(with_number("inf", torch.float16)), "model.norm.weight holds infinite numbers or NaN; nothing could be learned"),
    "an infinite number below 0": (tensors(with_number("-inf", torch.bfloat16)), "model.norm.weight holds infinite numbers or NaN"),
    "NaN, pickled": (lambda f: [tensors(with_number("nan", torch.float32))(f), pickled(f)], "model.norm.weight holds infinite numbers or NaN"),
    "a checkpoint of a training": (lambda f: [torch.save({"model": {}, "epoch": 3}, f / "pytorch_model.bin"), (f / "model.safetensors").unlink()], "pytorch_model.bin: holds more than tensors (model), as a training's checkpoint does; save the model with save_pretrained"),
    "objects, pickled": (lambda f: [torch.save({"a": added_token}, f / "pytorch_model.bin"), (f / "model.safetensors").unlink()], "is damaged, or holds objects that could run code, and is not read"),
    "bitsandbytes": (quantised("quantization_config", "bitsandbytes"), "quantised (bitsandbytes)"),
    "two matrices said to be one, pickled": (lambda folder: [with_head(torch.zeros_like)(folder), pickled(folder)], "are different matrices"),
}  # fmt: skip


@pytest.fixture
def outcome(tmp_path, model_manifest):
    """(change of a sound folder) -> the first line that refuses it before it is queued, or an empty one."""

    def of(change, trust=False):
        place = shutil.copytree(folder_of(model_manifest), tmp_path / "m")
        change(place)
        told = {"stage": "download_model", "folder": str(place), "trust_remote_code": trust}
        (tmp_path / "manifest.json").write_text(json.dumps(told))
        try:
            assert model_folder(str(place), "model.name_or_path") == place
            check_loadable(place)
            ModelShape.of(place, trust)
        except UserError as error:
            return str(error)
        found = [
            one.line() for one in start_model.models({"m": tmp_path / "manifest.json"}) if one.verdict == "failure"
        ]
        if not found:
            assert weight_bytes(place) > 100_000
        return found[0] if found else ""

    return of


@pytest.mark.parametrize("name", SOUND)
def test_what_is_sound_is_taken(outcome, name):
    assert outcome(SOUND[name]) == ""


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_trained_is_one_line(outcome, name):
    change, said = REFUSED[name]
    found = outcome(change)
    assert said in found and "\n" not in found, found


def test_code_of_its_own_that_is_trusted(outcome, tmp_path):
    assert outcome(own_code(OWN), trust=True) == ""
    shutil.rmtree(tmp_path / "m")
    found = outcome(own_code("raise RuntimeError('boom')\n"), trust=True)
    assert "RuntimeError: boom" in found and "\n" not in found


def test_paths_that_are_no_model(tmp_path):
    (tmp_path / "q4.gguf").write_bytes(b"GGUF")
    for path, said in (
        (tmp_path, "holds q4.gguf, which is made for inference; name the model"),
        (tmp_path / "q4.gguf", "a file; name the folder"),
    ):
        with pytest.raises(UserError) as caught:
            model_folder(str(path), "model.name_or_path")
        assert said in str(caught.value)


def test_weights_are_downloaded_once():
    files = [
        "config.json",
        "tokenizer.json",
        "consolidated.safetensors",
        "model-00001-of-00001.safetensors",
        "model.safetensors.index.json",
    ]
    assert "consolidated.safetensors" not in wanted_files(files, False)
    assert "consolidated.safetensors" in wanted_files(files[:3], False)  # which is then refused by its name
