"""Floating-point operations of training a token: what the model needs, and what the hardware does.

A token costs 2 operations a parameter that it is multiplied with, forward, and 4 backward (Kaplan et al. 2020,
arXiv:2001.08361, section 2.1), and in each layer of causal attention 2 x width x document length forward and twice that
backward, because a document of L tokens has L^2 / 2 pairs. Model FLOPs (for MFU, Chowdhery et al. 2022, arXiv:2204.02311,
appendix B) stop there; hardware FLOPs (for HFU) also count the second forward pass of gradient checkpointing and the forward pass
of a reference model. Padding counts for neither.
"""

from dataclasses import dataclass

from post_training.preflight.shape import ModelShape


@dataclass(frozen=True)
class Flops:
    """Operations a token."""

    model: float
    hardware: float


def per_token(
    shape: ModelShape,
    context: float,
    *,
    lora: bool = False,
    checkpointing: bool = False,
    reference: ModelShape | None = None,
) -> Flops:
    """Operations that training spends on a token.

    Args:
        shape: of the model.
        context: mean length of the document that a token is in: sum of squared lengths / sum of lengths.
        lora: frozen weights need no gradients of their own, which saves half of the backward pass.
        checkpointing: whether the forward pass is taken twice.
        reference: a model that is run beside it.
    """
    forward = 2.0 * multiplied(shape) + 2.0 * shape.layers * shape.heads * shape.head_size * context
    model = forward * (2.0 if lora else 3.0)
    return Flops(model, model + forward * checkpointing + (2.0 * reference.parameters if reference else 0.0))


def multiplied(shape: ModelShape) -> int:
    """Parameters that a token is multiplied with: an input embedding is looked up, and tied to the output it is used once."""
    return shape.parameters - shape.idle_parameters - (0 if shape.tied else shape.embedding)
