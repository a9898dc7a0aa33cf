"""Checks that inference programs can read an exported folder: Transformers 4 and 5, vLLM, llama.cpp's converter.

They read the files alone, without loading the model. Each check names the program that needs it.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from post_training.models.weights import Tensors, read_header

_NEEDED = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
# Prefixes that training wrappers add to the names of tensors; inference programs expect names without.
_WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "base_model.model.")
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight", "embeddings.weight")
# Classes that Transformers 5 writes and 4 does not have.
_NEW_CLASSES = ("TokenizersBackend", "SentencePieceBackend", "PythonBackend", "MistralCommonBackend")


def problems(folder: Path, stop: list[int]) -> list[str]:
    """Everything that would stop an inference program, a line each.

    Args:
        folder: the exported model.
        stop: ids that end an answer: the tokenizer's end token and the chat template's.
    """
    read, missing = _read(folder, _NEEDED)
    if missing:
        return missing
    config, tokenizer = read["config.json"], read["tokenizer.json"]
    tensors, wrong = _tensors(folder)
    found = [
        *wrong,
        *_of_config(config, tensors),
        *_of_tokenizer(tokenizer, read["tokenizer_config.json"], _vocabulary(config)),
        *_of_stops(read["generation_config.json"], stop),
    ]
    return [f"{folder}: {line}" for line in found]


def reward_problems(folder: Path) -> list[str]:
    """The same of a reward model, which answers nothing: one output, and the padding token by which it finds the last token."""
    read, missing = _read(folder, [name for name in _NEEDED if name != "generation_config.json"])
    if missing:
        return missing
    config, (tensors, wrong) = read["config.json"], _tensors(folder)
    found = [
        *wrong,
        *_of_config({**config, "tie_word_embeddings": None}, tensors),
        *_of_tokenizer(read["tokenizer.json"], read["tokenizer_config.json"], _vocabulary(config)),
    ]
    if len(config.get("id2label") or {}) != 1:
        found.append(f"config.json: id2label is {config.get('id2label')!r}, expected one output")
    if config.get("pad_token_id", (config.get("text_config") or {}).get("pad_token_id")) is None:
        found.append("config.json: pad_token_id is missing; without it no two answers can be scored together")
    return [f"{folder}: {line}" for line in found]


def _read(folder: Path, needed: Iterable[str]) -> tuple[dict[str, Any], list[str]]:
    """The JSON files of a folder by name, and a line for each needed file that is missing."""
    there = [name for name in needed if (folder / name).is_file()]
    read = {name: json.loads((folder / name).read_text(encoding="utf-8")) for name in there if name.endswith(".json")}
    return read, [f"{folder / name}: is missing" for name in needed if name not in there]


def _tensors(folder: Path) -> tuple[Tensors, list[str]]:
    """Every tensor of the weights, and problems of the files' names and their index."""
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    others = [path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern)]
    wrong = [f"{name}: weights in another format than safetensors" for name in others]
    headers: dict[str, Tensors] = {}
    for name in files:
        try:
            headers[name] = read_header(folder / name)
        except (OSError, SafetensorError) as error:
            wrong.append(f"{name}: is cut off, or no safetensors file ({error})")
            headers[name] = {}
    shards = len(files)
    expected = [f"model-{n:05d}-of-{shards:05d}.safetensors" for n in range(1, shards + 1)]
    index = folder / "model.safetensors.index.json"
    if files != ["model.safetensors"] and (files != expected or not index.is_file()):
        named = "model.safetensors, or model-0000n-of-0000m.safetensors with model.safetensors.index.json"
        wrong.append(f"weights are {', '.join(files) or 'missing'}, expected {named}")
    elif index.is_file():
        listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if listed != {tensor: name for name, header in headers.items() for tensor in header}:
            wrong.append(f"{index.name}: does not list the tensors that the files hold")
    return {tensor: facts for header in headers.values() for tensor, facts in header.items()}, wrong


def _of_config(config: dict[str, Any], tensors: Tensors) -> Iterator[str]:
    named = config.get("architectures")
    if not (isinstance(named, list) and named and isinstance(config.get("model_type"), str)):
        yield f"config.json: architectures is {named!r} and model_type {config.get('model_type')!r}; vLLM and llama.cpp choose their code by them"
    dtype = config.get("dtype")
    kinds = sorted({tensor["dtype"] for tensor in tensors.values()} & set(_DTYPES.values()))
    # Some architectures keep parts, such as a router's bias, in float32 whatever the others are in.
    named_kind = _DTYPES.get(str(dtype))
    if named_kind not in kinds or set(kinds) - {named_kind, "F32"}:
        yield f"config.json: dtype is {dtype!r}, the weights are {' and '.join(kinds) or 'of another kind'}"
    if config.get("torch_dtype") != dtype:
        yield f"config.json: torch_dtype, which Transformers before 4.56 reads, is {config.get('torch_dtype')!r} and not {dtype!r}"
    rope = config.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope and config.get("rope_theta") != rope["rope_theta"]:
        yield f"config.json: rope_theta, which Transformers 4 reads, is {config.get('rope_theta')!r} and not {rope['rope_theta']!r}"
    wrapped = [name for name in tensors if name.startswith(_WRAPPERS) or ".base_layer." in name or ".lora_" in name]
    if wrapped:
        yield f"tensor {wrapped[0]} and {len(wrapped) - 1} more have names of a training wrapper"
    vocabulary = _vocabulary(config)
    for name, tensor in tensors.items():
        embeds = name.endswith(_EMBEDDINGS) and "position" not in name and "per_layer" not in name
        if embeds and tensor["shape"][0] != vocabulary:
            yield f"config.json: vocab_size is {vocabulary}, but {name} has {tensor['shape'][0]} rows"
    tied = config.get("tie_word_embeddings", (config.get("text_config") or {}).get("tie_word_embeddings"))
    head = tensors.get("lm_head.weight")
    if tied is False and head is None and any(name.startswith("model.") for name in tensors):
        yield "config.json: tie_word_embeddings is false, but there is no lm_head.weight"
    if head is not None and head["shape"][0] != vocabulary:
        yield f"config.json: vocab_size is {vocabulary}, but lm_head.weight has {head['shape'][0]} rows"


def _of_tokenizer(tokenizer: dict[str, Any], config: dict[str, Any], vocabulary: int) -> Iterator[str]:
    name = config.get("tokenizer_class")
    if not isinstance(name, str) or name in _NEW_CLASSES:
        yield f"tokenizer_config.json: tokenizer_class is {name!r}, which Transformers 4 and vLLM built on it cannot load"
    if isinstance(config.get("extra_special_tokens"), list):
        yield "tokenizer_config.json: extra_special_tokens is a list, which Transformers 4 cannot load; it reads additional_special_tokens"
    model = tokenizer.get("model") or {}
    kind = model.get("type")
    if kind not in ("BPE", "Unigram", "WordPiece", "WordLevel"):
        yield f"tokenizer.json: model type {kind!r} is unknown"
    if kind == "BPE" and not model.get("byte_fallback") and not tokenizer.get("pre_tokenizer"):
        yield "tokenizer.json: a BPE without pre_tokenizer, by which llama.cpp knows how text is split"
    known = model.get("vocab") or {}
    ids = list(known.values()) if isinstance(known, dict) else list(range(len(known)))
    ids += [token["id"] for token in tokenizer.get("added_tokens", [])]
    if ids and max(ids) >= vocabulary:
        yield f"tokenizer.json: has the id {max(ids)}, config.json's vocab_size is {vocabulary}"


def _of_stops(generation: dict[str, Any], stop: list[int]) -> Iterator[str]:
    found = generation.get("eos_token_id")
    ids = found if isinstance(found, list) else [found]
    lost = [token for token in stop if token not in ids]
    if lost or not stop:
        yield f"generation_config.json: eos_token_id is {found!r}, without the stop token {lost or '(none found)'}: answers would not end"


def _vocabulary(config: dict[str, Any]) -> int:
    return int(config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size") or 0)
