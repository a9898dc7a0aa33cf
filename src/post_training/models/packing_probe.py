"""Whether a family of models can take several documents in one row, and with which attention: measured on a tiny random model.

Layers that carry a state along the row (state-space, linear attention, convolutions), or that know no document boundaries,
would mix packed documents: nothing fails, and the model learns from text that it will never see. So a model of the same
configuration class with two layers, small sizes and random weights computes two documents alone and packed. With soft-capped
scores, attention sinks, ALiBi or chunked attention `varlen` fails or differs from the family's own `eager` attention, which shows
in the same way.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from post_training.core.errors import ConfigError
from post_training.models import attention
from post_training.models.hub_kernel import parse

TOLERANCE = 1e-4
"""Largest difference of logits, as a share of the largest logit, that is rounding in float32."""
_LENGTHS = (11, 13)
_LARGEST = 50_000_000
"""Parameters that a tiny model may have."""
_WINDOW = 6
# Sizes that the tiny model has where its family has the key. Heads divide them, experts cover them.
_SIZES = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), 128),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embed_dim"), 64),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "intermediate_size_mlp", "ffn_hidden_size"), 96),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "hidden_size_per_layer_input"), 32),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads"), 4),
    **dict.fromkeys(("head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "rotary_dim"), 16),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 32),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk"), 2),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace", "num_expert_group"), 1),
    **dict.fromkeys(("sliding_window", "attention_chunk_size", "local_attention", "window_size"), _WINDOW),
    **dict.fromkeys(
        ("linear_key_head_dim", "linear_value_head_dim", "mamba_d_state", "state_size", "ssm_state_size"), 16
    ),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads", "mamba_n_heads", "mamba_num_heads"), 4),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim"), 32),
    **dict.fromkeys(("mamba_n_groups", "n_groups"), 1),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0),
    "num_kv_shared_layers": 0,
}
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


@dataclass(frozen=True)
class Packing:
    """What the probe has found about a family and the attention that was asked for."""

    implementation: str | None
    """Attention that computes what the family's own does: `varlen`, `sdpa` or `eager`; None where none does or nothing is known."""
    reason: str = ""
    """Why it is not `varlen`, or why nothing is known."""
    difference: float | None = None
    """Largest difference that packing makes to the logits, as a share of the largest; None where nothing is known."""

    @property
    def safe(self) -> bool:
        """Whether documents can be packed."""
        return self.difference is not None and self.difference <= TOLERANCE

    def verdict(self) -> str:
        """One line about packing."""
        if self.safe:
            return "packed documents have the logits that they have alone"
        if self.difference is None:
            return f"whether this model's layers mix packed documents is not known ({self.reason})"
        return f"this model's layers mix packed documents: logits differ by {self.difference:.2g} of the largest"


def resolve_attention(wanted: str, folder: Path, trust_remote_code: bool = False) -> str:
    """The name for Transformers. Raises ConfigError for `varlen` where the family's attention needs more than it computes."""
    if wanted not in ("auto", attention.NAME):
        return wanted
    found = probe_folder(folder, wanted, trust_remote_code)
    if wanted == attention.NAME and found.implementation != attention.NAME:
        problem = f"{wanted!r} cannot be used here: {found.reason}; `auto` takes what can"
        raise ConfigError("model.attn_implementation", problem)
    return found.implementation or "sdpa"


@cache
def probe_folder(folder: Path, wanted: str = "auto", trust_remote_code: bool = False) -> Packing:
    """`probe` of a model folder, from its configuration alone."""
    from transformers import AutoConfig

    auto: Any = AutoConfig
    try:
        config = auto.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (ImportError, ValueError, OSError, KeyError, TypeError) as error:
        return Packing(None, _line(error))
    return probe(config, wanted, trust_remote_code)


def probe(config: Any, wanted: str = "auto", trust_remote_code: bool = False) -> Packing:
    """Whether models of a configuration can be packed with an attention, in about a tenth of a second.

    Args:
        config: of Transformers; its class decides, its sizes do not.
        wanted: `model.attn_implementation`. Kernels that do not run on a CPU are represented by those that do.
        trust_remote_code: whether code that comes with the model may run.
    """
    import torch

    register = attention.register()
    names = [wanted] if wanted in (register, "sdpa", "eager") else [register, "sdpa", "eager"]
    with torch.random.fork_rng(devices=[]), _unsharded():
        try:
            tiny = two_layers(config.get_text_config())
            expected = _logits(tiny, "eager", trust_remote_code, packed=False)
        except Exception as error:  # each family has its own; nothing is known then
            return Packing(None, f"no two-layer model could be built: {_line(error)}")
        best, reason = Packing(None), ""
        for name in names:
            try:
                alone = _difference(_logits(tiny, name, trust_remote_code, packed=False), expected)
                packed = _difference(_logits(tiny, name, trust_remote_code, packed=True), expected)
            except Exception as error:
                reason = reason or _line(error)
                continue
            if not alone <= TOLERANCE:
                reason = reason or f"its logits differ by {alone:.2g} of the largest from those of eager attention"
                continue
            if best.difference is None or packed < min(best.difference, TOLERANCE):
                best = Packing(name, reason, packed)
            if best.safe:
                return best
            reason = reason or f"packed documents differ by {packed:.2g} of the largest logit"
    return best if best.implementation else Packing(None, reason)


def two_layers(config: Any) -> Any:
    """The configuration with small sizes, and with the first layer of each kind, two layers at least."""
    given = config.to_dict()
    layers = next((given[name] for name in _LAYERS if isinstance(given.get(name), int)), 2)
    kinds: list[str] = next((given[name] for name in ("layer_types", "layers_block_type") if given.get(name)), [])
    kept = sorted({kinds.index(kind) for kind in kinds}) or [0, 1]
    kept = (kept + [index for index in range(layers) if index not in kept])[: max(2, len(kept))]
    changed = {name: value for name, value in given.items() if name not in ("transformers_version", "architectures")}
    for name, value in given.items():
        if isinstance(value, list) and len(value) == layers:
            changed[name] = [value[min(index, layers - 1)] for index in sorted(kept)]  # of a model with one layer
        elif name in _LAYERS:
            changed[name] = len(kept)
        elif name in _SIZES and isinstance(value, int):
            changed[name] = _SIZES[name]
        elif name in ("num_key_value_heads", "num_kv_heads") and isinstance(value, int):
            heads = given.get("num_attention_heads") or given.get("n_head")
            changed[name] = 4 if value == heads else 2
        elif name == "rope_parameters":
            changed[name] = _plain_rope(value)
        elif name == "per_layer_config" and value:  # sizes of some layers, by their number
            places = {index: place for place, index in enumerate(sorted(kept))}
            own = {places[int(layer)]: sizes for layer, sizes in value.items() if int(layer) in places}
            changed[name] = {
                layer: {key: _SIZES.get(key, size) for key, size in sizes.items()} for layer, sizes in own.items()
            }
    return type(config).from_dict(changed)


def _plain_rope(value: Any) -> Any:
    """Without lists of factors or sections, which are as long as a head."""
    if not isinstance(value, dict):
        return value
    if any(isinstance(item, dict) for item in value.values()):
        return {name: _plain_rope(item) for name, item in value.items()}
    if not any(isinstance(item, list) for item in value.values()):
        return value
    return {name: value[name] for name in ("rope_theta", "partial_rotary_factor") if name in value} | {
        "rope_type": "default"
    }


def random_model(config: Any, attention: str, trust_remote_code: bool) -> Any:
    """A model of random float32 weights, the same each time, in evaluation mode. Raises ValueError for one that is large."""
    import torch
    from transformers import AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM
    arguments = {"attn_implementation": attention, "trust_remote_code": trust_remote_code, "dtype": torch.float32}
    if attention == "eager":  # with which a family is asked first
        with torch.device("meta"):
            made = auto.from_config(copy.deepcopy(config), **arguments)
        if (size := sum(parameter.numel() for parameter in made.parameters())) > _LARGEST:
            raise ValueError(f"two layers have {size:,} parameters")
    torch.manual_seed(0)
    model = auto.from_config(copy.deepcopy(config), **arguments).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # an initialisation may switch layers off
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def _logits(config: Any, implementation: str, trust_remote_code: bool, *, packed: bool) -> Any:
    """Logits `[tokens, vocabulary]` of the documents, one after the other."""
    import torch

    model = random_model(config, implementation, trust_remote_code)
    with torch.no_grad():
        documents = [torch.randint(3, 128, (1, length)) for length in _LENGTHS]
        if not packed:
            return torch.cat([model(input_ids=ids, use_cache=False).logits[0] for ids in documents])
        positions = [torch.arange(length) for length in _LENGTHS]
        bounds = torch.tensor([0, _LENGTHS[0], sum(_LENGTHS)], dtype=torch.int32)
        index = torch.repeat_interleave(torch.arange(2, dtype=torch.int32), torch.tensor(_LENGTHS))
        return model(
            input_ids=torch.cat(documents, dim=1),
            position_ids=torch.cat(positions)[None],
            use_cache=False,
            cu_seq_lens_q=bounds,
            cu_seq_lens_k=bounds,
            max_length_q=max(_LENGTHS),
            max_length_k=max(_LENGTHS),
            seq_idx=index[None],
        ).logits[0]


@contextmanager
def _unsharded() -> Iterator[None]:
    """Under ZeRO-3 Transformers would divide the tiny model over the ranks, too."""
    from transformers.integrations import deepspeed

    configuration = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed._hf_deepspeed_config_weak_ref = None
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = configuration


def _difference(found: Any, expected: Any) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def _line(error: BaseException) -> str:
    words = f"it does not know {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
    return words[:200] or type(error).__name__


def padding_free(folder: Path, view: dict[str, Any]) -> bool:
    """Whether a stage computes documents without padding: its model keeps them apart, and its attention takes boundaries, not a mask."""
    wanted, trust = str(view["model"]["attn_implementation"]), bool(view["model"]["trust_remote_code"])
    found = resolve_attention(wanted, folder, trust)
    takes_documents = found.startswith(("varlen", "flash_")) or parse(found) is not None
    compiled = view["accelerate"]["dynamo_backend"].lower() != "no"  # each length would be compiled again
    return takes_documents and not compiled and probe_folder(folder, wanted, trust).safe
