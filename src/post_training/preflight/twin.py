"""One step of a stage with a twin of its model: two layers of random weights, on the CPU, through the whole of the training's code.

What would be a traceback in the training's job is a line here. What needs a GPU or several ranks is left out, and said.
"""

import json
from collections.abc import Sequence
from typing import Any

from post_training.core.errors import ConfigError, UserError, brief
from post_training.preflight.check import FAILURE, Check
from post_training.preflight.subject import Subject
from post_training.preflight.twin_step import NoTwin, take_step, twin_folder

NAME = "model.step"
_BUILT_IN = ("auto", "varlen", "eager", "sdpa")
_DECIDE = ("libraries.", "model.", "optimisation.batch", "optimisation.schedule")
_DONE: dict[str, Check] = {}


def check(subject: Subject, others: Sequence[Check]) -> Check:
    """Take the step; `others` are what else was found of this stage, whose failures are not found twice."""
    failed = [one.name for one in others if one.verdict == FAILURE and one.name.startswith(_DECIDE)]
    if failed:
        return Check(NAME, f"not taken: {failed[0]} failed")
    key = _key(subject)
    if key not in _DONE:
        _DONE[key] = _taken(subject)
    return _DONE[key]


def _key(subject: Subject) -> str:
    """What decides whether a step can be taken: of the method's own numbers and of the learning rate only that they are there."""
    view, training = subject.view, subject.training
    names = ("trainer_args", "lr_scheduler_type", "lr_scheduler_kwargs", "gradient_checkpointing")
    own = {name: type(value).__name__ if isinstance(value, float) else value for name, value in subject.own.items()}
    config = (subject.folder / "config.json").read_text(encoding="utf-8")
    parts = [config, str(subject.folder), subject.method, own, view["model"], {name: training[name] for name in names}]
    return json.dumps([*parts, subject.topology.device, subject.topology.world_size > 1], sort_keys=True, default=str)


def _taken(subject: Subject) -> Check:
    view, unchecked = _on_one_cpu(subject)
    try:
        with twin_folder(subject.folder, view) as (folder, manifest):
            try:
                step = take_step(view, folder, manifest)
            except Exception as error:
                optimizer = _needs_gpu(error, view) if subject.topology.device == "GPU" else None
                if optimizer is None:
                    raise
                unchecked.append(optimizer)
                view["training"]["trainer_args"] = {**view["training"]["trainer_args"], "optim": "adamw_torch"}
                step = take_step(view, folder, manifest)
    except NoTwin as error:
        return Check(NAME, f"not known: {error}")
    except UserError as error:
        message = f"{error.key}: {error.problem}" if isinstance(error, ConfigError) else str(error)
        return Check(NAME, f"one step of a two-layer twin: {message}", FAILURE)
    except Exception as error:  # of any library: it would be the training's traceback
        remedy = "the training would end in the same way: change training.trainer_args, or the model"
        return Check(NAME, f"one step of a two-layer twin: {type(error).__name__}: {brief(error)}", FAILURE, remedy)
    more = f"; not checked here: {', '.join(unchecked)}" if unchecked else ""
    return Check(NAME, f"a two-layer twin takes one; {step.said}{more}")


def _on_one_cpu(subject: Subject) -> tuple[dict[str, Any], list[str]]:
    """The stage's view as this machine can compute it, and what that leaves out."""
    view = {**subject.view, "training": dict(subject.training), "model": dict(subject.view["model"])}
    left_out: list[str] = []
    if view["model"]["attn_implementation"] not in _BUILT_IN:
        left_out.append(f"model.attn_implementation={view['model']['attn_implementation']}")
        view["model"]["attn_implementation"] = "auto"
    if subject.deepspeed is not None:
        left_out.append("DeepSpeed")
    view["deepspeed"] = {**view["deepspeed"], "config_path": None, "config": {}}
    if view["model"]["quantization"] is not None:
        left_out.append("the 4 bits of model.quantization")
        view["model"]["quantization"] = None
    if view["accelerate"]["dynamo_backend"].lower() != "no":
        left_out.append("accelerate.dynamo_backend")
    view["accelerate"] = {**view["accelerate"], "dynamo_backend": "no"}
    if subject.training["use_liger_kernel"]:
        left_out.append("training.use_liger_kernel")
    arguments = dict(subject.training["trainer_args"])
    for name in ("fsdp", "fsdp_config", "parallelism_config") if subject.topology.world_size > 1 else ():
        if arguments.pop(name, None):
            left_out.append(f"training.trainer_args.{name}")
    workers = ("dataloader_num_workers", "dataloader_persistent_workers", "dataloader_prefetch_factor")
    arguments = {name: value for name, value in arguments.items() if name not in workers}
    view["training"] |= {"deterministic": False, "use_liger_kernel": False, "trainer_args": arguments}
    if subject.topology.device == "GPU" and view["model"]["dtype"] == "float16":
        view["model"]["dtype"] = "bfloat16"
    view["logging"] = {**view["logging"], "report_to": ["none"], "logging_steps": 1}
    return view, left_out


def _needs_gpu(error: Exception, view: dict[str, Any]) -> str | None:
    """The optimizer as what cannot be checked here, where an error says that it wants a GPU."""
    optimizer = view["training"]["trainer_args"].get("optim")
    words = ("cuda", "gpu", "triton", "nvidia", "xpu", "hip", "cpu")
    message = str(error).lower()
    if optimizer is None or isinstance(error, ImportError) or not any(word in message for word in words):
        return None
    return f"training.trainer_args.optim={optimizer}, which needs a GPU"
