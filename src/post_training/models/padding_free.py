"""Micro-batches without padding, and the output layer only where a log-probability is needed; the losses stay TRL's.

TRL pads the sequences of a micro-batch to the longest one: at four preference pairs half of the work is padding. It reads
nothing but per-token results of its fused output layer (`trl.trainer.utils.add_fused_lm_head`). So the model's forward pass,
and nothing else, is changed: the tokens go through the layers as one row of documents (models/attention.py), the output
layer gets the positions before labelled tokens, and the results are put where TRL expects them, a number a token. Every loss and
metric of TRL's trainers has then the value and the gradient that it has with padding. Where everything lies is written down
by the collator (data/collate.py), on the CPU and ahead of time, as `layout` of a batch:

    inputs   arguments of the model for all documents as one row, where the batch does not have them already
    before   int64 [n]: the positions in that row whose next token has a log-probability in the loss
    targets  int64 [1, n]: those next tokens
    places   int64 [n]: where TRL expects their results, in [sequences, longest answer] flattened; without it, it expects a sum
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch


def without_padding(model: Any) -> None:
    """Change the forward pass of a model that has TRL's fused output layer; adapters and wrappers around it stay.

    The model must keep packed documents apart (models/packing_probe.py). Batches without `layout` take the path that they had.
    """
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    backbone, original = model.base_model, model.forward

    def forward(*args: Any, layout: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        kwargs.pop("KL_layout", None)  # of KTO's other batch
        if layout is None or not kwargs.get("fused_lm_head"):
            return original(*args, **kwargs)
        labels = kwargs.pop("labels")
        if "inputs" in layout:
            kwargs.pop("attention_mask", None)
            kwargs |= layout["inputs"]
        with _only(backbone, layout["before"]):
            found = original(*args, shift_labels=layout["targets"], **kwargs)
        if "places" in layout:
            sequences, width = labels.shape
            for field in fields(found):
                value = getattr(found, field.name)
                if isinstance(value, torch.Tensor) and value.dim() == 2:  # a number a target
                    spread = value.new_zeros(sequences * (width - 1)).index_copy(0, layout["places"], value[0])
                    setattr(found, field.name, spread.view(sequences, width - 1))
        return found

    # `generate` reads the arguments that a model takes.
    model.forward = functools.wraps(original)(forward)


@contextmanager
def _only(backbone: torch.nn.Module, wanted: torch.Tensor) -> Iterator[None]:
    """The last hidden states at the wanted positions alone, int64 `[n]`, while the context is open."""

    def select(module: torch.nn.Module, inputs: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state.index_select(1, wanted)
        return output

    hook = backbone.register_forward_hook(select)
    try:
        yield
    finally:
        hook.remove()
