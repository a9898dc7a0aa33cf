"""Peak memory of training on one device, from the shape of the model and the longest batch.

    peak = weights + optimizer + reference + buffers + the largest of these moments of a step:
           forward     kept gradients + activations + cast weights
           head        kept gradients + activations + tile and gradients of the output layer
           layers      kept gradients + activations + what the last layer works with + the head's gradient, where embeddings are tied
           embedding   kept gradients + its gradient, while it is added to what is there
           optimizer   gradients + DeepSpeed's copies of them, in float32

Sources. States: Rajbhandari et al. 2020, "ZeRO" (arXiv:1910.02054), section 3: weights, gradients and the two moments of Adam,
with a float32 master copy under DeepSpeed, divided over the ranks by stage (1: optimizer, 2: and gradients, 3: and weights).
Activations: Korthikanti et al. 2022 (arXiv:2205.05198), section 4, count what each operation of a layer keeps for its
backward pass. Theirs is GPT with dropout; here are the decoder layers of Transformers 5 (RMSNorm, rotary positions, gated
feed-forward, no dropout), counted with `torch.autograd.graph.saved_tensors_hooks`. A token keeps in each layer, with h = hidden
size, q = heads x head size, f = feed-forward size, c = bytes of the compute type:

    norms       2 x (residual + normalised + output) = 16h + 2ch in float32; under bfloat16 weights 2 x (4h + ch + ch)
    attention   c x (q, k, v, out) = 4cq: keys and values are repeated to all heads, unless flash attention takes them as they are;
                `sdpa` keeps its mask, c x tokens x tokens a layer where rows are packed or padded, `eager` its probabilities;
                `varlen` and flash attention keep none, and need no padding
    feed-forward   c x (gate, its activation, up, product) = 4cf

Under autocast each linear layer keeps an input of its own and its weights cast once more. With gradient checkpointing a layer
keeps its input alone, and one layer at a time is computed again. The output embedding goes by tiles of TRL's fused head:
4,096 tokens x 32,768 entries, and the gradients of its weight and input in float32, which are then cast to the weights' type.

DeepSpeed (0.19, runtime/zero): a rank's shard of the gradients, and a float32 copy of it at the step (under ZeRO-3 of a sub-group of
1e9 elements, flattened first); buckets; under ZeRO-3 the parameters that are gathered, which are dropped before the step.
tests/unit/preflight/test_preflight_memory.py holds all of this against torch's own tracker.
"""

from dataclasses import asdict, dataclass
from typing import Any

from post_training.core.format import GIB, gib
from post_training.models.weights import BYTES
from post_training.preflight.shape import ModelShape
from post_training.preflight.subject import Subject

_TILE = (4096, 32768)
# Bytes a parameter of the moments that an optimizer of Transformers keeps; AdamW in all its forms unless named here.
_MOMENTS = {"8bit": 2, "4bit": 1, "adafactor": 0, "sgd": 0, "lion": 4, "rmsprop": 4, "adagrad": 4}
# Elements, where a DeepSpeed file says nothing or `auto`.
_BUCKET, _LIVE, _PREFETCH, _SUB_GROUP = 500_000_000, 1_000_000_000, 50_000_000, 1_000_000_000
# Bytes of each of a tile's elements that operations hold which on a GPU are one Triton kernel.
_CPU_TILE = 29
# What libraries load with the first step: on the CPU memory is that of the process, and not of its tensors alone.
_LOADED_BYTES = 40 << 20
CONTEXT_BYTES = int(0.7 * GIB)
"""What a CUDA context and the libraries' workspaces take beside the tensors."""
_PROCESS_BYTES = 700 << 20
"""Of a rank on the CPU without any tensor: Python, torch, TRL."""


@dataclass(frozen=True)
class Memory:
    """Predicted bytes on one device at the peak of a step."""

    weights: int
    gradients: int
    optimizer: int
    reference: int
    activations: int
    head: int
    buffers: int
    step: int
    """DeepSpeed's copies of gradients while the optimizer steps."""
    peak: int

    def describe(self) -> str:
        """The parts that matter, largest first."""
        parts = {name: size for name, size in asdict(self).items() if name != "peak" and size > 0.01 * self.peak}
        listed = sorted(parts.items(), key=lambda pair: -pair[1])
        return f"{gib(self.peak)} ({', '.join(f'{name} {gib(size)}' for name, size in listed)})"


def predict(subject: Subject) -> Memory:
    """Memory of one training device at the longest micro-batch that the mix can give; the parts are those at the peak."""
    weights, gradients, optimizer, buffers = states(subject)
    reference = _reference_bytes(subject)
    # A shard's gradients have a place of their own.
    kept = gradients if subject.accumulation > 1 or (subject.zero_stage or 0) >= 2 else 0
    moments = [(kept, *moment, 0, buffers) for moment in batch_moments(subject, *longest_batch(subject))]
    embedding = _embedding_bytes(subject) * (3 if subject.shape.tied else 2 if subject.deepspeed else 1)
    moments += [
        (kept, 0, embedding, 0, buffers),
        (gradients, 0, 0, _step_bytes(subject), buffers - _live_bytes(subject)),
    ]
    gradients, activations, head, step, buffers = max(moments, key=sum)
    peak = weights + optimizer + reference + gradients + activations + head + step + buffers
    peak += _LOADED_BYTES if subject.topology.device == "CPU" else 0
    return Memory(weights, gradients, optimizer, reference, activations, head, buffers, step, peak)


def needed_bytes(subject: Subject, peak: float) -> float:
    """What a peak takes of the memory that the device has; on the CPU all ranks of the machine share it."""
    topology = subject.topology
    return peak + CONTEXT_BYTES if topology.device == "GPU" else (peak + _PROCESS_BYTES) * topology.devices_per_node


def longest_batch(subject: Subject) -> tuple[int, int]:
    """Sequences of the longest micro-batch, and tokens of each: as many as data/deal.py deals at most, all of the greatest length."""
    per_device = int(subject.training["per_device_train_batch_size"])
    mix = subject.mix
    limit = int(subject.own["max_seq_length"])
    longest = min(limit, int(mix.get("longest_row") or limit))
    if mix["config"]["packing"]:
        return 1, per_device * longest
    return per_device * (2 if mix["config"]["rows"] == "preference" else 1), longest


def checkpoint_bytes(subject: Subject) -> int:
    """One full checkpoint: weights as the trainer holds them, and the optimizer's states."""
    if subject.deepspeed is None:
        return 12 * subject.trainable
    narrow = subject.view["model"]["dtype"] != "float32"
    return (2 * subject.shape.parameters if narrow else states(subject)[0]) + 12 * subject.trainable


def states(subject: Subject) -> tuple[int, int, int, int]:
    """Bytes of weights, gradients, optimizer states (with master weights), and communication buffers."""
    shape, view = subject.shape, subject.view
    trained, ranks = subject.trainable, subject.topology.world_size
    compute = BYTES[view["model"]["dtype"]]
    moments = _moments(view["training"]["trainer_args"].get("optim"))
    if subject.deepspeed is None:
        frozen = 0 if view["model"]["lora"] is None else _base_bytes(shape, view)
        buckets = 4 * trained if ranks > 1 else 0
        return frozen + 4 * trained, 4 * trained, moments * trained, buckets
    zero, stage = subject.zero, subject.zero_stage or 0
    beside = compute * trained if view["model"]["lora"] is not None else 0
    weights = (_base_bytes(shape, view) + beside) // (ranks if stage >= 3 else 1)
    gradients = trained * compute // (ranks if stage >= 2 else 1)
    optimizer = (4 + moments) * trained // (ranks if stage >= 1 else 1)
    if _offloads(zero, "offload_optimizer"):
        optimizer = 0
    # Transformers puts hidden x hidden for `auto`.
    bucket = min(_elements(zero, "reduce_bucket_size", _BUCKET, shape.hidden**2), trained)
    buffers = compute * bucket * (2 if zero.get("overlap_comm") else 1)
    if stage >= 3 and _offloads(zero, "offload_param"):
        weights = 0
    return weights, gradients, optimizer, buffers + _live_bytes(subject)


def _base_bytes(shape: ModelShape, view: dict[str, Any]) -> int:
    """Weights in the compute type, those of linear layers in 4 bits where they are quantised: with their scales 4.13 bits each
    (Dettmers et al. 2023, arXiv:2305.14314, section 3), and the one layer that is turned back at a time."""
    compute, quantization = BYTES[view["model"]["dtype"]], view["model"]["quantization"]
    if quantization is None:
        return shape.parameters * compute
    bits = 4 + (8 / 64 + 32 / (64 * 256) if quantization["double"] else 32 / 64)
    turned_back = compute * shape.hidden * shape.intermediate
    linear = shape.parts.linear_parameters
    return int(linear * bits / 8) + (shape.parameters - linear) * compute + turned_back


def _live_bytes(subject: Subject) -> int:
    """Parameters that ZeRO-3 has gathered; one rank holds all of them anyway."""
    zero, shape, total = subject.zero, subject.shape, subject.shape.parameters
    if subject.zero_stage != 3 or subject.topology.world_size == 1:
        return 0
    live = min(_elements(zero, "stage3_max_live_parameters", _LIVE, _LIVE), total)
    prefetched = min(_elements(zero, "stage3_prefetch_bucket_size", _PREFETCH, shape.hidden**2), total)
    return BYTES[subject.view["model"]["dtype"]] * (max(live, shape.largest_layer, shape.embedding) + prefetched)


def _step_bytes(subject: Subject) -> int:
    """What DeepSpeed's optimizer adds to a rank's gradients: their copy in float32, and one that is flattened before."""
    stage, ranks = subject.zero_stage, subject.topology.world_size
    if not stage or _offloads(subject.zero, "offload_optimizer"):
        return 0
    share = subject.trainable // ranks
    if stage == 3:
        share = min(share, _elements(subject.zero, "sub_group_size", _SUB_GROUP, _SUB_GROUP))
    return share * (4 if stage == 2 else 4 + BYTES[subject.view["model"]["dtype"]])


def _embedding_bytes(subject: Subject) -> int:
    """The gradient of an embedding in the type of the weights; nothing where no more than adapters are trained.

    Where rows of it are trained, a gradient of all of it is made in the type of the frozen weights.
    """
    lora = subject.view["model"]["lora"]
    if lora is not None and lora["trainable_tokens"]:
        return subject.shape.embedding * BYTES[subject.view["model"]["dtype"]]
    if lora is not None and not subject.shape.parts.embeddings_trained(lora):
        return 0
    return subject.shape.embedding * (BYTES[subject.view["model"]["dtype"]] if subject.deepspeed is not None else 4)


def batch_moments(subject: Subject, sequences: int, length: int) -> list[tuple[int, int]]:
    """Bytes of activations, and of the output embedding, at the end of a forward pass, in the head's backward pass, and in a layer's."""
    shape, view = subject.shape, subject.view
    tokens = sequences * length
    compute, residual = BYTES[view["model"]["dtype"]], _residual_bytes(subject)
    checkpointing, lora = view["training"]["gradient_checkpointing"], view["model"]["lora"]
    layer = layer_bytes(subject, sequences, length)
    layers = shape.layers * (residual * shape.hidden * tokens if checkpointing else layer)
    if lora is not None and lora["trainable_tokens"]:
        layers += compute * shape.embedding  # the output embedding with the rows in their places
    # The last norm, and what the output layer takes of it.
    normed = tokens * shape.hidden * (12 if residual == 4 else 10)
    casts = _autocast_bytes(subject)
    held = 0 if checkpointing else casts  # the others live to the end of the forward pass alone
    # Gradients between the operations of a layer.
    working = compute * tokens * ((3 if lora else 2) * shape.intermediate + (2 if lora else 1) * shape.hidden)
    working += residual * shape.hidden * tokens + (layer if checkpointing else 0)
    width = min(shape.vocabulary, _TILE[1])
    tile = min(tokens, _TILE[0]) * width * (compute + (_CPU_TILE if subject.topology.device == "CPU" else 0))
    tile += width * shape.hidden * compute if casts else 0
    gradient = _embedding_bytes(subject)
    # In float32, and then cast.
    head = tile + 4 * tokens * shape.hidden + shape.embedding * 4 * bool(gradient)
    head = head + (gradient if subject.deepspeed is not None else 0) if shape.has_head else 0
    return [
        (layers + normed + casts, 0),
        (layers + normed + held, head),
        (layers + held + working, gradient if shape.tied else 0),
    ]


def layer_bytes(subject: Subject, sequences: int, length: int) -> int:
    """What one layer keeps for its backward pass, without checkpointing."""
    shape, view = subject.shape, subject.view
    c, lora, tokens = BYTES[view["model"]["dtype"]], view["model"]["lora"], sequences * length
    h, f = shape.hidden, shape.intermediate
    linear = shape.parts.linear
    q, kv = shape.heads * shape.head_size, shape.key_value_heads * shape.head_size
    autocast = subject.deepspeed is None and c < 4
    gated = any(name in linear for name in ("gate_proj", "gate_up_proj", "w1")) or not linear
    inputs = (5 * h + q if autocast or (lora and c < 4) else 2 * h) + (f if lora else 0)
    norms = 4 * h + (0 if lora else _residual_bytes(subject) * h)
    packed = subject.mix["config"]["packing"]
    by_document = subject.attention == "varlen" and (packed or subject.packing.safe)  # the rest is padded, with a mask
    flash = subject.attention.startswith(("flash", "kernels")) or by_document
    attention = c * (2 * q + 2 * (kv if flash else q)) + 4 * shape.heads
    if shape.model_type.startswith("qwen3"):  # norms of queries and keys
        attention += 8 * (q + kv)
    token = 2 * norms + c * inputs + attention + c * f * ((4 if gated else 2) - (1 if lora else 0))
    square = sequences * length * length
    if subject.attention == "eager":
        scores = shape.heads * square * (c if c == 4 else 4 + c)
    else:
        unmasked = flash or subject.attention == "flex_attention" or (sequences == 1 and not packed)
        scores = 0 if unmasked else c * square
    return token * tokens + scores


def _residual_bytes(subject: Subject) -> int:
    """Between the layers: float32 where the weights are, else the compute type."""
    view = subject.view
    narrow = subject.deepspeed is not None or view["model"]["lora"] is not None
    return BYTES[view["model"]["dtype"]] if narrow else 4


def _autocast_bytes(subject: Subject) -> int:
    """Weights of the linear layers that autocast has cast for this pass."""
    view, shape = subject.view, subject.shape
    if subject.deepspeed is not None or view["model"]["dtype"] == "float32" or view["model"]["lora"] is not None:
        return 0
    return BYTES[view["model"]["dtype"]] * (shape.parameters - shape.embeddings)


def _reference_bytes(subject: Subject) -> int:
    """A reference model that is held beside the trained one; adapters are switched off instead."""
    if subject.reference is None or (subject.view["model"]["lora"] is not None and subject.reference is subject.shape):
        return 0
    narrow = subject.deepspeed or subject.view["model"]["lora"]
    size = _base_bytes(subject.reference, subject.view) if narrow else 4 * subject.reference.parameters
    return size // (subject.topology.world_size if subject.zero_stage == 3 else 1)


def _moments(name: str | None) -> int:
    return next((size for part, size in _MOMENTS.items() if part in str(name or "").lower()), 8)


def _offloads(zero: dict[str, object], key: str) -> bool:
    section = zero.get(key)
    return isinstance(section, dict) and section.get("device") not in (None, "none")


def _elements(zero: dict[str, object], key: str, otherwise: int, automatic: int) -> int:
    value = zero.get(key, otherwise)
    return automatic if value == "auto" or not isinstance(value, int | float | str) else int(float(value))
