"""Collectives over the ranks of a run; a process without a group is the only rank."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


def barrier() -> None:
    """Wait for all ranks."""
    if dist.is_initialized():
        dist.barrier()


def place() -> tuple[int, int]:
    """Number of this rank, and of all ranks."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def leave() -> None:
    """Wait for all ranks, and end the process group."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def from_rank_0(compute: Callable[[], T]) -> T:
    """What rank 0 alone computes, on all ranks: one that computed it later could see what another has just written."""
    if not dist.is_initialized():
        return compute()
    values: list[Any] = [compute() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(values, src=0)
    result: T = values[0]
    return result


def gather(values: torch.Tensor) -> torch.Tensor:
    """`values` `[n]` of every rank, `[ranks, n]`, in the same type. Every rank must call it."""
    if not dist.is_initialized():
        return values[None]
    if dist.get_backend() == "nccl":  # it takes nothing else
        values = values.cuda()
    everyone = values.new_empty(dist.get_world_size() * len(values))
    # The name that it has in older versions, such as a site's, and a deprecated one in newer.
    (getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor)(everyone, values)
    return everyone.reshape(-1, len(values))


def gather_objects(value: T) -> list[T]:
    """`value` of every rank, in the order of ranks, on all of them."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def settle_buckets(model: Any) -> None:
    """Have DDP arrange its buckets of gradients before the first step, and in every start in the same way.

    After its first backward pass DDP puts the gradients into buckets anew, by the order in which they came. In which order
    ranks are added up depends on a gradient's place in its bucket, so with three ranks or more a resumed run's first step
    would be rounded differently from the same step of a run without interruption. That first pass is taken here, over
    zeros, one of each parameter: random states, the optimizer and the gradients stay as they are.
    """
    if not isinstance(model, DistributedDataParallel):
        return
    module, trained = model.module, [parameter for parameter in model.parameters() if parameter.requires_grad]
    forward = module.forward
    module.forward = lambda: torch.stack([parameter.flatten()[:1].sum() for parameter in trained]).sum() * 0.0
    try:
        model().backward()
    finally:
        module.forward = forward
    model.zero_grad(set_to_none=True)
