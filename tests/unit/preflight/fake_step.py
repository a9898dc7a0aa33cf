"""Peak memory of one training step of a model of real size, by torch's own tracker on fake tensors, which take no memory.

What runs is what a GPU would: Transformers' model, PEFT's adapters, our attention by PyTorch's varlen kernels (their fake
implementations), TRL's fused output layer, whose Triton kernels write in place and so are left out, and the fused AdamW. Gradients of
an earlier micro-batch and the optimizer's states are there already.

ZeRO-3 is one rank of 8, with DeepSpeed's buffers (its runtime/zero/stage3.py): parameters, their gradients and AdamW's states lie in
shards; a layer gathers its parameters before it computes and keeps them until more than `stage3_max_live_parameters` are there, oldest
first; each gradient goes through the bucket and is dropped; at the step the shard's gradients are flattened and cast to float32.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from deepspeed.runtime.zero.linear import LinearFunctionForZeroStage3
from peft import LoraConfig, get_peft_model
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.distributed._tools.mem_tracker import MemTracker
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM
from trl.kernels import chunked_logprob
from trl.trainer import utils
from trl.trainer.utils import add_fused_lm_head

from post_training.models import attention
from post_training.models.padding_free import without_padding

RANKS = 8


class Tracker(MemTracker):
    """Without statistics of each module, which would take longer than the step."""

    def _nothing(self, *_: Any) -> None:
        """In place of the hooks."""

    _pre_fw_hook = _post_fw_hook = _pre_bw_hook = _post_bw_hook = _nothing


class Shards:
    """A model's parameters in shards, gathered where they are needed."""

    def __init__(self, model: Any, max_live: int, trained: bool) -> None:
        self.shapes = {parameter: parameter.shape for parameter in model.parameters()}
        self.max_live, self.live = max_live, dict[Any, int]()
        self.size = sum(shape.numel() for shape in self.shapes.values()) // RANKS
        self.kept = [torch.empty(self.size, dtype=torch.bfloat16)]
        for parameter in self.shapes:
            parameter.data = torch.empty(0, dtype=torch.bfloat16)
            if trained:
                parameter.register_post_accumulate_grad_hook(self._reduce)
        base = model.model
        for part in (base.embed_tokens, *base.layers, base.norm):
            part.register_forward_pre_hook(lambda module, _: self.gather(*module.parameters()))
            part.register_full_backward_pre_hook(lambda module, _: self.gather(*module.parameters()))
        base.register_forward_hook(lambda *_: self.gather(model.lm_head.weight))

    def gather(self, *parameters: Any) -> None:
        for parameter in parameters:
            if parameter not in self.live:
                parameter.data = torch.empty(self.shapes[parameter], dtype=torch.bfloat16)
            self.live[parameter] = self.live.pop(parameter, parameter.numel())
        while sum(self.live.values()) > self.max_live and len(self.live) > len(parameters):
            self.release(next(iter(self.live)))

    def release(self, *parameters: Any) -> None:
        for parameter in parameters or list(self.live):
            del self.live[parameter]
            parameter.data = torch.empty(0, dtype=torch.bfloat16)

    def _reduce(self, parameter: Any) -> None:
        torch.empty_like(parameter.grad)  # what is sent
        parameter.grad = None


def peak_bytes(
    *,
    sizes: dict[str, Any],
    tokens: int,
    sequences: int = 1,
    checkpointing: bool = True,
    zero3: dict[str, int] | None = None,
    lora: int | None = None,
    pairs: bool = False,
    online: bool = False,
) -> int:
    """The largest sum of all tensors during a step.

    Args:
        sizes: of a LlamaConfig.
        tokens: of each sequence.
        sequences: in one row.
        checkpointing: of activations.
        zero3: elements of DeepSpeed's `live` parameters and of its `bucket`; None = one GPU without DeepSpeed.
        lora: rank of adapters of all linear layers.
        pairs: whether the loss is DPO's.
        online: whether a reference model is computed before the policy.
    """
    frozen = lora is not None
    with _as_on_a_gpu(), FakeTensorMode(allow_non_fake_inputs=True):
        narrow = zero3 is not None or frozen
        policy = _model(sizes, narrow, checkpointing, lora)
        reference = _model(sizes, narrow, checkpointing=False).eval() if online else None
        tracker = Tracker()
        if zero3 is None:
            tracker.track_external(*(model for model in (policy, reference) if model is not None))
        with tracker:
            shards = Shards(policy, zero3["live"], trained=True) if zero3 else None
            of_reference = Shards(reference, zero3["live"], trained=False) if zero3 and reference else None
            if shards:
                trained = [torch.nn.Parameter(torch.empty(shards.size))]
                kept = [
                    torch.empty(shards.size, dtype=torch.bfloat16),
                    torch.empty(zero3["bucket"], dtype=torch.bfloat16),
                ]
            else:
                trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
                for parameter in trained:
                    parameter.grad = torch.zeros_like(parameter)
            optimizer = torch.optim.AdamW(trained, fused=True)
            for parameter in trained:
                moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                optimizer.state[parameter] = {"step": torch.zeros(()), **moments}
            batch = _batch(tokens, sequences)
            with nullcontext() if zero3 else torch.autocast("cpu", torch.bfloat16):
                others = None
                if reference is not None:
                    with torch.no_grad(), _gathering(of_reference):
                        others = reference(**batch).log_probs
                    if of_reference:
                        of_reference.release()
                with _gathering(shards):
                    found = policy(**batch)
            loss = found.loss
            if pairs:
                margins = found.log_probs.view(2, -1).sum(1) - (0 if others is None else others.view(2, -1).sum(1))
                loss = -torch.nn.functional.logsigmoid(0.1 * (margins[0] - margins[1]))
            del found, others
            with _gathering(shards):
                loss.backward()
            if shards:
                shards.release()
                trained[0].grad = kept[0].clone().float()
            optimizer.step()
        return sum(places["Total"] for places in tracker.get_tracker_snapshot("peak").values())


def _model(sizes: dict[str, Any], narrow: bool, checkpointing: bool, lora: int | None = None) -> Any:
    config = LlamaConfig(**sizes, use_cache=False, attn_implementation=attention.register())
    with torch.device("meta"), unset_fake_temporarily():
        model: Any = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16 if narrow else torch.float32)
        add_fused_lm_head(model)
        without_padding(model)
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        if lora is not None:
            model.enable_input_require_grads()
            model = get_peft_model(model, LoraConfig(r=lora, target_modules="all-linear"))
    made: dict[Any, Any] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, old in tensors.items():
                if old is not None and old not in made:
                    new = torch.empty_like(old, device="cpu")
                    made[old] = torch.nn.Parameter(new, old.requires_grad) if tensors is module._parameters else new
                tensors[name] = None if old is None else made[old]
    return model.train()


def _batch(tokens: int, sequences: int) -> dict[str, Any]:
    """All tokens but the first of each sequence are scored."""
    total = tokens * sequences
    bounds = torch.arange(0, total + 1, tokens, dtype=torch.int32)
    places = torch.arange(sequences * (tokens - 1))
    lengths = {"max_length_q": tokens, "max_length_k": tokens, "cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds}
    ids = torch.zeros((1, total), dtype=torch.int64)
    layout = {"before": places, "targets": torch.zeros((1, len(places)), dtype=torch.int64)}
    return {
        "input_ids": ids, "position_ids": torch.zeros_like(ids), "labels": ids, "layout": layout, "fused_lm_head": True, **lengths,
    }  # fmt: skip


@contextmanager
def _as_on_a_gpu() -> Iterator[None]:
    """The kernels that a GPU would take, for fake tensors of the CPU."""
    in_place = dict.fromkeys(("_forward_tile", "_backward_tile", "_addmm_fp32"), lambda *_, **__: None)
    with ExitStack() as stack:
        for name, function in in_place.items():
            stack.enter_context(mock.patch.object(chunked_logprob, name, function))
        stack.enter_context(mock.patch.object(attention, "_kernel_type", lambda *_: torch.bfloat16))
        yield


@contextmanager
def _gathering(shards: Shards | None) -> Iterator[None]:
    """TRL's fused output layer asks for its weight by itself."""
    if shards is None:
        yield
        return

    @contextmanager
    def gathered(weight: Any, *_: Any) -> Iterator[None]:
        shards.gather(weight)
        yield

    # Its linear layers keep the parameter for the backward pass, not a view of what was gathered.
    with (
        mock.patch.object(utils, "maybe_gather_lm_head_ctx", gathered),
        mock.patch.object(functional, "linear", LinearFunctionForZeroStage3.apply),
    ):
        yield
