"""TRL's configuration, number formats, kernels and DeepSpeed: what would be refused in the first minute of an allocation."""

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from post_training import methods
from post_training.core.errors import ConfigError, UserError, brief
from post_training.models import hub_kernel
from post_training.models.weights import PRECISIONS
from post_training.preflight.check import Check, check, failed
from post_training.preflight.subject import Subject

# Attention backend -> the package that it needs.
_ATTENTION = {
    "flash_attention_2": "flash_attn",
    "flash_attention_3": "flash_attn_interface",
    "flash_attention_4": "flash_attn.cute",
}


def checks(subject: Subject) -> list[Check]:
    """Every check of one stage."""
    found = [_arguments(subject), _number_format(subject), _attention(subject), _packing(subject), _kernels(subject)]
    return [*found, _quantization(subject), *_deepspeed(subject)]


def _arguments(subject: Subject) -> Check:
    """Build the configuration with every argument that the run will give it."""
    from post_training.training.arguments import trainer_arguments
    from post_training.training.run import make_arguments

    config_class = methods.config_class(subject.method)
    name = "libraries.arguments"
    try:
        given = trainer_arguments(subject.view, subject.method, subject.run, subject.plan, subject.steps)
        if subject.deepspeed is not None:
            given["deepspeed"] = None  # it would start a process group; see the checks of deepspeed below
        on_gpu = subject.topology.device == "GPU"
        # A machine without GPUs must not refuse what those of the run can do; the number format is checked by itself.
        make_arguments(config_class, {**given, "use_cpu": True, **({"bf16": False, "fp16": False} if on_gpu else {})})
    except UserError as error:
        return failed(name, error)
    return Check(name, f"{config_class.__name__} takes all {len(given)} arguments")


def _number_format(subject: Subject) -> Check:
    view = subject.view
    dtype, precision = view["model"]["dtype"], view["accelerate"]["mixed_precision"]
    expected = PRECISIONS.get(dtype)
    wrong = precision not in (None, expected)
    old = dtype == "bfloat16" and subject.device.name.lower().startswith(("v100", "tesla"))
    return check(
        "libraries.number_format",
        f"model.dtype {dtype}, accelerate.mixed_precision {precision or expected}",
        fails=wrong or expected is None or (dtype == "float16" and subject.topology.device == "CPU") or old,
        remedy=f"{subject.device.name} has no bfloat16: set model.dtype=float16"
        if old
        else f"set accelerate.mixed_precision to null or {expected}"
        if wrong
        else "float16 needs a GPU: set model.dtype to float32 or bfloat16",
    )


def _attention(subject: Subject) -> Check:
    """Whether the backend can run on the devices of the run, and serves the model's family."""
    wanted, name = str(subject.view["model"]["attn_implementation"]), "libraries.attention"
    backend = subject.attention.partition("|")[-1] or subject.attention
    package, kernel = _ATTENTION.get(backend), hub_kernel.parse(backend)
    on_gpu, problem, remedy = subject.topology.device == "GPU", "", "set model.attn_implementation=auto"
    if not on_gpu and (package or backend == "flex_attention"):
        problem = f"{backend} cannot train on the CPU"
    elif (package or kernel) and _in_container(subject):
        return Check(name, f"{backend}, in the container: not checked")
    elif package and not installed(package):
        problem = f"{backend}: {package} is not installed"
        remedy = f"pip install {package.partition('.')[0].replace('_interface', '').replace('_', '-')}, or {remedy}"
    elif kernel:  # fetched already: with it a build that runs on what this PyTorch is for
        try:
            hub_kernel.check_library()
        except ConfigError as error:
            problem, remedy = f"{backend}: {error.problem}", f"do so, or {remedy}"
    elif wanted == "varlen" and subject.packing.implementation != wanted:
        problem = f"{wanted} does not serve this model: {subject.packing.reason}"
    per_device = subject.training["per_device_train_batch_size"]
    dense = subject.mix["config"]["packing"] and backend in ("sdpa", "eager") and per_device > 1
    if dense and not problem:
        remedy = (
            f"{backend} computes attention over all {per_device} packed rows at once, {per_device} times the work: set "
            "training.per_device_train_batch_size=1"
            + ("" if wanted == "auto" else ", or model.attn_implementation=auto")
        )
    fallback = wanted == "auto" and backend != "varlen"
    value = f"{backend}; varlen does not serve this model: {subject.packing.reason}" if fallback else backend
    return check(name, problem or value, fails=problem, warns=dense and on_gpu, remedy=remedy)


def _packing(subject: Subject) -> Check:
    """Whether the layers of the model keep packed documents apart."""
    packed = subject.mix["config"]["packing"]
    return check(
        "libraries.packing",
        subject.packing.verdict() if packed else "off",
        fails=packed and not subject.packing.safe,
        remedy=f"set {subject.method}.packing=false",
    )


def _kernels(subject: Subject) -> Check:
    """Liger's kernels and the compiler's backend."""
    name, on_gpu = "libraries.kernels", subject.topology.device == "GPU"
    compiles = on_gpu and subject.view["accelerate"]["dynamo_backend"] == "inductor"
    liger = ["liger_kernel"] if subject.training["use_liger_kernel"] else []
    wanted = [*liger, "triton"] if liger or compiles else []
    if subject.training["use_liger_kernel"] and not on_gpu:
        return Check(name, "Liger needs a GPU", "failure", "set training.use_liger_kernel=false")
    if wanted and _in_container(subject):
        return Check(name, f"{', '.join(wanted)}, in the container: not checked")
    missing = [package for package in wanted if not installed(package)]
    return check(
        name,
        f"{' and '.join(missing)} not installed" if missing else ", ".join(wanted) or "none requested",
        fails=missing,
        remedy="`make install BUILD=cuda` installs it; or set training.use_liger_kernel=false",
    )


def _quantization(subject: Subject) -> Check:
    """Whether bitsandbytes turns weights into 4 bits here, and has kernels for the CUDA of this PyTorch."""
    name, problem = "libraries.quantization", ""
    if subject.view["model"]["quantization"] is None:
        return Check(name, "off")
    if _in_container(subject):
        return Check(name, "bitsandbytes, in the container: not checked")
    try:
        import bitsandbytes
        import torch

        from post_training.models.quantization import rounded

        rounded(torch.ones(2, 64), subject.view["model"]["quantization"])
        cuda, files = torch.version.cuda, Path(bitsandbytes.__file__).parent.glob("libbitsandbytes_cuda*")
        major = str(cuda).partition(".")[0]
        if subject.topology.device == "GPU" and cuda and not any(f"cuda{major}" in file.name for file in files):
            problem = f"bitsandbytes {bitsandbytes.__version__} has no kernels for CUDA {cuda}"
    except Exception as error:  # of a library that is compiled for another machine, too
        problem = f"bitsandbytes cannot be used: {brief(error)}"
    return check(
        name,
        problem or f"bitsandbytes {bitsandbytes.__version__}",
        fails=problem,
        remedy="`make install` installs the version that fits; or leave model.quantization out",
    )


def installed(package: str) -> bool:
    """Whether a package, or a module of one, can be imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def _in_container(subject: Subject) -> bool:
    return bool(subject.view["slurm"]["container"]["image"])


def _deepspeed(subject: Subject) -> list[Check]:
    """Whether ZeRO's stage fits what is asked beside it."""
    from post_training.config.deepspeed import deepspeed_config

    name = "libraries.deepspeed"
    try:
        config = deepspeed_config(subject.view)
    except ConfigError as error:
        return [failed(name, error)]
    if config is None:
        return [Check(name, "off")]
    problems, notes = list(conflicts(config)), list(doubts(config, subject.topology.world_size))
    if not _in_container(subject) and not installed("deepspeed"):
        problems.append("deepspeed is not installed: pip install deepspeed")
    elif not problems and not _in_container(subject):
        problems += _validation(config)
    stage = (config.get("zero_optimization") or {}).get("stage", 0)
    value = f"ZeRO-{stage} over {subject.topology.world_size} ranks"
    return [check(name, value, fails=problems, warns=notes, remedy="; ".join([*problems, *notes]))]


def conflicts(config: dict[str, Any]) -> Iterable[str]:
    """What cannot work: a line each."""
    zero = config.get("zero_optimization") or {}
    stage = zero.get("stage", 0)
    if stage not in (0, 1, 2, 3):
        yield f"zero_optimization.stage is {stage!r}, expected 0 to 3"
        return
    if _device(zero, "offload_param") and stage != 3:
        yield f"offload_param needs stage 3, found {stage}"
    if _device(zero, "offload_optimizer") and stage < 1:
        yield f"offload_optimizer needs stage 1 or more, found {stage}"
    for key, ours in (("scheduler", "training.lr_scheduler_type"), ("optimizer", "training.learning_rate")):
        if key in config:
            yield f"{key} in the DeepSpeed file would take the place of {ours}; take it out"
    if stage == 3 and zero.get("stage3_gather_16bit_weights_on_model_save") is False:
        yield "checkpoints would not have the full weights for the export: set stage3_gather_16bit_weights_on_model_save=true"


def doubts(config: dict[str, Any], ranks: int) -> Iterable[str]:
    """What works and gains nothing: a line each."""
    zero = config.get("zero_optimization") or {}
    stage = zero.get("stage", 0)
    offloads = _device(zero, "offload_optimizer") or _device(zero, "offload_param")
    if stage == 0:
        yield "stage 0 divides nothing: leave deepspeed.config_path out"
    elif ranks == 1 and not offloads:
        yield f"one rank has no other to divide with: leave deepspeed.config_path out, or use more than {ranks} rank"


def _device(zero: dict[str, Any], key: str) -> bool:
    return bool(zero.get(key)) and zero[key].get("device") not in (None, "none")


def _validation(config: dict[str, Any]) -> list[str]:
    """DeepSpeed's own validation of the section, without `auto`."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items() if item != "auto"}
        return value

    try:
        DeepSpeedZeroConfig(**plain(config.get("zero_optimization") or {}))
    except Exception as error:  # pydantic's, of a version that is DeepSpeed's to choose
        return [f"DeepSpeed refuses zero_optimization: {' '.join(str(error).split())[:200]}"]
    return []
