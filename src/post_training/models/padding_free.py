"""Micro-batches without padding, and the output layer only where a result is needed; the losses stay TRL's.

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
    ends     in place of the last three, for a model with one output a document: int64 [documents], where it is read
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutputWithPast


def without_padding(model: Any) -> None:
    """Change the forward pass of a model that has TRL's fused output layer, or one output; adapters and wrappers around it stay.

    The model must keep packed documents apart (models/packing_probe.py). Batches without `layout` take the path that they had.
    """
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    backbone, original = model.base_model, model.forward
    classifies = takes_documents(model)

    def forward(*args: Any, layout: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        if layout is not None and classifies:
            with _only(backbone, layout["ends"]):
                hidden = backbone(**layout["inputs"], use_cache=False).last_hidden_state
            return SequenceClassifierOutputWithPast(logits=model.score(hidden[0]))
        kwargs.pop("KL_layout", None)  # of KTO's other batch
        if layout is None or not kwargs.get("fused_lm_head"):
            return original(*args, **kwargs)
        labels = kwargs.pop("labels")
        if "inputs" in layout:
            kwargs.pop("attention_mask", None)
            kwargs |= layout["inputs"]
        if getattr(model, "uses_own_forward", False):
            found = original(*args, shift_labels=layout["targets"], before=layout["before"], **kwargs)
        else:
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


def takes_documents(model: Any) -> bool:
    """Whether a sequence-classification model, adapters around it aside, is one whose forward pass Transformers has for all families."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    return isinstance(model, GenericForSequenceClassification)


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
