"""What can be said about a configuration without its data, models and devices."""

import re
from pathlib import Path
from typing import Any

from post_training import methods
from post_training.config import batch
from post_training.config.deepspeed import deepspeed_config
from post_training.config.load import Pipeline
from post_training.config.optimiser import check_optimiser
from post_training.core.devices import known_gpu
from post_training.core.errors import ConfigError, at_least, one_of, require
from post_training.core.fingerprint import LONGEST_NAME, is_safe_name
from post_training.core.stages import STAGES
from post_training.models import hub_kernel
from post_training.models.lora import check_lora
from post_training.models.quantization import KEY as QUANTIZATION
from post_training.models.quantization import check_quantization
from post_training.models.weights import PRECISIONS
from post_training.preflight.check import NAMES
from post_training.slurm import placement

# Below the output base; a link of one of these names would hide it.
_FOLDERS = {"logs", "tasks", "debug", *(kind.folder.partition("/")[0] for kind in STAGES.values())}
TRACKERS = (
    "azure_ml", "clearml", "codecarbon", "comet_ml", "dagshub", "dvclive", "flyte", "kubeflow", "mlflow", "neptune", "swanlab",
    "tensorboard", "trackio", "wandb",
)  # fmt: skip
"""What Transformers reports to; each has a callback there."""
POLICIES = ("encode_as_text", "reject", "allow")


def check_view(name: str, pipeline: Pipeline) -> None:
    """Everything about one stage's keys that needs no data and no devices."""
    view = pipeline.views[name]
    method = view["method"]
    try:
        batch.check_length(view, method)
        check_optimiser(view["training"])
        methods.load(method).check(view)
    except ConfigError as error:
        # A method knows its keys by its own name, the user by the stage's.
        own, _, rest = error.key.partition(".")
        raise (ConfigError(f"{name}.{rest}", error.problem) if own == method else error) from None
    check_lora(view, ((deepspeed_config(view) or {}).get("zero_optimization") or {}).get("stage"))
    check_quantization(view)
    attention = view["model"]["attn_implementation"]
    if hub_kernel.parse(attention) is None:
        one_of(attention, hub_kernel.BUILT_IN, hub_kernel.KEY)
    placement.check(view)
    _check_preflight(view)
    limit = view["checkpointing"]["save_total_limit"]
    require(
        limit is None or limit >= 2,
        "checkpointing.save_total_limit",
        f"found {limit}; rotation happens before the new checkpoint is verified, so 2 or more must be kept, or null for all",
    )
    for section, key in (("checkpointing", "save_steps"), ("logging", "logging_steps"), ("data", "num_proc")):
        at_least(1, view[section][key], f"{section}.{key}")
    for key in ("max_samples", "max_new_tokens", "batch_size"):
        at_least(1, view["evaluation"][key], f"evaluation.{key}")
    at_least(1, view["accelerate"]["num_processes"], "accelerate.num_processes")
    for section in ("training", "data"):
        seed = view[section]["seed"]
        require(0 <= seed < 2**32, f"{section}.seed", f"found {seed}, expected a number from 0 to {2**32 - 1:,}")
    targets = view["logging"]["report_to"]
    for target in targets:
        one_of(target, (*TRACKERS, "none"), "logging.report_to")
    problem = f"found {targets}; none is alone, take it out or the others"
    require("none" not in targets or len(targets) == 1, "logging.report_to", problem)
    largest = view["export"]["max_shard_size"]
    fits = re.fullmatch(r"\s*0*[1-9]\d*(\.\d+)?\s*[KMGT]B\s*", largest, re.IGNORECASE) is not None
    require(fits, "export.max_shard_size", f"found {largest!r}, expected a size such as 5GB (KB, MB, GB or TB)")
    _check_types(view)
    one_of(view["data"]["special_tokens_in_content"], POLICIES, "data.special_tokens_in_content")
    fraction = view["data"]["max_reject_fraction"]
    require(0 <= fraction <= 1, "data.max_reject_fraction", f"found {fraction}, expected a share from 0 to 1")
    one_of(view["data"]["last_turn"], ("trim", "reject"), "data.last_turn")
    length = view[method]["max_seq_length"]
    require(length >= 2, f"{name}.max_seq_length", f"found {length}, expected 2 or more tokens")
    problem = "no dataset; give data.datasets or the stage's own"
    require(bool(view["data"]["datasets"]), f"{name}.data.datasets", problem)


def _check_preflight(view: dict[str, Any]) -> None:
    """Names that exist, and shares that are shares."""
    section = view["preflight"]
    if view["slurm"]["gpu_model"] is not None:
        known_gpu(view["slurm"]["gpu_model"])
    for name in section["only_warn"]:
        one_of(name, NAMES, "preflight.only_warn")
    low, high = section["min_trained_share"], section["max_trained_share"]
    problem = f"found {low} and {high} for the most, expected shares"
    require(0 <= low <= high <= 1, "preflight.min_trained_share", problem)
    problem = f"found {section['assumed_mfu']}, expected a share above 0"
    require(0 < section["assumed_mfu"] <= 1, "preflight.assumed_mfu", problem)
    at_least(2, section["probe_steps"], "preflight.probe_steps")


def _check_types(view: dict[str, Any]) -> None:
    """Number formats that must agree, and launcher keys of which only one value exists."""
    dtype, precision = view["model"]["dtype"], view["accelerate"]["mixed_precision"]
    one_of(dtype, PRECISIONS, "model.dtype")
    problem = f"found {precision!r}, but model.dtype {dtype} needs {PRECISIONS[dtype]!r} (or null)"
    require(precision in (None, PRECISIONS[dtype]), "accelerate.mixed_precision", problem)
    for key, only in (("deepspeed_multinode_launcher", "standard"), ("same_network", True), ("rdzv_backend", "static")):
        found = view["accelerate"][key]
        problem = f"found {found!r}; ranks are started by srun, only {only!r} is possible"
        require(found == only, f"accelerate.{key}", problem)
    zero = deepspeed_config(view)  # whose file must be there, whether it is asked for by name or not
    problem = "true needs deepspeed.config_path, such as config/deepspeed/zero2.yaml"
    require(view["accelerate"]["use_deepspeed"] is not True or zero is not None, "accelerate.use_deepspeed", problem)
    require(
        view["model"]["quantization"] is None or (zero or {}).get("zero_optimization", {}).get("stage") != 3,
        QUANTIZATION,
        "ZeRO-3 cannot divide 4-bit weights; take it or deepspeed.config_path=zero3 out (zero2 works)",
    )


def check_paths(view: dict[str, Any]) -> None:
    """The run's name and the folders, which become paths of the Snakefile."""
    name = view["run_name"]
    size = len(name or "")
    problem = f"has {size:,} characters, at most {LONGEST_NAME} are possible; shorten it"
    require(size <= LONGEST_NAME, "run_name", problem)
    problem = f"found {name!r}; use letters, digits, '.', '_' and '-' only, beginning with a letter or digit"
    require(name is None or is_safe_name(name), "run_name", problem)
    require(name not in _FOLDERS, "run_name", f"found {name!r}, a folder of the workflow's own; choose another name")
    for key in ("output_base", "debug_base"):
        path = view["paths"][key]
        forbidden = sorted(set(path) & set("\"'`$;&|<>(){}*?[]\\\n\t\0 "))
        problem = f"found {path!r}; use a path without spaces and shell characters"
        require(bool(path) and not forbidden, f"paths.{key}", problem)
        _check_written_out(path, f"paths.{key}")
        file = next((one for one in (Path(path), *Path(path).parents) if one.exists()), Path())
        require(file.is_dir(), f"paths.{key}", f"{file}: is a file, expected a folder; give another one")
    _check_written_out(view["checkpointing"]["inference_checkpoint_path"], "checkpointing.inference_checkpoint_path")
    problem = "true needs debug.enabled=true: only debug runs are ever wiped"
    require(not view["debug"]["override_existing"] or view["debug"]["enabled"], "debug.override_existing", problem)


def _check_written_out(path: str | None, key: str) -> None:
    """A folder that is made must not be called `~` or `$SCRATCH`."""
    require(not path or path[0] != "~", key, f"found {path!r}; write it out: {Path(path or '').expanduser()}")
    require(not path or "$" not in path, key, f"found {path!r}; write it out, or ${{oc.env:NAME}}")
