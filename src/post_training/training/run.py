"""One rank of a training run, from the task to the last whole checkpoint."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from post_training import methods
from post_training.config import batch, resolve
from post_training.config.batch import BatchPlan, Topology
from post_training.config.deepspeed import strategy
from post_training.core import devices
from post_training.core.errors import ConfigError, UserError
from post_training.core.task import Task
from post_training.data import registry
from post_training.data.dataset_of_row import origins
from post_training.data.tokens.chat_template import resolve_template
from post_training.data.view import open_rows
from post_training.launch.reshard import Resume, has_universal, how_to_resume
from post_training.methods.dpo.reference import StoredReference
from post_training.models import folder as model_folder
from post_training.models import lora
from post_training.models.loading import quiet
from post_training.run_dir.checkpoints import Checkpoint, Choice, discard_incomplete, newest_complete
from post_training.run_dir.stop import REQUEST, write_stopped
from post_training.training.arguments import load_dtype, trainer_arguments
from post_training.training.measure import Meter, unlogged
from post_training.training.peak_memory import PeakMemory
from post_training.training.step_samples import SamplesLog
from post_training.training.universal import repair_loading


def train_rank(task: Task) -> signal.Signals | None:
    """Train to the last step, resuming from the newest whole checkpoint. The launcher writes the manifest.

    Returns the signal that ended it before its last step, if one did.

    Raises:
        UserError: for what the user can mend, on the rank that saw it.
    """
    view = resolve(task.runtime["pipeline"]).last
    name = view["method"]
    plan = batch.batch_plan(view, name, topology_from_environment())
    steps = batch.steps(view, name, task.input_manifest("data")["rows_out"])
    assert steps is not None

    args = arguments_of(task, view, plan, steps)
    choice = agree_on_checkpoint(task.directory / "checkpoints")
    start = choice.chosen
    resume = how_to_resume(start, strategy(view), args.world_size) if start else Resume(False, "")
    if start and resume.universal:
        if not has_universal(start.path):
            raise UserError(f"{start.path}: was not rewritten for {args.world_size} ranks; start the run again")
        args.deepspeed_plugin.deepspeed_config.setdefault("checkpoint", {})["load_universal"] = True
        repair_loading()
    if args.process_index == 0:
        print(f"{name}: {choice.describe(resume.note)}", flush=True)

    peak = PeakMemory(type(args))
    stored = None
    if "reference" in task.inputs:
        stored = StoredReference(task.inputs["reference"], start=task.spec["inputs"]["model"])
    rows = open_rows(task.inputs["data"], rows=steps * plan.rows)
    trainer = trainer_of(task, view, args, rows, stored)
    if args.deepspeed and not trainer.is_deepspeed_enabled:
        raise UserError("DeepSpeed is configured but not in use: unset ACCELERATE_USE_CPU (accelerate launch --cpu)")
    return _train(trainer, task, view, start, peak, lambda index: origins(rows, index))


def _train(
    trainer: Any,
    task: Task,
    view: dict[str, Any],
    start: Checkpoint | None,
    peak: PeakMemory,
    origins: Callable[[int], list[str]],
) -> signal.Signals | None:
    """The training loop with its callbacks; ends with a whole checkpoint of the last step, or of the one it stopped at."""
    import warnings

    from transformers import PrinterCallback

    # Of Transformers to TRL, about names that change in version 6; one a checkpoint.
    warnings.filterwarnings("ignore", category=FutureWarning)
    from post_training.run_dir import metrics as metrics_file
    from post_training.run_dir import timeline
    from post_training.training import callbacks
    from post_training.training.energy import Energy
    from post_training.training.step_monitor import SpikeRule, StepWatch

    directory, checkpointing, first = task.directory, view["checkpointing"], trainer.args.process_index == 0
    told = start.facts if start else {}
    meter = Meter(view["logging"]["include_num_input_tokens_seen"])
    meter.restore(told)
    meter.attach(trainer)
    energy = Energy(trainer.args.device)
    metrics = metrics_file.path_of(directory)
    lost: dict[str, Any] = {}
    if first:
        lost = callbacks.cut_metrics(metrics, start.step if start else 0, meter.seconds)
    every = checkpointing["inference_checkpoint_steps"]
    every = every if every is not None and every > 0 else None
    samples = SamplesLog(directory / "logs" / "samples.jsonl") if first else None
    spikes = SpikeRule(task.config["method"], view["logging"]["loss_spike_sigmas"], told.get("losses") or [])
    watch = StepWatch(trainer, REQUEST, samples, spikes, every, origins)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(watch)
    steps_per_epoch = task.input_manifest("data")["rows_out"] / view["training"]["effective_batch_size"]
    trainer.add_callback(callbacks.MetricsCallback(metrics, meter, peak, steps_per_epoch))
    trainer.add_callback(callbacks.ProgressCallback(task.config["method"], meter))
    if first:
        trainer.add_callback(callbacks.TimelineCallback(directory, lost))
    if every is not None:
        elsewhere = checkpointing["inference_checkpoint_path"]
        folder = Path(elsewhere) / directory.name if elsewhere else directory / "inference_checkpoints"
        dtype = view["model"]["dtype"]
        trainer.add_callback(callbacks.InferenceCheckpointCallback(trainer, directory, folder, every, dtype))
    limit, sizes = checkpointing["save_total_limit"], lora.parameter_counts(trainer.model)
    if first:
        print(f"{task.config['method']}: {lora.describe(view['model']['lora'], sizes, trainer.args)}", flush=True)

    def facts() -> dict[str, Any]:
        return {
            "strategy": strategy(view),
            "world_size": trainer.args.world_size,
            **sizes,
            **meter.totals(),
            **peak.facts(told),
            **energy.facts(trainer.accelerator.gather, trainer.args.device, told),
            "losses": list(spikes.losses),
            "unlogged": unlogged(trainer),
        }

    trainer.add_callback(
        callbacks.CheckpointCallback(trainer, directory / "checkpoints", limit, facts, told.get("unlogged"))
    )
    step = start.step if start else 0
    if not watch.asked_to_stop():
        trainer.train(resume_from_checkpoint=str(start.path) if start else None)
        step = trainer.state.global_step
    callbacks.barrier()
    stopped = watch.stopped if step < trainer.args.max_steps else None
    if first:
        timeline.note(directory, "end", step=step, why=stopped.name if stopped else "done")
    if stopped and first:
        write_stopped(directory, stopped, step)
    _leave_group()
    return stopped


def arguments_of(task: Task, view: dict[str, Any], plan: BatchPlan, steps: int, **changed: Any) -> Any:
    """TRL's configuration of a stage, with some arguments changed. Made before the model: with ZeRO-3 it makes that load in shards."""
    name = view["method"]
    config_class = methods.load(name).config_class()
    return make_arguments(
        config_class, trainer_arguments(view, name, task.directory, plan, steps, config_class) | changed
    )


def trainer_of(task: Task, view: dict[str, Any], args: Any, rows: Any, reference: Any = None) -> Any:
    """The method's trainer on the task's model with its adapters, and the reference model or what is stored of one."""
    if view["training"]["deterministic"]:
        import torch

        # With the launcher's variables. Not the trainer's `full_determinism`, which also makes every kernel launch wait.
        torch.use_deterministic_algorithms(True)
    folder = model_folder(task.inputs["model"])
    model = load_model(folder, view)
    beside: dict[str, Any] = {} if reference is None else {"reference": reference}
    if "reference_model" in task.inputs:
        beside["ref_model"] = load_model(model_folder(task.inputs["reference_model"]), view)
    return methods.load(view["method"]).build_trainer(
        view,
        model,
        args,
        train_dataset=rows,
        processing_class=load_tokenizer(folder, view),
        **lora.adapter_arguments(view, model, folder),
        **beside,
    )


def make_arguments(config_class: Any, arguments: dict[str, Any]) -> Any:
    """TRL's configuration, which also forms the group of ranks. Raises UserError for what it refuses."""
    try:
        args = config_class(**arguments)
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(f"{config_class.__name__} refuses these settings: {_line(error)}") from None
    if args.deepspeed:
        _join_deepspeed()
    return args


def _join_deepspeed() -> None:
    """Tell DeepSpeed of the process group, which on the CPU was made without it: it would count one rank."""
    import torch.distributed as dist
    from deepspeed import comm

    if not comm.is_initialized():
        comm.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False)


def agree_on_checkpoint(directory: Path) -> Choice:
    """Rank 0 looks and all ranks get its answer; what never became whole is removed."""
    import torch.distributed as dist

    distributed = dist.is_available() and dist.is_initialized()
    first = not distributed or dist.get_rank() == 0
    told = [newest_complete(directory) if first else None]
    if distributed:
        dist.broadcast_object_list(told, src=0)
    choice = told[0]
    assert choice is not None
    if first:
        discard_incomplete(choice)
    return choice


def topology_from_environment() -> Topology:
    """Ranks and nodes as the launcher, srun or `accelerate launch` has set them; one rank without them."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", str(world)))
    return Topology(world // local, local, "GPU" if devices.count_gpus() else "CPU")


def load_model(folder: Path, view: dict[str, Any]) -> Any:
    """The model with its attention backend; one line where that backend or the folder cannot be used."""
    from transformers import AutoModelForCausalLM

    quiet()
    attention = view["model"]["attn_implementation"]
    try:
        return AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=load_dtype(view),
            attn_implementation=attention,
            trust_remote_code=view["model"]["trust_remote_code"],
        )
    except (ImportError, ValueError, OSError) as error:
        if any(word in str(error).lower() for word in ("attention", "attn", "kernels")):
            raise ConfigError(
                "model.attn_implementation", f"{attention!r} cannot be used here: {_line(error)}"
            ) from None
        raise UserError(f"{folder}: cannot be loaded as a model: {_line(error)}") from None


def load_tokenizer(folder: Path, view: dict[str, Any]) -> Any:
    """The model's tokenizer, read when it is needed, with our chat template so that every save carries it."""
    from transformers import AutoTokenizer

    from post_training.training.deferred_tokenizer import defer

    def load() -> Any:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=view["model"]["trust_remote_code"])
        tokenizer.chat_template = resolve_template(registry.chat_template_text(view["data"]["chat_template"]), folder)
        return tokenizer

    return defer(folder, load)


def _leave_group() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def _line(error: BaseException) -> str:
    """An exception of a library in one line."""
    return " ".join(str(error).split())[:400]
