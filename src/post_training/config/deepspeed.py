"""DeepSpeed's configuration: a shipped or own YAML with inline keys over it. Light."""

from pathlib import Path
from typing import Any

from post_training.config.load import load_file
from post_training.core.errors import ConfigError, did_you_mean

PLAIN = "ddp"
"""Strategy without DeepSpeed; others are `zero0` to `zero3`."""


def deepspeed_config(view: dict[str, Any]) -> dict[str, Any] | None:
    """The YAML file with the inline keys over it, ready for Transformers; None when DeepSpeed is off."""
    section = view["deepspeed"]
    if view["accelerate"]["use_deepspeed"] is False or not (section["config_path"] or section["config"]):
        return None
    path = deepspeed_file(section["config_path"])
    merged = overlaid(load_file(path) if path else {}, section["config"])
    zero = merged.setdefault("zero_optimization", {})
    if zero.get("stage") == 3:
        # Otherwise a checkpoint has shards only, which the export must put together.
        gathers = zero.setdefault("stage3_gather_16bit_weights_on_model_save", True)
        every = view["checkpointing"]["inference_checkpoint_steps"]
        if not gathers and every is not None and every > 0:
            raise ConfigError(
                "checkpointing.inference_checkpoint_steps",
                f"found {every}, which needs zero_optimization.stage3_gather_16bit_weights_on_model_save=true in deepspeed.config",
            )
    # Batch, precision and clipping have one source each, and it is not the DeepSpeed file.
    for name in (
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "gradient_clipping",
    ):
        merged[name] = "auto"
    for name in ("bf16", "fp16"):
        merged[name] = {**merged.get(name, {}), "enabled": "auto"}
    return merged


def deepspeed_file(given: str | None) -> Path | None:
    """The file that `deepspeed.config_path` means: a path, or the name of a shipped one (`zero3`).

    A path is looked for below the working directory, then below this repository.
    """
    if given is None:
        return None
    here = Path(__file__).parents[3]
    for path in (Path(given), here / given, here / "config" / "deepspeed" / f"{given}.yaml"):
        if path.is_file():
            return path
    shipped = [path.stem for path in (here / "config" / "deepspeed").glob("*.yaml")]
    raise ConfigError("deepspeed.config_path", f"{given}: no such file. {did_you_mean(Path(given).stem, shipped)}")


def strategy(view: dict[str, Any]) -> str:
    """How training state is laid out over the ranks: `ddp`, or `zero1` to `zero3`."""
    config = deepspeed_config(view)
    return PLAIN if config is None else f"zero{config['zero_optimization'].get('stage', 0)}"


def overlaid(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Mappings merged into one another; any other value of `over` wins."""
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = overlaid(result[key], value) if both else value
    return result
