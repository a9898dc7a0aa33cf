"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685) with PEFT: made for training, merged for the export.

The base weights stay frozen, in `model.dtype`; full and inference checkpoints hold the adapters alone. PEFT and torch are
imported when adapters are used.
"""

import math
from pathlib import Path
from typing import Any

from post_training.core.errors import ConfigError, UserError, did_you_mean, require

KEY = "model.lora"
# Largest difference of the merged model's logits from the adapted one's, as a share of the largest logit. In float32 only
# the order of the sums differs; a merged bfloat16 weight is rounded once more (8 bits: 0.4 % each).
TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}


def check_lora(view: dict[str, Any]) -> None:
    """Raise ConfigError for values that PEFT or TRL cannot work with, whatever the model."""
    lora = view["model"]["lora"]
    if lora is None:
        return
    for name, holds, expected in (
        ("r", lora["r"] >= 1, "1 or more"),
        ("alpha", lora["alpha"] > 0, "a number above 0"),
        ("dropout", 0 <= lora["dropout"] < 1, "a share from 0 to below 1"),
    ):
        require(holds, f"{KEY}.{name}", f"found {lora[name]}, expected {expected}")
    targets = lora["target_modules"]
    listed = isinstance(targets, list) and bool(targets) and all(isinstance(name, str) for name in targets)
    if targets != "all-linear" and not listed:
        expected = "all-linear or a list of names such as [q_proj, v_proj]"
        raise ConfigError(f"{KEY}.target_modules", f"found {targets!r}, expected {expected}")
    if "lm_head" in targets:
        problem = "lm_head cannot have an adapter: TRL multiplies by its weight directly; take it out"
        raise ConfigError(f"{KEY}.target_modules", problem)


def adapter_arguments(view: dict[str, Any], model: Any, folder: Path) -> dict[str, Any]:
    """`{"peft_config": ...}` for TRL's trainers, which wrap the model; nothing when `model.lora` is null.

    Raises ConfigError for a name in `target_modules` that no linear layer of this model has.
    """
    lora = view["model"]["lora"]
    if lora is None:
        return {}
    from peft import LoraConfig

    if lora["target_modules"] != "all-linear":
        offered = sorted(_linear_names(model))
        for name in lora["target_modules"]:
            if name not in offered:
                problem = f"no linear layer of {type(model).__name__} is named {name!r}. {did_you_mean(name, offered)}"
                raise ConfigError(f"{KEY}.target_modules", problem)
    # PEFT writes this name beside the adapters, where readers in any working directory find the model by it.
    model.name_or_path = str(folder.resolve())
    config = LoraConfig(
        r=lora["r"],
        lora_alpha=lora["alpha"],
        lora_dropout=lora["dropout"],
        target_modules=lora["target_modules"],
        # Beside the adapters of a model with one output PEFT trains that output whole.
        task_type="CAUSAL_LM" if model.get_output_embeddings() is not None else "SEQ_CLS",
    )
    return {"peft_config": config}


def _linear_names(model: Any) -> set[str]:
    """Last parts of the names of linear layers, without the output embedding."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    kinds = (nn.Linear, Conv1D)  # the latter in GPT-2 and its kind
    linear = [name for name, module in model.named_modules() if isinstance(module, kinds) and module is not head]
    return {name.rpartition(".")[2] for name in linear}


def parameter_counts(model: Any) -> dict[str, int]:
    """`parameters` and `trainable_parameters`; of a model that ZeRO-3 has sharded, those of all ranks together."""
    sizes = [(_size(parameter), parameter.requires_grad) for parameter in model.parameters()]
    return {
        "parameters": sum(size for size, _ in sizes),
        "trainable_parameters": sum(size for size, trained in sizes if trained),
    }


def _size(parameter: Any) -> int:
    """Elements of a parameter; ZeRO-3 leaves none of them in place, and 4 bits put two into a byte."""
    if (state := getattr(parameter, "quant_state", None)) is not None:
        return math.prod(state.shape)
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def describe(lora: dict[str, Any] | None, counts: dict[str, int], args: Any) -> str:
    """One line: how much of the model is trained, and which key of `model.lora` has no effect. `args`: TRL's."""
    trained, total = counts["trainable_parameters"], counts["parameters"]
    line = f"{trained:,} of {total:,} parameters are trained"
    if lora is None:
        return line
    line += f" ({trained / total:.2%}; LoRA, r {lora['r']}, alpha {lora['alpha']:g})"
    if lora["dropout"] and getattr(args, "disable_dropout", False):
        line += f"; {KEY}.dropout has no effect, because TRL disables dropout: training.trainer_args.disable_dropout"
    return line


def merge(model: Any, adapters: Path, row: list[int], logits_of: Any, dtype: str) -> tuple[Any, dict[str, float]]:
    """The base model with the adapters in its weights, and how far its logits are from those of the adapted model.

    Args:
        model: the base model, in evaluation mode.
        adapters: a checkpoint with `adapter_model.safetensors`.
        row: token ids of real data.
        logits_of: (model, row) -> logits `[tokens, vocabulary]`.
        dtype: type of the base weights.

    Raises:
        UserError: when the merged model's logits differ by more than rounding.
    """
    from peft import PeftModel

    before = logits_of(model, row)
    adapted = PeftModel.from_pretrained(model, str(adapters)).eval()
    expected = logits_of(adapted, row)
    merged = adapted.merge_and_unload(safe_merge=True)  # type: ignore[operator]
    largest = float(expected.abs().max())
    difference = float((logits_of(merged, row) - expected).abs().max()) / largest
    if not difference <= TOLERANCE[dtype]:
        found = f"merged into the model, the adapters give logits that differ by {difference:.3g} of the largest"
        raise UserError(f"{adapters}: {found}, expected {TOLERANCE[dtype]:g} or less in {dtype}")
    learned = float((expected - before).abs().max()) / largest
    return merged, {"merge_logit_difference": difference, "adapter_logit_difference": learned}


def is_adapter(folder: Path) -> bool:
    """Whether a checkpoint holds adapters and no model."""
    return (folder / "adapter_config.json").is_file()
