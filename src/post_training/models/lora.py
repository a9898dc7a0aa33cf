"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685) with PEFT: made for training, merged for the export.

The base weights stay frozen, in `model.dtype`; full and inference checkpoints hold the adapters alone. PEFT and torch are
imported when adapters are used.
"""

import math
import warnings
from pathlib import Path
from typing import Any

from post_training.core.adapters import WEIGHTS
from post_training.core.errors import ConfigError, UserError, brief, require
from post_training.models import parts
from post_training.models.weights import shapes

KEY = "model.lora"
# Largest difference of the merged model's logits from the adapted one's, as a share of the largest logit. In float32 only
# the order of the sums differs; a merged bfloat16 weight is rounded once more (8 bits: 0.4 % each).
TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}


def check_lora(view: dict[str, Any], zero_stage: int | None = None) -> None:
    """Raise ConfigError for values that PEFT or TRL cannot work with, whatever the model; `zero_stage` of DeepSpeed, if it is on."""
    lora = view["model"]["lora"]
    if lora is None:
        return
    for name, holds, expected in (
        ("r", lora["r"] >= 1, "1 or more"),
        ("alpha", lora["alpha"] > 0, "a number above 0"),
        ("dropout", 0 <= lora["dropout"] < 1, "a share from 0 to below 1"),
    ):
        require(holds, f"{KEY}.{name}", f"found {lora[name]}, expected {expected}")
    parts.check_values(lora, zero_stage=zero_stage)
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

    Raises ConfigError as `parts.check_parts` does.
    """
    lora = view["model"]["lora"]
    if lora is None:
        return {}
    from peft import LoraConfig

    # PEFT writes this name beside the adapters, where readers in any working directory find the model by it.
    model.name_or_path = str(folder.resolve())
    config = LoraConfig(
        r=lora["r"],
        lora_alpha=lora["alpha"],
        lora_dropout=lora["dropout"],
        target_modules=lora["target_modules"],
        # Beside the adapters of a model with one output PEFT trains that output whole.
        task_type="CAUSAL_LM" if model.get_output_embeddings() is not None else "SEQ_CLS",
        **parts.peft_arguments(lora, model, folder),
    )
    return {"peft_config": config}


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
    more = "".join(f", {name} {' '.join(lora[name])}" for name in parts.NEW_KEYS if lora.get(name))
    line += f" ({trained / total:.2%}; LoRA, r {lora['r']}, alpha {lora['alpha']:g}{more})"
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
    before = logits_of(model, row)
    adapted = load_adapters(model, adapters).eval()
    expected = logits_of(adapted, row)
    merged = adapted.merge_and_unload(safe_merge=True)  # type: ignore[operator]
    largest = float(expected.abs().max())
    difference = float((logits_of(merged, row) - expected).abs().max()) / largest
    if not difference <= TOLERANCE[dtype]:
        found = f"merged into the model, the adapters give logits that differ by {difference:.3g} of the largest"
        raise UserError(f"{adapters}: {found}, expected {TOLERANCE[dtype]:g} or less in {dtype}")
    learned = float((expected - before).abs().max()) / largest
    return merged, {"merge_logit_difference": difference, "adapter_logit_difference": learned}


def load_adapters(model: Any, folder: Path) -> Any:
    """The model with a folder's adapters. Raises UserError where PEFT cannot put them in, or would leave some of them out in silence."""
    from peft import PeftModel, get_peft_model_state_dict

    remedy = "these adapters are of another model"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of missing names, which are looked for below
            adapted: Any = PeftModel.from_pretrained(model, str(folder))
            expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    except Exception as error:  # of PEFT, of torch for shapes, of safetensors for a damaged file
        raise UserError(f"{folder}: cannot be put into the model ({brief(error)}); {remedy}, or damaged") from None
    stored, held = adapter_tensors(folder), adapted.state_dict()
    missing = sorted(expected.keys() - stored.keys())
    unknown = sorted(
        name for name in stored.keys() - expected.keys() if _plain(name) not in held.keys() | expected.keys()
    )
    if missing or unknown:
        what = f"are missing ({missing[0]})" if missing else f"have no place ({unknown[0]})"
        raise UserError(f"{folder}: {len(missing) or len(unknown)} tensors {what}; {remedy}, or damaged")
    return adapted


def _plain(name: str) -> str:
    """PEFT stores an embedding that was resized a second time, under the names of its wrapper."""
    return name.replace(".modules_to_save", "").replace(".original_module", "").replace(".base_layer", "")


def adapter_tensors(folder: Path) -> dict[str, list[int]]:
    """Name -> shape of a folder's adapters. Raises UserError for a damaged file."""
    path = next((folder / name for name in WEIGHTS if (folder / name).is_file()), folder / WEIGHTS[-1])
    try:
        return shapes(path)
    except Exception as error:  # each library has its own
        raise UserError(f"{path}: cannot be read ({brief(error)}); copy it again") from None
