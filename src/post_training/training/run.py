"""One rank of a training run, from the task to the last complete checkpoint."""

import signal
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoTokenizer
from trl.trainer.reward_trainer import suppress_seqcls_warning

from post_training import methods
from post_training.config import batch, resolve
from post_training.config.batch import BatchPlan
from post_training.config.deepspeed import strategy
from post_training.core.errors import ConfigError, UserError, brief
from post_training.core.task import Task
from post_training.data import registry
from post_training.data.tokens.chat_template import resolve_template
from post_training.data.view import open_rows
from post_training.launch.reshard import Resume, has_universal, how_to_resume
from post_training.methods.dpo.reference import StoredReference
from post_training.models import folder as model_folder
from post_training.models import hub_kernel, lora, parts, quantization
from post_training.models.loading import fix_generation_config, silence_progress_bars
from post_training.models.packing_probe import padding_free, probe_folder, resolve_attention
from post_training.run_dir import metrics, timeline
from post_training.run_dir.checkpoints import (
    Checkpoint,
    Choice,
    discard_incomplete,
    newest_complete,
    set_aside,
    why_damaged,
)
from post_training.run_dir.stop import REQUEST, write_stopped
from post_training.training import callbacks, ranks
from post_training.training.arguments import load_dtype, trainer_arguments
from post_training.training.held_out import HeldOut
from post_training.training.measure import Energy, PeakMemory, TokenCounter
from post_training.training.saving import Checkpoints, InferenceCheckpointCallback
from post_training.training.step_monitor import SpikeRule, StepMonitor
from post_training.training.step_samples import SamplesLog
from post_training.training.trainer import RestoreCallback, trainer_class
from post_training.training.universal import repair_loading


def train_rank(task: Task) -> signal.Signals | None:
    """Train to the last step, resuming from the newest complete checkpoint. The launcher writes the manifest.

    Returns the signal that ended it before its last step, if one did.

    Raises:
        UserError: for what the user can fix, on the rank that saw it.
    """
    view = resolve(task.runtime["pipeline"]).last
    name = view["method"]
    plan = batch.batch_plan(view, name, batch.topology_from_environment())
    steps = batch.steps(view, name, task.input_manifest("data")["rows_out"])
    assert steps is not None

    args = arguments_of(task, view, plan, steps)
    found = set(ranks.gather_objects(plan.per_device))
    if len(found) > 1:
        problem = f"auto is {sorted(found)} on different devices; give a number"
        raise ConfigError("training.per_device_train_batch_size", problem)
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
    first, logging, earlier = args.process_index == 0, view["logging"], start.facts if start else {}
    samples = SamplesLog(task.directory / "logs" / "samples.jsonl") if first else None
    spikes = SpikeRule(task.config["method"], logging["loss_spike_sigmas"], earlier.get("losses") or [])
    tokens = TokenCounter(logging["include_num_input_tokens_seen"], earlier)
    monitor = StepMonitor(args.device, REQUEST, rows.sources, samples, spikes, tokens)
    trainer = make_trainer(trainer_class(name), task, view, args, rows, stored, tokens=tokens, monitor=monitor)
    if args.deepspeed and not trainer.is_deepspeed_enabled:
        raise UserError("DeepSpeed is configured but not in use: unset ACCELERATE_USE_CPU (accelerate launch --cpu)")
    held_out = None
    if view["evaluation"]["during_training_steps"] is not None:
        held_out = HeldOut(trainer, view, task.inputs["data"], task.directory, earlier)
        trainer.add_callback(held_out)
    sizes, energy = lora.parameter_counts(trainer.model), Energy(args.device)
    if first:
        print(f"{task.config['method']}: {lora.describe(view['model']['lora'], sizes, args)}", flush=True)

    def facts() -> dict[str, Any]:
        return {
            "strategy": strategy(view),
            "world_size": args.world_size,
            **sizes,
            **tokens.totals(),
            **peak.facts(earlier),
            **energy.facts(earlier),
            "losses": list(spikes.losses),
            **(held_out.facts() if held_out else {}),
        }

    def best_step() -> int | None:
        return held_out.record.best_step if held_out and held_out.keeps_best else None

    trainer.checkpoints = Checkpoints(args, task.directory, view["checkpointing"]["save_total_limit"], facts, best_step)
    trainer.add_callback(RestoreCallback(trainer, earlier.get("unlogged")))
    _add_reports(trainer, task, view, peak, start.step if start else 0)
    return _train(trainer, task.directory, start)


def _add_reports(trainer: Any, task: Task, view: dict[str, Any], peak: PeakMemory, start: int) -> None:
    """The callbacks that write metrics, timeline, progress and inference checkpoints."""
    directory, checkpointing, name = task.directory, view["checkpointing"], task.config["method"]
    path = metrics.path_of(directory)
    if trainer.args.process_index == 0:
        lost = callbacks.cut_metrics(path, start, trainer.tokens.seconds)
        trainer.add_callback(callbacks.TimelineCallback(directory, lost))
    steps_per_epoch = task.input_manifest("data")["rows_out"] / view["training"]["effective_batch_size"]
    trainer.add_callback(callbacks.MetricsCallback(path, trainer.tokens, peak, steps_per_epoch))
    trainer.add_callback(callbacks.ProgressCallback(name, trainer.tokens))
    every = checkpointing["inference_checkpoint_steps"]
    if every is not None and every > 0:
        elsewhere = checkpointing["inference_checkpoint_path"]
        folder = Path(elsewhere) / directory.name if elsewhere else directory / "inference_checkpoints"
        dtype = view["model"]["dtype"]
        trainer.add_callback(InferenceCheckpointCallback(trainer, directory, folder, every, dtype))


def _train(trainer: Any, directory: Path, start: Checkpoint | None) -> signal.Signals | None:
    """Train; ends with a complete checkpoint of the last step, or of the one at which it was stopped."""
    # Of Transformers to TRL, whose defaults name `gradient_checkpointing`; one a checkpoint.
    warnings.filterwarnings("ignore", r".* is deprecated and will be removed in v6", FutureWarning)
    step = start.step if start else 0
    if not trainer.monitor.stop_requested():
        trainer.train(resume_from_checkpoint=str(start.path) if start else None)
        step = trainer.state.global_step
    ranks.barrier()
    stopped: signal.Signals | None = trainer.monitor.stopped if step < trainer.args.max_steps else None
    if trainer.args.process_index == 0:
        timeline.note(directory, "end", step=step, why=stopped.name if stopped else "done")
        if stopped:
            write_stopped(directory, stopped, step)
    ranks.leave()
    return stopped


def arguments_of(task: Task, view: dict[str, Any], plan: BatchPlan, steps: int, **changed: Any) -> Any:
    """TRL's configuration of a stage, with some arguments changed. Made before the model: with ZeRO-3 it makes that load in shards."""
    name = view["method"]
    config_class = methods.config_class(name)
    return make_arguments(config_class, trainer_arguments(view, name, task.directory, plan, steps) | changed)


def make_trainer(
    trainer_class: Any, task: Task, view: dict[str, Any], args: Any, rows: Any, stored: Any, **kwargs: Any
) -> Any:
    """The trainer on the task's model with its adapters, and the reference model or what is `stored` of one."""
    if view["training"]["deterministic"]:
        # With the launcher's variables. Not the trainer's `full_determinism`, which also makes every kernel launch wait.
        torch.use_deterministic_algorithms(True)
    folder = model_folder(task.inputs["model"])
    if getattr(rows, "packed", False):
        check_packing(folder, view)
    model = load_model(folder, view)
    if stored is not None:
        kwargs["reference"] = stored
    if "reference_model" in task.inputs:
        kwargs["ref_model"] = load_model(model_folder(task.inputs["reference_model"]), view)
    kwargs |= lora.adapter_arguments(view, model, folder)
    kwargs |= {"padding_free": padding_free(folder, view), "processing_class": load_tokenizer(folder, view)}
    trainer = trainer_class(view, rows, model=model, args=args, **kwargs)
    quantization.widen_adapters(trainer.model)
    parts.settle(trainer.model)
    return trainer


def make_arguments(config_class: Any, arguments: dict[str, Any]) -> Any:
    """TRL's configuration, which also forms the group of ranks. Raises UserError for what it refuses."""
    try:
        args = config_class(**arguments)
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(f"{config_class.__name__} refuses these settings: {brief(error, 400)}") from None
    if args.deepspeed:
        _join_deepspeed()
    return args


def _join_deepspeed() -> None:
    """Have DeepSpeed join the process group, which on the CPU was made without it: it would count one rank."""
    import torch.distributed as dist
    from deepspeed import comm

    if not comm.is_initialized():
        comm.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False)


def agree_on_checkpoint(directory: Path) -> Choice:
    """The newest complete checkpoint, found by rank 0 for all ranks, whose files are as they were saved.

    Incomplete ones are removed. Each rank reads the part of a checkpoint that it wrote; a damaged one is set aside, and
    the one before is taken.
    """

    def choose() -> Choice:
        choice = newest_complete(directory)
        discard_incomplete(choice)
        return choice

    while True:
        choice = ranks.from_rank_0(choose)
        if choice.chosen is None:
            return choice
        path = choice.chosen.path
        why = next(filter(None, ranks.gather_objects(why_damaged(path, *ranks.place()))), None)
        if why is None:
            return choice
        ranks.from_rank_0(partial(set_aside, path, why))


def load_model(folder: Path, view: dict[str, Any]) -> Any:
    """The model with its attention backend; one line where that backend or the folder cannot be used.

    Layers that the folder has no weights for, a reward model's output, are those of `training.seed`.
    """
    silence_progress_bars()
    trust, name = view["model"]["trust_remote_code"], methods.model_class(view["method"])
    attention = resolve_attention(view["model"]["attn_implementation"], folder, trust)
    device = torch.cuda.current_device() if batch.topology_from_environment().device == "GPU" else "cpu"
    arguments = quantization.load_arguments(view["model"]["quantization"], view["model"]["dtype"], device)
    if name != methods.CAUSAL_LM:
        arguments["num_labels"] = 1
        transformers.set_seed(view["training"]["seed"])
    try:
        with suppress_seqcls_warning():  # preflight has compared the tensors
            model: Any = getattr(transformers, name).from_pretrained(
                folder, dtype=load_dtype(view), attn_implementation=attention, trust_remote_code=trust, **arguments
            )
        quantization.keep_exact(model)
        hub_kernel.check_loaded(attention)
    except (ImportError, ValueError, OSError) as error:
        if any(word in str(error).lower() for word in ("attention", "attn", "kernels")):
            problem = f"{attention!r} cannot be used here: {brief(error, 400)}"
            raise ConfigError("model.attn_implementation", problem) from None
        raise UserError(f"{folder}: cannot be loaded as a model: {brief(error, 400)}") from None
    fixed = fix_generation_config(model)
    if fixed and ranks.place()[0] == 0:
        print(f"{folder}: {fixed}", flush=True)
    return model


def check_packing(folder: Path, view: dict[str, Any]) -> None:
    """Raise ConfigError where the model would mix packed documents, or nothing is known of it; preflight says so earlier."""
    if "libraries.packing" in view["preflight"]["only_warn"]:
        return
    found = probe_folder(folder, view["model"]["attn_implementation"], view["model"]["trust_remote_code"])
    if not found.safe:
        raise ConfigError(f"{view['method']}.packing", f"{found.verdict()}; set {view['method']}.packing=false")


def load_tokenizer(folder: Path, view: dict[str, Any]) -> Any:
    """The model's tokenizer, with our chat template so that every save carries it."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=view["model"]["trust_remote_code"])
    if tokenizer.eos_token_id is None and tokenizer.pad_token_id is None:
        remedy = "set eos_token in its tokenizer_config.json to the token that ends an answer"
        raise UserError(f"{folder}: the tokenizer has neither an end token nor one for padding; {remedy}")
    tokenizer.chat_template = resolve_template(registry.chat_template_text(view["data"]["chat_template"]), folder)
    return tokenizer
