"""A model's own forward pass, with its logits, in place of TRL's fused output layer.

TRL's layer multiplies the last hidden states by the head's weights, and knows the scales and caps that Transformers'
configurations name. A model whose forward does more to its logits (code of its own; an architecture with another name for a scale)
would be trained on another loss than it computes afterwards. Such a model's own forward is called instead: slower, and all logits of
a micro-batch are in memory. `training/loss_check.py` decides.
"""

import functools
from typing import Any

import torch
from torch.nn import functional


def offer_own_forward(model: Any) -> None:
    """Let a model that has TRL's fused output layer be switched over later. Wrappers around it, and adapters, stay."""
    model = _base(model)
    fused = model.forward

    @functools.wraps(fused)  # `generate` reads the arguments that a model takes
    def forward(*args: Any, **kwargs: Any) -> Any:
        if not (kwargs.get("fused_lm_head") and model.uses_own_forward):
            return fused(*args, **kwargs)
        names = ("fused_lm_head", "labels", "shift_labels", "num_items_in_batch", "before")
        _, labels, targets, count, before = (kwargs.pop(name, None) for name in names)
        found = fused(*args, **{**kwargs, "use_cache": False})
        logits = found.logits
        if before is not None:  # the positions that models/padding_free.py wants
            logits = logits.index_select(1, before)
        elif targets is None:
            logits, targets = logits[:, :-1], labels[:, 1:]
        return _scored(logits.float(), targets.to(logits.device), count, getattr(found, "aux_loss", None), model.config)

    model.uses_own_forward = False
    model.forward = forward


def use_own_forward(model: Any) -> None:
    """Switch a model over, for good."""
    _base(model).uses_own_forward = True


def uses_own_forward(model: Any) -> bool:
    """Whether it has been switched over."""
    return bool(getattr(_base(model), "uses_own_forward", False))


def _base(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _scored(logits: torch.Tensor, targets: torch.Tensor, count: Any, aux_loss: Any, config: Any) -> Any:
    """What TRL's layer returns, of float32 logits `[sequences, tokens, vocabulary]` and int64 targets `[sequences, tokens]`."""
    from trl.trainer.utils import FusedCausalLMOutput

    mask = targets != -100
    log_probs = -functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    with torch.no_grad():
        normal = logits.logsumexp(-1, keepdim=True)
        entropy = normal[..., 0] - ((logits - normal).exp() * logits).sum(-1)
        squares = (2 * (logits - normal)).logsumexp(-1)
        of_each = {"entropy": entropy, "log_sum_sq_probs": squares, "mean_logits": logits.mean(-1)}
        of_each["is_top1"] = logits.argmax(-1) == targets
    loss = -log_probs.sum() / (mask.sum().clamp(min=1) if count is None else count)
    if aux_loss is not None:
        loss = loss + getattr(config.get_text_config(), "router_aux_loss_coef", 0.0) * aux_loss
    masked = {name: value.masked_fill(~mask, 0) for name, value in of_each.items()}
    return FusedCausalLMOutput(loss=loss, log_probs=log_probs, label_mask=mask, aux_loss=aux_loss, **masked)
