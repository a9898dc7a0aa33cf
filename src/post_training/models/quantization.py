"""Frozen weights in 4 bits beside adapters (QLoRA, Dettmers et al. 2023, arXiv:2305.14314), by bitsandbytes.

The weights of linear layers, the output embedding excepted, are stored as NF4: blocks of 64 values, each one of 16 levels
times its block's scale; with `double` the scales are stored in 8 bits, in blocks of 256. A pass turns one layer at a time
back into `model.dtype`. Embeddings and norms stay as they are. Adapters are float32, as without quantisation. The base that
the adapters have learned on is the rounded one, so an export is that base with the adapters in it, in `model.dtype`.
bitsandbytes and torch are imported when weights are quantised.
"""

from collections.abc import Iterator
from typing import Any

from post_training.core.errors import require

KEY = "model.quantization"


def check_quantization(view: dict[str, Any]) -> None:
    """Raise ConfigError for values that bitsandbytes or training cannot work with, whatever the model."""
    quantization = view["model"]["quantization"]
    if quantization is None:
        return
    require(view["model"]["lora"] is not None, KEY, "4-bit weights cannot be trained; train adapters: model.lora={}")
    for name, expected in (("bits", 4), ("type", "nf4")):
        found = quantization[name]
        require(found == expected, f"{KEY}.{name}", f"found {found}, expected {expected}")


def load_arguments(quantization: dict[str, Any] | None, dtype: str, device: Any) -> dict[str, Any]:
    """Arguments of `from_pretrained` that quantise while loading, onto one device; none without quantisation."""
    if quantization is None:
        return {}
    import torch
    from transformers import BitsAndBytesConfig

    made: Any = BitsAndBytesConfig
    config = made(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization["type"],
        bnb_4bit_use_double_quant=quantization["double"],
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )
    return {"quantization_config": config, "device_map": {"": device}}


def keep_exact(model: Any) -> None:
    """Have a quantised model compute alike on every CPU, in training and evaluation.

    On a CPU with AVX512-BF16 a layer in evaluation mode would lay its weights out anew, lose their number format, and have
    no gradient from then on.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def widen_adapters(model: Any) -> None:
    """Make what is trained beside quantised weights float32 again: TRL makes it bfloat16, whose rounding swallows small updates."""
    if getattr(model, "is_loaded_in_4bit", False):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()


def round_weights(model: Any, quantization: dict[str, Any]) -> None:
    """Put the values that 4 bits leave of a plain model's linear layers in their place, in their own number format."""
    import torch

    with torch.no_grad():
        for weight, transposed in _linear_weights(model):
            values = weight.data.T.contiguous() if transposed else weight.data
            found = rounded(values, quantization)
            weight.data = found.T.contiguous() if transposed else found


def rounded(values: Any, quantization: dict[str, Any]) -> Any:
    """A weight `[outputs, inputs]` through 4 bits and back."""
    from bitsandbytes import functional

    settings = {"compress_statistics": quantization["double"], "quant_type": quantization["type"]}
    stored, state = functional.quantize_4bit(values, blocksize=64, **settings)
    return functional.dequantize_4bit(stored, state)


def _linear_weights(model: Any) -> Iterator[tuple[Any, bool]]:
    """The weights that Transformers would quantise, and whether they are stored as `[inputs, outputs]`."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.base import get_keys_to_not_convert
    from transformers.quantizers.quantizers_utils import should_convert_module

    kept = [*get_keys_to_not_convert(model), *(model._keep_in_fp32_modules or [])]  # type: ignore[no-untyped-call]
    for name, module in model.named_modules():
        if (type(module) is nn.Linear or isinstance(module, Conv1D)) and should_convert_module(name, kept):
            yield module.weight, isinstance(module, Conv1D)
