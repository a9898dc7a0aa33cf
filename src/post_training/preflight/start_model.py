"""The model that a training starts from against itself: its weights' names and shapes, its ids, how it stops. Weights are read to see
that they are numbers, and where two should be one."""

import json
from pathlib import Path
from typing import Any

from post_training.core import manifest
from post_training.core.errors import ConfigError, UserError, brief
from post_training.models import folder as model_folder
from post_training.models.parts import NEW_KEYS, check_parts, token_ids
from post_training.models.weights import not_finite, read_header, shapes, unequal, weight_files
from post_training.preflight.check import Check, check, failed
from post_training.preflight.subject import Subject

_NAMED = 3
# Weights as integers, by the ends of their names: GPTQ and AWQ, compressed-tensors, bitsandbytes.
_PACKED = (".weight", ".qweight", ".qzeros", ".weight_packed")
# Names that wrappers put before those of the model.
_PREFIXES = ("_orig_mod.", "module.", "_fsdp_wrapped_module.", "base_model.model.")


def models(paths: dict[str, Path]) -> list[Check]:
    """Every check of each model that is there before the first training, by its manifest."""
    found: list[Check] = []
    for path in paths.values():
        try:
            folder, trust = model_folder(path), bool(manifest.read(path).get("trust_remote_code"))
        except UserError:
            continue  # which assets.model says
        found += [_weights(folder, trust), _ids(folder, trust)]
    return list(dict.fromkeys(found))


def _weights(folder: Path, trust_remote_code: bool) -> Check:
    """Transformers puts tensors without memory, of the names and shapes of the files, into the model as it would the weights."""
    name = "model.weights"
    remedy = "it would train from random weights; save the model again with save_pretrained, or copy the folder again"
    try:
        tensors = stored_tensors(folder)
        found = loading_info(folder, tensors, trust_remote_code)
    except Exception as error:  # a damaged file, an architecture's own assertion: all are the folder's
        problem = str(error) if isinstance(error, UserError) else f"{folder}: {type(error).__name__}: {brief(error)}"
        return Check(name, problem, "failure", remedy)
    if packed := packed_tensors(folder):
        remedy = "name the model that it was made from, whose weights are not quantised"
        return Check(name, f"{folder}: {packed} is quantised, which cannot be trained", "failure", remedy)
    missing, unexpected = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
    shapes = [f"{key} is {list(have)}, expected {list(want)}" for key, have, want in sorted(found["mismatched_keys"])]
    apart = unequal(folder, found["tied"])
    said = [
        f"{len(keys):,} {what} ({', '.join(keys[:_NAMED])}{', ...' if len(keys) > _NAMED else ''})"
        for what, keys in (("missing", missing), ("of another shape", shapes), ("not of this architecture", unexpected))
        if keys
    ]
    prefix = next((p for p in _PREFIXES if any(key.startswith(p) for key in unexpected)), None)
    if prefix:
        said.append(f"all begin with {prefix!r}: take that off")
    if apart and not said:
        value = (
            f"{folder}: config.json says tie_word_embeddings: true, and {' and '.join(apart)} are different matrices"
        )
        remedy = f"write tie_word_embeddings: false into config.json, or take {apart[0]} out of the weights"
        return Check(name, value, "failure", remedy)
    if not said and (broken := not_finite(folder)):
        other = "name a copy whose weights are bfloat16 or float32: float16 ends at 65,504"
        remedy = f"nothing could be learned; copy the folder again, or {other}"
        return Check(name, f"{folder}: {broken} holds infinite numbers or NaN", "failure", remedy)
    if missing and set(missing) <= found["may_be_tied"]:
        remedy = f"write tie_word_embeddings: true into config.json if {missing[0]} is the embedding, or copy the folder again"
    return check(
        name,
        f"{folder}: tensors {'; '.join(said)}"
        if said
        else f"{len(tensors):,} tensors have the architecture's names and shapes",
        fails=missing or shapes or found["error_msgs"],
        warns=unexpected,
        remedy=remedy if missing or shapes else "they are not used: check that they belong to this model",
    )


def packed_tensors(folder: Path) -> str:
    """The first tensor of weights in 8 bits or fewer, or packed into integers, with its type; empty where all are numbers to train."""
    for path in (path for path in weight_files(folder) if path.suffix != ".bin"):
        for key, facts in read_header(path).items():
            kind = str(facts["dtype"])
            if (kind.startswith(("F8", "F4", "F6")) and kind != "F64") or (
                len(facts["shape"]) >= 2 and kind in ("I8", "U8", "I32") and key.endswith(_PACKED)
            ):
                return f"{key} ({kind})"
    return ""


def stored_tensors(folder: Path) -> dict[str, Any]:
    """Name -> tensor on the meta device, by the headers of the folder's safetensors or by its pickles' structure.

    Raises FileNotFoundError for a shard that the index names and that is not there.
    """
    import torch

    found = {name: size for path in weight_files(folder) for name, size in shapes(path).items()}
    return {name: torch.empty(size, device="meta") for name, size in found.items()}


def loading_info(folder: Path, tensors: dict[str, Any], trust_remote_code: bool) -> dict[str, Any]:
    """`missing_keys`, `unexpected_keys`, `mismatched_keys` and `error_msgs`, as Transformers reports them.

    `tied` are tensors that are others by the configuration, name -> name, and `may_be_tied` those that the architecture can have so.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        family = type(auto.from_config(config, trust_remote_code=trust_remote_code))
    model, found = family.from_pretrained(
        None,
        config=config,
        state_dict=dict(tensors),
        device_map="meta",
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    may_be = getattr(family, "_tied_weights_keys", None) or {}
    return {**found, "tied": dict(model.all_tied_weights_keys), "may_be_tied": set(may_be)}


def _ids(folder: Path, trust_remote_code: bool) -> Check:
    """Every id that tokenizer and generation configuration can give must be a row of the embedding."""
    from transformers import AutoConfig, AutoTokenizer

    from post_training.data.tokens.chat_template import special_tokens
    from post_training.data.tokens.tokenizer_file import TokenizerFile

    try:
        config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:
        return Check("model.ids", f"{folder}: {brief(error)}", "failure", "the model's config.json must load")
    rows = int(config.get_text_config().vocab_size)
    try:
        tokenizer = TokenizerFile.read(folder).load()
        named: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # a damaged file, or a tokenizer of any class
        problem = f"{folder}: the tokenizer cannot be read: {brief(error)}"
        return Check("model.ids", problem, "failure", "copy the tokenizer's files again")
    beyond = {token: index for token, index in tokenizer.get_vocab(with_added_tokens=True).items() if index >= rows}
    # A token that is named and not there is added by Transformers, behind the others. One that begins a text is in use only where the files
    # name it: a class of tokenizers may have one of its own.
    used = ("eos_token", "pad_token", *(["bos_token"] if "bos_token" in special_tokens(folder) else []))
    beyond |= {
        f"{key} {getattr(named, key)}": index
        for key in used
        if (index := getattr(named, f"{key}_id")) is not None and index >= rows
    }
    generation = _generation(folder)
    if not isinstance(generation, dict):
        problem = f"{folder}/generation_config.json: is {type(generation).__name__}, expected an object"
        return Check("model.ids", problem, "failure", "copy the file again, or take it out")
    for key in ("eos_token_id", "bos_token_id", "pad_token_id"):
        found = generation.get(key)
        beyond |= {
            f"{key} of generation_config.json": one
            for one in (found if isinstance(found, list) else [found])
            if isinstance(one, int) and one >= rows
        }
    listed = ", ".join(f"{token} ({index})" for token, index in sorted(beyond.items(), key=lambda one: one[1])[:_NAMED])
    return check(
        "model.ids",
        f"{len(beyond):,} ids are not below {rows:,}, the rows of the embedding: {listed}"
        if beyond
        else f"all ids are below {rows:,}, the rows of the embedding",
        fails=beyond,
        remedy="use the tokenizer that belongs to the model, or save the model again after model.resize_token_embeddings(len(tokenizer))",
    )


def adapters(subject: Subject) -> Check:
    """Names in `model.lora.target_modules` and `modules_to_save` must be modules of this architecture, tokens be tokens."""
    lora, name = subject.view["model"]["lora"], "model.adapters"
    if lora is None:
        return Check(name, "off")
    try:
        check_parts(lora, subject.shape.parts, quantized=subject.view["model"]["quantization"] is not None)
        token_ids(subject.folder, lora["trainable_tokens"] or [])
    except ConfigError as error:
        return failed(name, error)
    more = [f"{key} {', '.join(lora[key])}" for key in NEW_KEYS if lora[key]]
    return Check(name, "; ".join([str(lora["target_modules"]), *more]))


def _generation(folder: Path) -> Any:
    """What `generation_config.json` holds; nothing where it is not there or no JSON, as Transformers takes it."""
    try:
        return json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
