"""What LoRA trains beside its adapters: modules as a whole (`model.lora.modules_to_save`), and rows of the embeddings of some tokens
(`model.lora.trainable_tokens`). Both are PEFT's; names are checked against the model, and tied embeddings stay tied.

PEFT and torch are imported when they are used.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from post_training.core.errors import did_you_mean, require

TARGETS, MODULES, TOKENS = "model.lora.target_modules", "model.lora.modules_to_save", "model.lora.trainable_tokens"
NEW_KEYS = ("modules_to_save", "trainable_tokens")
"""Keys of `model.lora` that decide nothing while they are null."""
# PEFT ties a whole embedding that it trains again by this name alone.
_TIED_NAME = "embed_tokens"


@dataclass(frozen=True)
class Parts:
    """Modules of a model by the last part of their names."""

    modules: dict[str, int] = field(default_factory=dict)
    """Those with parameters of their own -> parameters, summed over all modules of that name."""
    linear: dict[str, int] = field(default_factory=dict)
    """Linear layers, which may have an adapter, but for the output -> inputs + outputs, summed over all layers of that name."""
    linear_parameters: int = 0
    """Parameters of their weights."""
    embedding: str = ""
    head: str = ""
    """The output embedding; empty where there is none."""
    tied: bool = False
    head_has_bias: bool = False

    @classmethod
    def of(cls, model: Any) -> "Parts":
        """Of a model without adapters, on any device, in shards or not."""
        from torch import nn
        from transformers.pytorch_utils import Conv1D

        inputs, head = model.get_input_embeddings(), model.get_output_embeddings()
        modules: dict[str, int] = {}
        linear: dict[str, int] = {}
        weights = 0
        names = {"inputs": "", "head": ""}
        for name, module in model.named_modules():
            last = name.rpartition(".")[2]
            own = sum(getattr(p, "ds_numel", p.numel()) for p in module.parameters(recurse=False))
            if own and last:
                modules[last] = modules.get(last, 0) + own
            names |= {"inputs": last} if module is inputs else {"head": last} if module is head else {}
            output = module is head or (head is None and last in ("score", "classifier"))
            if isinstance(module, nn.Linear | Conv1D) and not output:
                shape = getattr(module.weight, "ds_shape", module.weight.shape)
                linear[last] = linear.get(last, 0) + sum(shape)
                weights += math.prod(shape)
        tied = head is not None and bool(getattr(model.config.get_text_config(), "tie_word_embeddings", False))
        has_bias = getattr(head, "bias", None) is not None
        return cls(modules, linear, weights, names["inputs"], names["head"], tied, has_bias)

    def in_full(self, lora: dict[str, Any] | None) -> list[str]:
        """Names of the modules that are trained as a whole."""
        return list((lora or {}).get("modules_to_save") or [])

    def full_parameters(self, lora: dict[str, Any] | None) -> int:
        """Parameters of those modules; a tied embedding is one matrix."""
        return sum(self.modules.get(name, 0) for name in self.in_full(lora))

    def embeddings_trained(self, lora: dict[str, Any] | None) -> int:
        """Of the input and the output embedding, how many matrices are trained as a whole."""
        return sum(name in (self.embedding, self.head) for name in self.in_full(lora))

    def with_rows(self) -> list[str]:
        """Names of the embeddings whose rows `trainable_tokens` trains; that of a tied output follows."""
        return [self.embedding, *([self.head] if self.head and not self.tied else [])]


def check_values(lora: dict[str, Any], *, zero_stage: int | None) -> None:
    """Raise ConfigError for values that are wrong whatever the model."""
    for key, name in ((MODULES, "modules_to_save"), (TOKENS, "trainable_tokens")):
        found = lora[name]
        listed = isinstance(found, list) and bool(found) and all(isinstance(one, str) and one for one in found)
        require(found is None or listed, key, f"found {found!r}, expected a list of texts, or null for none")
        require(not listed or len(set(found)) == len(found), key, "names something twice")
    problem = "PEFT cannot train rows of an embedding that ZeRO-3 has divided; take deepspeed.config_path=zero2, or name the embedding in modules_to_save"
    require(lora["trainable_tokens"] is None or zero_stage != 3, TOKENS, problem)


def check_parts(lora: dict[str, Any], parts: Parts, *, quantized: bool) -> None:
    """Raise ConfigError for names that this model does not have, or cannot train."""
    targets = parts.linear if lora["target_modules"] == "all-linear" else lora["target_modules"]
    for name in targets:
        offered = sorted(parts.linear)
        require(name in offered, TARGETS, f"no linear layer is named {name!r}. {did_you_mean(name, offered)}")
    for name in parts.in_full(lora):
        offered = sorted(parts.modules)
        require(name in offered, MODULES, f"no module with weights is named {name!r}. {did_you_mean(name, offered)}")
        adapted = "has an adapter already; take it out, or list the layers with adapters in model.lora.target_modules"
        require(name not in targets, MODULES, f"{name} {adapted}")
        held = "is held in 4 bits (model.quantization), and cannot be trained as a whole; take it out"
        require(not (quantized and name in parts.linear), MODULES, f"{name} {held}")
        if parts.tied and name in (parts.embedding, parts.head):
            both = f"{parts.head} is {parts.embedding}'s own matrix in this model (tie_word_embeddings); "
            require(name == parts.embedding, MODULES, f"{both}name {parts.embedding}, which trains both")
            rows = f"PEFT would train two matrices in place of the one; set {TOKENS} to the tokens that are new"
            require(name == _TIED_NAME, MODULES, both + rows)
    if lora["trainable_tokens"]:
        full = [name for name in parts.with_rows() if name in parts.in_full(lora)]
        require(not full, TOKENS, f"{MODULES} trains all of {', '.join(full)}; take one of the two out")
        bias = f"the output embedding {parts.head} has a bias, which PEFT would leave out; name the embeddings in modules_to_save instead"
        require(not parts.head_has_bias, TOKENS, bias)


def token_ids(folder: Path, tokens: list[str]) -> list[int]:
    """The id of each token by a model folder's tokenizer. Raises ConfigError for a text that is not one token."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    found = []
    for token in tokens:
        index = tokenizer.token_to_id(token)
        ids = [index] if index is not None else tokenizer.encode(token, add_special_tokens=False).ids
        require(len(ids) == 1, TOKENS, f"{token!r} is {len(ids)} tokens of this tokenizer, expected the text of one")
        require(ids[0] not in found, TOKENS, f"{token!r} is the same token as another in the list")
        found += ids
    return found


def peft_arguments(lora: dict[str, Any], model: Any, folder: Path) -> dict[str, Any]:
    """Arguments of PEFT's `LoraConfig` for what is trained beside the adapters. Raises ConfigError."""
    parts, arguments = Parts.of(model), dict[str, Any]()
    check_parts(lora, parts, quantized=bool(getattr(model, "is_loaded_in_4bit", False)))
    paths = [name for name, module in model.named_modules() if name]
    if lora["modules_to_save"] is not None:
        # PEFT takes every module whose name ends so: `norm` would be `input_layernorm`, too.
        arguments["modules_to_save"] = [
            path for name in lora["modules_to_save"] for path in paths if path.rpartition(".")[2] == name
        ]
        if parts.tied and parts.embedding in lora["modules_to_save"]:
            arguments["ensure_weight_tying"] = True
    if lora["trainable_tokens"] is not None:
        ids = token_ids(folder, lora["trainable_tokens"])
        ends = {path.rpartition(".")[2]: path for path in paths}
        arguments["trainable_token_indices"] = {ends[name]: list(ids) for name in parts.with_rows()}
    return arguments


def settle(model: Any) -> None:
    """Make what is trained beside the adapters ready, after TRL has wrapped the model and before an optimizer is made.

    It begins with the model's own values, in float32, which TRL and PEFT may have rounded; and an output embedding with rows that are
    trained has the attribute by which TRL's fused output layer asks for a bias.
    """
    import torch
    from peft.tuners.trainable_tokens import TrainableTokensLayer
    from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper

    if not hasattr(model, "peft_config"):
        return
    wrapper: Any = model.get_output_embeddings()
    if type(wrapper) is TrainableTokensWrapper:
        wrapper.__dict__["bias"] = None  # check_parts has seen to it
    with torch.no_grad():
        for module in model.modules():
            layer: Any = module
            if isinstance(module, ModulesToSaveWrapper):
                for copy in module.modules_to_save.values():
                    for own, first in zip(copy.parameters(), layer.original_module.parameters(), strict=True):
                        if not hasattr(first, "ds_id"):
                            own.data = first.data.float()
            elif isinstance(module, TrainableTokensLayer) and not module.tied_adapter:
                for name, rows in module.trainable_tokens_delta.items():
                    rows.data = layer.base_layer.weight[module.token_indices[name]].float()
