"""A folder of adapters by PEFT: which files decide what it is, and the model that it belongs to. No torch."""

from pathlib import Path
from typing import Any

from post_training.core.errors import require
from post_training.core.locate import TOKENIZER_FILES, files_below, json_object

CONFIG, WEIGHTS = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
# Methods of PEFT that change weights; the others put something before the tokens or between the layers.
_MERGED = "LORA ADALORA LOHA LOKR IA3 OFT BOFT VERA RANDLORA HRA LN_TUNING TRAINABLE_TOKENS".split()


def is_adapter_folder(folder: Path) -> bool:
    """Whether a folder holds adapters and no model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def adapter_files(folder: Path, key: str) -> list[Path]:
    """The files that decide: configuration, weights, and a tokenizer if there is one; not what a checkpoint of training has besides.

    Raises ConfigError for `key` where there are no weights.
    """
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    require(weights is not None, key, f"{folder}: has {CONFIG} and no {WEIGHTS[0]}; copy the folder again")
    return [
        p
        for p in files_below(folder)
        if p in (folder / CONFIG, weights) or (p.parent == folder and p.name in TOKENIZER_FILES)
    ]


def base_of(folder: Path, key: str) -> dict[str, Any]:
    """`name_or_path` and `revision` of the model that adapters belong to.

    Raises ConfigError for `key` where they cannot be merged into it, or where it is not said.
    """
    path = folder / CONFIG
    config = json_object(path, key)
    kind, task = config.get("peft_type"), config.get("task_type") or "CAUSAL_LM"
    what = f"{folder}: adapters of the kind {kind} cannot be merged into weights"
    require(kind in _MERGED, key, f"{what}; name a model, or LoRA adapters")
    problem = f"{folder}: adapters for {task}, expected CAUSAL_LM; name adapters of a model that answers"
    require(task == "CAUSAL_LM", key, problem)
    base = config.get("base_model_name_or_path")
    remedy = f"write the model's folder or Hub id as base_model_name_or_path into {path}"
    problem = f"{folder}: does not say of which model the adapters are; {remedy}"
    require(isinstance(base, str) and bool(base), key, problem)
    assert isinstance(base, str)
    gone = base.startswith(("/", "./", "../", "~")) and not Path(base).expanduser().is_dir()
    require(not gone, key, f"{folder}: its model {base} is not here; {remedy}")
    seen, next_one = [folder.resolve()], Path(base).expanduser()
    while is_adapter_folder(next_one):  # adapters of adapters
        require(next_one.resolve() not in seen, key, f"{folder}: is its own model, by way of {base}; {remedy}")
        seen.append(next_one.resolve())
        next_one = Path(str(json_object(next_one / CONFIG, key).get("base_model_name_or_path") or "")).expanduser()
    return {"name_or_path": base, "revision": config.get("revision"), "from_scratch": None}
