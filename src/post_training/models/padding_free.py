"""Micro-batches without padding, and the output layer only where a log-probability is needed; the losses stay TRL's.

TRL pads the sequences of a micro-batch to the longest one: at four preference pairs half of the work is padding. It reads
nothing but per-token results of its fused output layer (`trl.trainer.utils.add_fused_lm_head`). So the model's forward pass,
and nothing else, is changed: the real tokens go through the layers as one row of documents (models/attention.py), the output
layer gets the positions before labelled tokens, and the results are put back where TRL expects them in the padded batch, a
number a token. Every loss and metric of TRL's trainers has then the value and the gradient that it has with padding.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch

_IGNORED = -100


def without_padding(model: Any) -> None:
    """Change the forward pass of a model that has TRL's fused output layer; adapters and wrappers around it stay.

    The model must keep packed documents apart (models/packing_probe.py).
    """
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    backbone, padded_forward = model.base_model, model.forward

    def forward(*args: Any, fused_lm_head: bool = False, labels: torch.Tensor | None = None, **kwargs: Any) -> Any:
        if not fused_lm_head or labels is None or args or "shift_labels" in kwargs:
            return padded_forward(*args, fused_lm_head=fused_lm_head, labels=labels, **kwargs)
        mask = kwargs.pop("attention_mask", None)
        if mask is not None:
            mask = mask.bool()
            kwargs |= documents(kwargs["input_ids"], mask)
        scored = labels != _IGNORED
        scored[:, 0] = False
        if mask is not None:
            scored &= mask & mask.roll(1, dims=1)  # a document's first token has nothing before it
        before = (scored if mask is None else scored[mask][None])[:, 1:]
        with _only(backbone, before):
            found = padded_forward(fused_lm_head=True, shift_labels=labels[scored][None], **kwargs)
        for field in fields(found):
            value = getattr(found, field.name)
            if isinstance(value, torch.Tensor) and value.dim() == 2:  # a number a scored token
                setattr(found, field.name, value.new_zeros(scored.shape).masked_scatter(scored, value)[:, 1:])
        return found

    # `generate` reads the arguments that a model takes.
    model.forward = functools.wraps(padded_forward)(forward)


def documents(input_ids: torch.Tensor, mask: torch.Tensor) -> dict[str, Any]:
    """Arguments of a model for the real tokens of a padded batch as one row.

    Args:
        input_ids: `[sequences, longest]`.
        mask: bool, the same shape; the real tokens of a sequence are next to each other.

    Returns:
        `input_ids` and `position_ids` `[1, tokens]`, `seq_idx`, and the boundaries as in `data.collate.PackedCollator`.
    """
    lengths = mask.sum(dim=1)
    bounds = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    longest = int(lengths.max())
    positions, numbers = mask.cumsum(dim=1) - 1, torch.arange(len(mask), device=mask.device, dtype=torch.int32)
    return {
        "input_ids": input_ids[mask][None],
        "position_ids": positions[mask][None],
        "seq_idx": numbers[:, None].expand_as(mask)[mask][None],
        **dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), bounds),
        **dict.fromkeys(("max_length_q", "max_length_k"), longest),
    }


@contextmanager
def _only(backbone: torch.nn.Module, wanted: torch.Tensor) -> Iterator[None]:
    """The last hidden states at the wanted positions alone, bool `[1, tokens - 1]`, while the context is open."""

    def select(module: torch.nn.Module, inputs: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[:, :-1][wanted][None]
        return output

    hook = backbone.register_forward_hook(select)
    try:
        yield
    finally:
        hook.remove()
