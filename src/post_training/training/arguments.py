"""Our configuration -> the arguments of TRL's SFTConfig, DPOConfig, ...

Number formats. `bfloat16` and `float16` mean mixed precision: matrix products in that type, and a
float32 master copy of the weights that the optimizer updates, because at usual learning rates an
update is smaller than bfloat16's rounding step (150 steps at 2e-5 from loss 5.61: float32 4.9601,
with the copy 4.9603, weights in bfloat16 5.4033). DeepSpeed keeps that copy itself, so there the weights
are loaded in `model.dtype`; without it they are loaded in float32 and autocast. So switching DeepSpeed
on, which makes nothing stale, does not change what is computed either. Weights that LoRA leaves as they are
need no copy and are loaded in `model.dtype`; PEFT keeps the adapters in float32. Exports are in `model.dtype`.
"""

import importlib.util
import re
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from post_training import methods
from post_training.config.batch import BatchPlan
from post_training.config.deepspeed import deepspeed_config
from post_training.config.optimiser import check_scheduler
from post_training.core.errors import ConfigError, guess

# Arguments of TRL that a key of ours decides.
_OURS = {
    "output_dir": "paths.output_base", "max_steps": "training.max_steps",
    "num_train_epochs": "training.num_train_epochs",
    "per_device_train_batch_size": "training.per_device_train_batch_size",
    "gradient_accumulation_steps": "training.effective_batch_size", "learning_rate": "training.learning_rate",
    "warmup_ratio": "training.warmup_ratio", "warmup_steps": "training.warmup_ratio",
    "lr_scheduler_type": "training.lr_scheduler_type", "weight_decay": "training.weight_decay",
    "max_grad_norm": "training.max_grad_norm", "seed": "training.seed",
    "gradient_checkpointing": "training.gradient_checkpointing",
    "activation_checkpointing": "training.gradient_checkpointing", "use_liger_kernel": "training.use_liger_kernel",
    "full_determinism": "training.deterministic", "bf16": "model.dtype", "fp16": "model.dtype",
    "torch_compile": "accelerate.dynamo_backend", "deepspeed": "deepspeed.config",
    "save_steps": "checkpointing.save_steps", "save_strategy": "checkpointing.save_steps",
    "save_total_limit": "checkpointing.save_total_limit",
    "save_only_model": "checkpointing.inference_checkpoint_steps", "logging_steps": "logging.logging_steps",
    "report_to": "logging.report_to", "padding_free": "sft.packing",
    "remove_unused_columns": "the mix, whose rows have no other columns", "train_sampling_strategy": "data.seed",
    "dataloader_drop_last": "training.effective_batch_size",
    "include_num_input_tokens_seen": "logging.include_num_input_tokens_seen",
}  # fmt: skip
# Tracker -> the package to install, where it has another name.
_PACKAGES = {"azure_ml": "azureml-mlflow", "comet_ml": "comet-ml"}
_MIN_LR_SCHEDULERS = ("cosine_with_min_lr", "cosine_warmup_with_min_lr")


def trainer_arguments(
    view: dict[str, Any], method: str, directory: Path, plan: BatchPlan, steps: int
) -> dict[str, Any]:
    """Everything that the method's TRL configuration is made with.

    Args:
        view: the stage's flat configuration.
        method: the stage's name.
        directory: the run directory.
        plan: devices and batch.
        steps: length in optimizer steps; always given, so that TRL computes none itself.

    Raises:
        ConfigError: for values that this machine or TRL cannot work with.
    """
    training, logging = view["training"], view["logging"]
    on_cpu = plan.topology.device == "CPU"
    if on_cpu and view["model"]["dtype"] == "float16":
        raise ConfigError("model.dtype", "float16 needs a GPU; use float32 or bfloat16 on the CPU")
    if training["use_liger_kernel"]:
        _check_liger(on_cpu)
    check_scheduler(training["lr_scheduler_type"])
    backend = view["accelerate"]["dynamo_backend"].lower()
    shared = {
        "output_dir": str(directory / "checkpoints"),
        "run_name": directory.name,
        "max_steps": steps,
        "per_device_train_batch_size": plan.per_device,
        "gradient_accumulation_steps": plan.accumulation,
        "learning_rate": training["learning_rate"],
        # A float in [0, 1) is a share of the steps; `warmup_ratio` is gone from Transformers 5.
        "warmup_steps": float(training["warmup_ratio"]),
        "lr_scheduler_type": training["lr_scheduler_type"],
        "lr_scheduler_kwargs": scheduler_kwargs(training),
        "weight_decay": training["weight_decay"],
        "max_grad_norm": training["max_grad_norm"],
        "seed": training["seed"],
        # The rows' order is the mix's, the same for any number of ranks and after any resume.
        "train_sampling_strategy": "sequential",
        # Both names: TRL's default for the old one is true, and it would win over a false.
        "activation_checkpointing": training["gradient_checkpointing"],
        "gradient_checkpointing": training["gradient_checkpointing"],
        "use_liger_kernel": training["use_liger_kernel"],
        "bf16": view["model"]["dtype"] == "bfloat16",
        "fp16": view["model"]["dtype"] == "float16",
        "use_cpu": on_cpu,
        "ddp_find_unused_parameters": False,  # true costs a walk through the graph a step
        "torch_compile": backend != "no",
        "torch_compile_backend": backend if backend != "no" else None,
        "deepspeed": deepspeed_config(view),
        "trust_remote_code": view["model"]["trust_remote_code"],
        "save_strategy": "steps",
        "save_steps": view["checkpointing"]["save_steps"],
        "save_total_limit": None,  # see run_dir/checkpoints.py: rotate()
        "logging_steps": logging["logging_steps"],
        # True would log a NaN loss as 0.
        "logging_nan_inf_filter": False,
        "include_num_input_tokens_seen": "no",  # see training/measure.py
        "remove_unused_columns": False,  # a row's number is taken off by training/step_samples.py
        "report_to": _report_to(logging["report_to"]),
        "disable_tqdm": True,
        "eval_strategy": "no",
        "push_to_hub": False,
    }
    own = methods.load(method).training_arguments(view)
    decided = _OURS | dict.fromkeys(own, f"the section {method}")
    return shared | own | _trainer_args(training["trainer_args"], decided, methods.config_class(method))


def load_dtype(view: dict[str, Any]) -> str:
    """Type that the weights are loaded in; see the module's docstring."""
    return str(view["model"]["dtype"]) if deepspeed_config(view) or view["model"]["lora"] else "float32"


def _report_to(targets: list[str]) -> list[str]:
    from transformers.integrations import integration_utils

    # Flyte is not in the list of what can be there, and checks itself.
    available = {*integration_utils.get_available_reporting_integrations(), "flyte", "none"}  # type: ignore[no-untyped-call]
    for target in (target for target in targets if target not in available):
        problem = f"{target} is not installed; pip install {_PACKAGES.get(target, target)}, or take it out"
        raise ConfigError("logging.report_to", problem)
    return [target for target in targets if target != "none"] or ["none"]


def scheduler_kwargs(training: dict[str, Any]) -> dict[str, Any]:
    """The default's `min_lr_rate` is dropped for a scheduler without it, or when `min_lr` is given."""
    kwargs = dict(training["lr_scheduler_kwargs"])
    if training["lr_scheduler_type"] not in _MIN_LR_SCHEDULERS or "min_lr" in kwargs:
        kwargs.pop("min_lr_rate", None)
    return kwargs


def _check_liger(on_cpu: bool) -> None:
    missing = [name for name in ("liger_kernel", "triton") if importlib.util.find_spec(name) is None]
    if on_cpu or missing:
        why = "there is no GPU" if on_cpu else f"{' and '.join(missing)} is not installed"
        problem = f"is true, but {why}; set it to false or install the extra `cuda`"
        raise ConfigError("training.use_liger_kernel", problem)


def _trainer_args(given: dict[str, Any], decided: dict[str, str], config_class: type) -> dict[str, Any]:
    """The user's further arguments, checked by name, with numbers that YAML read as text made numbers."""
    offered = {field.name: field for field in fields(config_class)}
    checked: dict[str, Any] = {}
    for name, value in given.items():
        key = f"training.trainer_args.{name}"
        if name in decided:
            raise ConfigError(key, f"is decided by {decided[name]}; set that")
        if name not in offered:
            raise ConfigError(
                key,
                f"no argument of {config_class.__name__}. {guess(name, offered) or 'See its documentation for the names'}",
            )
        checked[name] = _number(value, offered[name])
    return checked


def _number(value: Any, field: "Field[Any]") -> Any:
    """`'1e-8'`, which YAML 1.1 reads as text, as the number that the field holds."""
    wants = "float" in str(field.type) or "int" in str(field.type)
    if wants and isinstance(value, str) and re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", value):
        return float(value) if re.search(r"[.eE]", value) else int(value)
    return value
