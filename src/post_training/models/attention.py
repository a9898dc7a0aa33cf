"""Attention over packed documents without a mask, padding or another package: `model.attn_implementation: varlen`.

Transformers builds a mask of (tokens of the micro-batch)^2 for packed rows, and `sdpa` then computes all of it. Here each
document is attended to by itself: on CUDA in one call of the FlashAttention kernels that PyTorch ships
(`torch.nn.attention.varlen`), elsewhere in one causal `scaled_dot_product_attention` per document. The boundaries are
`cu_seq_lens_q` of the batch (data/collate.py), which Transformers hands on to every attention layer. Batches without
boundaries, padded ones among them, take the path of `sdpa`.
"""

import inspect
from functools import cache
from typing import Any

import torch
from torch.nn import functional

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # a site's PyTorch, older than 2.10
    varlen_attn = None  # type: ignore[assignment]

NAME = "varlen"
# Arguments of attention layers that change the scores and that these kernels have no place for.
_UNSUPPORTED = {"softcap": "soft-capped scores", "s_aux": "attention sinks", "position_bias": "a position bias (ALiBi)"}


# Those that came later than the function itself.
_HAS_KERNELS = varlen_attn is not None and {"window_size", "enable_gqa"} <= set(
    inspect.signature(varlen_attn).parameters
)


class UnsupportedAttention(ValueError):
    """An attention layer asks for something that `varlen` cannot compute."""


@cache
def register() -> str:
    """Make `varlen` known to Transformers. Returns its name."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    def mask(*, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor | None:
        if attention_mask is None and kwargs["q_length"] == kwargs["kv_length"]:
            return None  # whole documents, whose boundaries the attention layer gets
        return sdpa_mask(attention_mask=attention_mask, **kwargs)

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, mask)
    return NAME


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention inside each document, in the form that Transformers calls.

    Args:
        module: the attention layer.
        query: `[batch, heads, tokens, head size]`; with boundaries the batch is 1.
        key: `[batch, key-value heads, tokens, head size]`.
        value: as `key`; its head size may differ.
        attention_mask: None, or a mask that makes this `sdpa`.
        scaling: factor of the scores. None = 1 / sqrt(head size).
        dropout: share of the attention weights that is dropped.
        sliding_window: tokens that a token attends to, itself among them. None = all before it.
        is_causal: None = as the layer says.
        cu_seq_lens_q: int32 `[documents + 1]`, where each document starts, and the number of tokens.
        max_length_q: tokens of the longest document.
        kwargs: what else Transformers hands on.

    Returns:
        `[batch, tokens, heads, head size]`, and None for the attention weights.

    Raises:
        UnsupportedAttention: for soft-capped scores, attention sinks, a position bias, or a layer that is not causal.
    """
    for name, words in _UNSUPPORTED.items():
        if kwargs.get(name) is not None:
            raise UnsupportedAttention(f"{type(module).__name__} has {words}")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if attention_mask is not None or not causal or query.shape[2] != key.shape[2]:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        found, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs
        )
        return found, None
    tokens = query.shape[2]
    if dropout == 0 and (dtype := _kernel_type(query, value)):
        bounds, longest = cu_seq_lens_q, max_length_q or tokens
        if bounds is None:
            bounds = torch.arange(0, query.shape[0] * tokens + 1, tokens, dtype=torch.int32, device=query.device)
        inputs = [tensor.transpose(1, 2).flatten(0, 1).to(dtype) for tensor in (query, key, value)]
        found = _all_documents(inputs, bounds, longest, scaling, sliding_window)
        return found.view(query.shape[0], tokens, *found.shape[1:]), None
    sizes = [tokens] if cu_seq_lens_q is None else cu_seq_lens_q.diff().tolist()
    # `split`, not slices: the gradient of each slice would be a tensor of the whole row.
    parts = zip(*(torch.split(tensor, sizes, dim=2) for tensor in (query, key, value)), strict=True)
    return torch.cat([_one_document(q, k, v, scaling, dropout, sliding_window) for q, k, v in parts], dim=1), None


def _one_document(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    dropout: float,
    window: int | None,
) -> torch.Tensor:
    """Causal attention of one document, `[batch, tokens, heads, head size]`."""
    tokens, mask = query.shape[2], None
    if window is not None and window < tokens:
        mask = torch.ones(tokens, tokens, dtype=torch.bool, device=query.device).tril().triu(1 - window)
    gqa = query.shape[1] != key.shape[1]
    found = functional.scaled_dot_product_attention(
        query, key, value, mask, dropout, is_causal=mask is None, scale=scaling, enable_gqa=gqa
    )
    return found.transpose(1, 2)


def _kernel_type(query: torch.Tensor, value: torch.Tensor) -> torch.dtype | None:
    """Type in which PyTorch's kernels take these `[batch, heads, tokens, head size]`; None where they do not."""
    if not _HAS_KERNELS or query.device.type != "cuda" or torch.cuda.get_device_capability(query.device) < (8, 0):
        return None
    # Rotary embeddings leave float32 under autocast, which knows nothing of these kernels.
    autocast = query.dtype == torch.float32 and torch.is_autocast_enabled("cuda")
    dtype, size = torch.get_autocast_dtype("cuda") if autocast else query.dtype, query.shape[3]
    fits = dtype in (torch.bfloat16, torch.float16) and size == value.shape[3] and size % 8 == 0 and size <= 256
    return dtype if fits else None


def _all_documents(
    inputs: list[torch.Tensor], bounds: torch.Tensor, longest: int, scaling: float | None, window: int | None
) -> torch.Tensor:
    """Causal attention of all documents, `[tokens, heads, head size]`, by PyTorch's FlashAttention kernels."""
    query, key, value = inputs
    reach = -1 if window is None or window >= longest else window - 1  # tokens before the own one
    gqa = query.shape[1] != key.shape[1]
    found = varlen_attn(
        query, key, value, bounds, bounds, longest, longest, scale=scaling, window_size=(reach, 0), enable_gqa=gqa
    )
    assert isinstance(found, torch.Tensor)
    return found
