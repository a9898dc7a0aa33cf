"""The starting model, built or loaded, and adapters."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class FromScratchConfig:
    """A small model with random weights and a tokenizer trained on your files."""

    model_type: str = "llama"
    """Architecture, a `model_type` of Transformers (`llama`, `qwen3`, `olmo2`, ...)."""
    config: dict[str, Any] = field(default_factory=dict)
    """Arguments of that architecture's configuration (`hidden_size`, `num_hidden_layers`, ...)."""
    vocab_size: int = 2000
    """Entries of the byte-level BPE tokenizer, control tokens included."""
    corpus: list[str] = field(default_factory=list)
    """JSON Lines files whose strings the tokenizer is trained on."""
    seed: int = 0
    """Seed of the weights."""


@dataclass
class LoraConfig:
    """Low-rank adapters beside frozen weights. Usual learning rates are ten times those of full fine-tuning."""

    r: int = 16
    """Rank of the adapters."""
    alpha: float = 32.0
    """The adapters' output is scaled by alpha / r."""
    dropout: float = 0.0
    """Dropout before the adapters, in [0, 1). TRL disables it for preferences, and the run's first lines say so."""
    target_modules: Any = "all-linear"
    """`all-linear` = every linear layer but the output embedding, or a list of names such as `[q_proj, v_proj]`."""
    modules_to_save: list[str] | None = None
    """Modules that are trained as a whole beside the adapters, such as `[embed_tokens, lm_head]`; of a model whose two embeddings
    are one matrix, `[embed_tokens]`. They cost the memory of full training. Null = none."""
    trainable_tokens: list[str] | None = None
    """Tokens whose rows of the embeddings are trained, such as `["<|im_start|>", "<|im_end|>"]` of a model that has never
    seen them. Null = none."""


@dataclass
class QuantizationConfig:
    """Frozen weights in 4 bits beside adapters (QLoRA), by bitsandbytes. Other values than those below are refused."""

    bits: int = 4
    """Bits of a weight of a linear layer. Embeddings, norms and the output layer stay in `dtype`."""
    type: str = "nf4"
    """Levels of a weight: `nf4`, made for values that are normally distributed."""
    double: bool = True
    """Store the scales of the blocks in 8 bits, too: 0.4 bits less for a weight."""


@dataclass
class ModelConfig:
    """The model that the first stage starts from."""

    name_or_path: str | None = None
    """Hugging Face model id or local folder; a folder of adapters by PEFT is merged into the model that they were trained on.
    Null only together with `from_scratch`."""
    revision: str | None = None
    """Branch, tag or commit of a Hub model; recorded as a commit. Null = `main`."""
    from_scratch: FromScratchConfig | None = None
    """Build the model instead of loading one."""
    lora: LoraConfig | None = None
    """Train adapters instead of all weights; `{}` for the defaults. Full and inference checkpoints hold only the adapters;
    the export has them merged into the weights. Null = off."""
    quantization: QuantizationConfig | None = None
    """Hold the frozen weights in 4 bits; `{}` for the defaults. Needs `lora`. The reference of preferences and the export are
    of the rounded weights, which the adapters have learned on. Null = off."""
    attn_implementation: str = "auto"
    """Attention backend: `auto`, `varlen` (packed documents without a mask, nothing to install), `eager`, `sdpa`,
    `flex_attention`, `flash_attention_2`, `_3`, `_4`, or a kernel of the Hub, `org/name` or `org/name@commit`, whose code then runs
    on every rank. `auto` = `varlen`, or `sdpa` or `eager` for a model family that it cannot compute. Makes no stage stale, but
    for a kernel of the Hub, which is an input of training."""
    dtype: str = "bfloat16"
    """Type of weights and activations in training: `float32`, `bfloat16`, `float16`."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off unless you have read it."""
