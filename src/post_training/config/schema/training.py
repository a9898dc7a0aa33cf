"""Optimisation, checkpoints, ranks and logging."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class EarlyStoppingConfig:
    """End a stage when its held-out loss has stopped falling. Needs `evaluation.during_training_steps`."""

    patience: int = 3
    """Evaluations in a row without a better held-out loss before training stops."""
    min_delta: float = 0.0
    """By how much the loss must be lower than the best one to count as better, in nats."""


@dataclass
class TrainingConfig:
    """Length, batch and optimiser. Exactly one of the four lengths is given."""

    max_steps: int | None = None
    """Length in optimizer steps."""
    num_training_samples: int | None = None
    """Length in sequences (packed ones with packing): ceil(samples / effective_batch_size) steps."""
    num_training_tokens: int | None = None
    """Length in tokens: ceil(tokens / (effective_batch_size * max_seq_length)) steps. SFT with packing only."""
    num_train_epochs: float | None = None
    """Length in passes over the mixed data, each in another order and packing: ceil(sequences * epochs / effective_batch_size)
    steps."""
    effective_batch_size: int = 32
    """Sequences (pairs for DPO) per optimizer step over all devices; gradient accumulation follows from it."""
    per_device_train_batch_size: int | str = 1
    """Sequences (pairs for DPO) per forward pass of one device, or `auto`: the largest power of two that divides a device's share
    of the step and fits by the predicted memory, decided when the job starts. Never makes a stage stale."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass: less memory, about a third more compute. Never makes stale."""
    use_liger_kernel: bool = False
    """Liger's fused layer kernels (GPU, extra `cuda`). Never makes a stage stale."""
    deterministic: bool = False
    """Deterministic kernels on GPUs, so that a resumed run ends with the same bits; some are slower, and an operation without
    one is an error. The CPU needs none of it. Never makes a stage stale."""
    learning_rate: float = 2.0e-5
    """Peak learning rate."""
    warmup_ratio: float = 0.03
    """Share of the steps in which the learning rate rises from 0, in [0, 1)."""
    lr_scheduler_type: str = "cosine_with_min_lr"
    """A scheduler of Transformers: `linear`, `cosine`, `cosine_with_min_lr`, `constant_with_warmup`, ..."""
    lr_scheduler_kwargs: dict[str, Any] = field(default_factory=lambda: {"min_lr_rate": 0.1})
    """Arguments of the scheduler; `min_lr_rate` (share of the peak) belongs to `cosine_with_min_lr`."""
    weight_decay: float = 0.0
    """AdamW weight decay."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    seed: int = 42
    """Seed for dropout. Row order is controlled by `data.seed`."""
    early_stopping: EarlyStoppingConfig | None = None
    """Stop before the given length; `{}` for the defaults. The learning rate follows the given length all the same. Null = off."""
    trainer_args: dict[str, Any] = field(default_factory=dict)
    """Any further argument of TRL's SFTConfig or DPOConfig, verbatim (`{adam_beta2: 0.95}`)."""


@dataclass
class CheckpointingConfig:
    """Checkpoints during training. Never makes a stage stale."""

    save_steps: int = 500
    """Steps between full checkpoints (`checkpoints/checkpoint-*`), from which a run resumes."""
    save_total_limit: int | None = 2
    """Full checkpoints kept, 2 or more, so that one complete checkpoint always remains. Null = all."""
    inference_checkpoint_steps: int | None = None
    """Steps between model-only saves (`inference_checkpoints/step-*`). Null, zero or less = off."""
    inference_checkpoint_path: str | None = None
    """Another folder for them; each run gets its own below it. Null = in the run directory."""


@dataclass
class DeepSpeedConfig:
    """DeepSpeed ZeRO. Never makes a stage stale."""

    config_path: str | None = None
    """A DeepSpeed YAML, or a shipped one by name: `zero2`, `zero3`, `zero3_offload`. Null = off unless `config` is given."""
    config: dict[str, Any] = field(default_factory=dict)
    """DeepSpeed keys that override the file's."""


@dataclass
class AccelerateConfig:
    """How ranks are started. Never makes a stage stale."""

    num_processes: int | None = None
    """Ranks on a machine; under Slurm on a node without GPUs. Null = one a GPU, or one on the CPU."""
    use_cpu: bool = False
    """Train on the CPU although there are GPUs, one rank in place of each."""
    mixed_precision: str | None = None
    """`no`, `bf16` or `fp16`; must match `model.dtype`. Null = the one that matches."""
    dynamo_backend: str = "no"
    """torch.compile backend (`no`, `inductor`, ...)."""
    use_deepspeed: bool | None = None
    """Null = on when `deepspeed.config_path` or `deepspeed.config` is given; false = off in any case."""
    deepspeed_multinode_launcher: str = "standard"
    """Ranks are started by srun, so only `standard` exists."""
    same_network: bool = True
    """All nodes reach the first one by its name; only true is possible."""
    rdzv_backend: str = "static"
    """Ranks meet at a fixed address and port; only `static` is possible."""


@dataclass
class LoggingConfig:
    """Metrics and their logging. Never makes a stage stale."""

    report_to: list[str] = field(default_factory=lambda: ["tensorboard"])
    """What Transformers reports to: `tensorboard`, `wandb`, `trackio`, `mlflow`, `comet_ml`, `clearml`, `swanlab`, ..., or `none`."""
    wandb_project: str | None = None
    """W&B project; the API key comes from the environment only."""
    logging_steps: int = 10
    """Steps between two lines of `logs/metrics.jsonl`."""
    include_num_input_tokens_seen: bool = True
    """Log the tokens seen so far, padding not counted."""
    loss_spike_sigmas: float | None = 6.0
    """Warn of a loss this many standard deviations above the mean of the last 128 steps. Null = off."""
