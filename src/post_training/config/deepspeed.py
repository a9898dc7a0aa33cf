"""DeepSpeed's configuration: a shipped or own YAML with inline keys over it."""

import re
from pathlib import Path
from typing import Any

from post_training.config.trees import copied, merge_into
from post_training.config.yaml_file import load_file
from post_training.core.errors import ConfigError, did_you_mean
from post_training.core.paths import missing_path

PLAIN = "ddp"
"""Strategy without DeepSpeed; others are `zero0` to `zero3`."""


def deepspeed_config(view: dict[str, Any]) -> dict[str, Any] | None:
    """The YAML file with the inline keys over it, ready for Transformers; None when DeepSpeed is off.

    Raises ConfigError when inference checkpoints are asked for that ZeRO-3 would have no weights for.
    """
    section = view["deepspeed"]
    if view["accelerate"]["use_deepspeed"] is False or not (section["config_path"] or section["config"]):
        return None
    merged = merged_config(section)
    zero = merged.setdefault("zero_optimization", {})
    stage = zero.get("stage", 0) if isinstance(zero, dict) else None
    if stage not in (0, 1, 2, 3) or isinstance(stage, bool):
        found = f"found zero_optimization: {zero!r}, expected a mapping with a stage from 0 to 3, such as {{stage: 3}}"
        raise ConfigError(
            "deepspeed.config" if "zero_optimization" in section["config"] else "deepspeed.config_path", found
        )
    if zero.get("stage") == 3:
        # Without it a checkpoint has shards only, and the export has no weights.
        gathers = zero.setdefault("stage3_gather_16bit_weights_on_model_save", True)
        every = view["checkpointing"]["inference_checkpoint_steps"]
        if not gathers and every is not None and every > 0:
            needed = "zero_optimization.stage3_gather_16bit_weights_on_model_save=true in deepspeed.config"
            raise ConfigError("checkpointing.inference_checkpoint_steps", f"found {every}, which needs {needed}")
    # Batch, precision and clipping have one source each, and it is not the DeepSpeed file.
    steps = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    merged |= dict.fromkeys((*steps, "gradient_clipping"), "auto")
    for name in ("bf16", "fp16"):
        merged[name] = {**merged.get(name, {}), "enabled": "auto"}
    return merged


def merged_config(section: dict[str, Any]) -> dict[str, Any]:
    """The file of a section `deepspeed` with its inline keys over it."""
    path = deepspeed_file(section["config_path"])
    merged = load_file(path) if path else {}
    merge_into(merged, copied(section["config"]))
    return merged


def deepspeed_file(given: str | None) -> Path | None:
    """The file that `deepspeed.config_path` means: a path, or the name of a shipped one (`zero3`).

    A path is relative to the working directory, or to this repository. Raises ConfigError when there is no such file.
    """
    if given is None:
        return None
    here = Path(__file__).parents[3]
    for path in (Path(given).expanduser(), here / given, here / "config" / "deepspeed" / f"{given}.yaml"):
        if path.is_file():
            return path
    shipped = [path.stem for path in (here / "config" / "deepspeed").glob("*.yaml")]
    problem = missing_path(given, "no such file") if re.search(r"[/\\$]", given) else f"{given}: no such file"
    raise ConfigError("deepspeed.config_path", f"{problem}. {did_you_mean(Path(given).stem, shipped)}")


def strategy(view: dict[str, Any]) -> str:
    """How training state is divided among the ranks: `ddp`, or `zero0` to `zero3`."""
    config = deepspeed_config(view)
    return PLAIN if config is None else f"zero{config['zero_optimization'].get('stage', 0)}"
