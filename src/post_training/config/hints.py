"""What a key that does not exist was probably meant to be: a name of another library, a key of another section, a slip."""

from collections.abc import Collection
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, get_args, get_type_hints

from post_training import methods
from post_training.config.schema import RENAMED, GlobalSections, SharedSections
from post_training.core.errors import closest

_DATASET = "data.datasets[]"
# Names of Axolotl, TRL, alignment-handbook, open-instruct and others that are no key here, and what to set instead. A text that
# begins with `-` says why there is nothing to set. docs/coming-from/ has the same pairs.
COMING_FROM = {
    "include": "- files are merged by --configfile base.yaml my.yaml; leave it out",
    "extends": "- files are merged by --configfile base.yaml my.yaml; leave it out",
    "defaults": "- files are merged by --configfile base.yaml my.yaml; leave it out",
    "adam_beta2": "training.trainer_args", "adapter": "model.lora",
    "adapter_name_or_path": "model.name_or_path: the adapters' folder", "add_bos": "data.chat_template",
    "additional_target": "model.lora.modules_to_save", "assistant_only_loss": "sft.train_on",
    "auto_insert_empty_system_msg": "- no turn is added; leave it out",
    "auto_resume_from_checkpoints": "- a run always resumes from its newest complete checkpoint; leave it out",
    "base_model": "model.name_or_path", "batch_size": "training.effective_batch_size", "bf16": "model.dtype: bfloat16",
    "bnb_4bit_compute_dtype": "model.dtype", "bnb_4bit_quant_type": "model.quantization.type",
    "bnb_4bit_use_double_quant": "model.quantization.double", "budget": "slurm.account",
    "cache_dataset_only": "- type `snakemake data`", "chat_template_jinja": "data.chat_template",
    "chat_template_name": "data.chat_template", "chat_template_path": "data.chat_template",
    "checkpointer": "model.name_or_path", "checkpointing_steps": "checkpointing.save_steps",
    "clip_grad_norm": "training.max_grad_norm", "columns": f"{_DATASET}.transform with the columns' names",
    "compile": "accelerate.dynamo_backend: inductor", "completion_only_loss": "sft.train_on: last",
    "config": f"{_DATASET}.subset", "cosine_min_lr_ratio": "training.lr_scheduler_kwargs: {min_lr_rate: ...}",
    "cpus": "slurm.cpus_per_task", "cutoff_len": "sft.max_seq_length or dpo.max_seq_length",
    "data_files": f"{_DATASET}.path", "dataset": "data.datasets, a list with path and transform",
    "dataset_config": f"{_DATASET}.subset", "dataset_configs": f"{_DATASET}.subset",
    "dataset_dir": f"{_DATASET}.path, the file itself", "dataset_info": "data.datasets, a list with path and transform",
    "dataset_mixer": "data.datasets, a list with path and weight",
    "dataset_mixer_list": "data.datasets, a list with path and weight", "dataset_mixer_list_splits": f"{_DATASET}.split",
    "dataset_mixture": "data.datasets", "dataset_name": f"{_DATASET}.path", "dataset_num_proc": "data.num_proc",
    "dataset_prepared_path": "- prepared data are found by their content; leave it out",
    "dataset_processes": "data.num_proc", "dataset_splits": f"{_DATASET}.split",
    "dataset_test_split": f"{_DATASET}.eval_split",
    "dataset_text_field": f"{_DATASET}.transform: {{name: messages, column: ...}}",
    "dataset_train_split": f"{_DATASET}.split", "dataset_transform_fn": f"{_DATASET}.transform",
    "ddp_timeout": "training.trainer_args: {ddp_timeout: ...}", "deepspeed_config_file": "deepspeed.config_path",
    "device": "- every GPU of the machine is used; without one, or with accelerate.use_cpu, the CPU",
    "do_eval": "- `snakemake` trains, exports and evaluates; leave it out",
    "do_train": "- `snakemake` trains, exports and evaluates; leave it out", "dpo_beta": "dpo.beta or kto.beta",
    "dpo_label_smoothing": "dpo.label_smoothing", "early_stopping_patience": "training.early_stopping: {patience: ...}",
    "enable_activation_checkpointing": "training.gradient_checkpointing",
    "enable_liger_kernel": "training.use_liger_kernel",
    "eos_token": "- the tokenizer is the model's own, and the chat template says where a turn ends; leave it out",
    "epochs": "training.num_train_epochs", "eval_batch_size": "evaluation.batch_size",
    "eval_dataset": f"{_DATASET}.eval_split or evaluation.datasets",
    "eval_steps": "evaluation.during_training_steps, on the rows that data.eval_fraction holds out",
    "eval_strategy": "evaluation.during_training_steps", "evals_per_epoch": "evaluation.during_training_steps",
    "evaluation_strategy": "evaluation.during_training_steps", "excess_length_strategy": "sft.overlong",
    "exp_name": "run_name", "export_dir": "paths.output_base and run_name: every stage exports its model",
    "export_size": "export.max_shard_size",
    "field_instruction": f"{_DATASET}.transform: question_answer with the columns' names",
    "field_messages": f"{_DATASET}.transform: {{name: messages, column: ...}}",
    "field_output": f"{_DATASET}.transform: question_answer with the columns' names",
    "finetuning_type": "model.lora, where it is lora; without it all weights are trained",
    "flash_attention": "model.attn_implementation: flash_attention_2", "flash_attn": "model.attn_implementation",
    "fp16": "model.dtype: float16", "fraction": f"{_DATASET}.weight, which counts passes over the dataset",
    "fsdp": "deepspeed.config_path: zero3, which divides weights, gradients and optimizer as FSDP does",
    "fsdp_config": "deepspeed.config_path: zero3, which divides weights, gradients and optimizer as FSDP does",
    "generate_during_eval": "evaluation.datasets, whose answers are in samples.jsonl", "gpus": "slurm.gpus_per_node",
    "gradient_accumulation_steps": "training.effective_batch_size: devices x per_device_train_batch_size x accumulation",
    "group_by_length": "sft.packing", "hf_token": "- secrets come from the environment only: export HF_TOKEN",
    "id": f"{_DATASET}.path", "interleave_probs": f"{_DATASET}.weight, which counts passes over the dataset",
    "is_llama_derived_model": "- it is read from the model's config.json; leave it out",
    "keep_last_n_checkpoints": "checkpointing.save_total_limit",
    "label_pad_token_id": "- what is trained on is marked while tokenising; leave it out",
    "liger_kernel": "training.use_liger_kernel", "lm_eval_batch_size": "evaluation.lm_eval.batch_size",
    "lm_eval_tasks": "evaluation.lm_eval.tasks", "load_best_model_at_end": "export.checkpoint: best",
    "load_in_4bit": "model.quantization: {} with model.lora",
    "load_in_8bit": "model.quantization, which has 4 bits, with model.lora", "log_every_n_steps": "logging.logging_steps",
    "logging_dir": "paths.output_base: logs are in the run directory", "lora_alpha": "model.lora.alpha",
    "lora_dropout": "model.lora.dropout", "lora_model_dir": "model.name_or_path: the adapters' folder",
    "lora_modules_to_save": "model.lora.modules_to_save", "lora_r": "model.lora.r", "lora_rank": "model.lora.r",
    "lora_target": "model.lora.target_modules", "lora_target_linear": "model.lora.target_modules",
    "lora_target_modules": "model.lora.target_modules", "loss": "dpo.loss_type or kto.loss_type",
    "loss_watchdog_threshold": "logging.loss_spike_sigmas", "lr": "training.learning_rate",
    "lr_scheduler": "training.lr_scheduler_type", "mask_history": "sft.train_on: last",
    "max_length": "sft.max_seq_length, dpo.max_seq_length or kto.max_seq_length",
    "max_prompt_length": "- pairs longer than dpo.max_seq_length are dropped and counted, not cut; leave it out",
    "max_samples": f"{_DATASET}.rows or evaluation.max_samples", "max_steps_per_epoch": "training.max_steps",
    "max_train_samples": f"{_DATASET}.rows", "max_train_steps": "training.max_steps", "memory": "slurm.mem",
    "message_property_mappings": f"{_DATASET}.transform: {{name: messages, role: ..., content: ...}}",
    "metric_logger": "logging.report_to", "micro_batch_size": "training.per_device_train_batch_size",
    "mix_strategy": f"{_DATASET}.weight, which counts passes over the dataset",
    "mixer_list": "data.datasets, a list with path and weight", "model_name": "model.name_or_path",
    "model_name_or_path": "model.name_or_path", "model_revision": "model.revision",
    "n_gpu": "slurm.gpus_per_node, and on this machine every GPU",
    "neat_packing": "sft.packing, which never attends across examples",
    "neftune_noise_alpha": "training.trainer_args: {neftune_noise_alpha: ...}", "nodes": "slurm.num_nodes",
    "num_epochs": "training.num_train_epochs", "num_gpus": "slurm.gpus_per_node, and on this machine every GPU",
    "num_machines": "slurm.num_nodes", "optim": "training.trainer_args: {optim: ...}",
    "optimizer": "training.trainer_args: {optim: ...}", "output_dir": "paths.output_base and run_name",
    "overwrite_cache": "- what has changed is made again, and nothing else; leave it out",
    "overwrite_output_dir": "- a changed configuration has a folder of its own; leave it out",
    "pad_to_sequence_len": "- packed rows have no padding; leave it out",
    "pad_token": "- the tokenizer is the model's own; leave it out",
    "padding_side": "- the workflow pads as each step needs it; leave it out", "peft_config": "model.lora",
    "per_device_eval_batch_size": "evaluation.batch_size", "plot_loss": "- the report has the curves; leave it out",
    "plugins": "training.use_liger_kernel", "precompute_ref_batch_size": "dpo.reference_batch_size",
    "precompute_ref_log_probs": "dpo.reference", "pref_beta": "dpo.beta or kto.beta", "pref_loss": "dpo.loss_type",
    "preprocessing_num_workers": "data.num_proc", "pure_bf16": "model.dtype: bfloat16",
    "quantization_bit": "model.quantization: {} with model.lora",
    "quantization_method": "model.quantization: {} with model.lora", "rank": "model.lora.r",
    "reduce_loss": "- the loss is the mean over trained tokens of the whole batch; leave it out",
    "ref_model": "dpo.ref_model_name_or_path",
    "remove_unused_columns": f"- columns are chosen by {_DATASET}.transform; leave it out",
    "resume_from_checkpoint": "- a run always resumes from its newest complete checkpoint; leave it out",
    "revision_of_model": "model.revision", "rl": "method", "rl_beta": "dpo.beta or kto.beta",
    "roles": f"{_DATASET}.transform, argument roles", "roles_to_train": "sft.train_on",
    "rope_scaling": "- the model's own config.json has it; change it in a copy of the model's folder",
    "rpo_alpha": "dpo.loss_type: [sigmoid, sft] with dpo.loss_weights", "sample_packing": "sft.packing",
    "save_strategy": "checkpointing.save_steps", "saves_per_epoch": "checkpointing.save_steps",
    "sdp_attention": "model.attn_implementation: sdpa",
    "seed": "training.seed for dropout, data.seed for the order of rows",
    "sequence_len": "sft.max_seq_length or dpo.max_seq_length", "setup": "slurm.modules or slurm.env",
    "shards": f"{_DATASET}.weight or {_DATASET}.rows", "shuffle": "data.seed", "shuffle_merged_datasets": "data.seed",
    "special_tokens": "model.lora.trainable_tokens for tokens that the model has; new ones belong into its tokenizer",
    "stage": "method", "template": "data.chat_template", "test_datasets": "evaluation.datasets",
    "test_split_size": "data.eval_fraction", "tf32": "model.dtype", "time": "slurm.wall_time",
    "tokenized_path": "- prepared data are found by their content; leave it out",
    "tokenizer": "- the tokenizer is the model's own; leave it out",
    "tokenizer_name": "- the tokenizer is the model's own; leave it out",
    "tokenizer_type": "- the tokenizer is the model's own; leave it out",
    "torch_compile": "accelerate.dynamo_backend: inductor", "torch_dtype": "model.dtype",
    "train_on_eos": "data.chat_template", "train_on_inputs": "sft.train_on", "train_on_prompt": "sft.train_on: all",
    "trainable_token_indices": "model.lora.trainable_tokens, the tokens' texts", "type": f"{_DATASET}.transform",
    "use_bnb_nested_quant": "model.quantization.double", "use_dora": "- adapters are plain LoRA; leave it out",
    "use_flash_attention_2": "model.attn_implementation: flash_attention_2",
    "use_flash_attn": "model.attn_implementation: flash_attention_2", "use_lora": "model.lora", "use_peft": "model.lora",
    "use_qlora": "model.quantization: {} with model.lora",
    "use_slow_tokenizer": "- tokenising needs the fast tokenizer; leave it out", "val_set_size": "data.eval_fraction",
    "val_size": "data.eval_fraction", "wandb_api_key": "- secrets come from the environment only: export WANDB_API_KEY",
    "wandb_entity": "- export WANDB_ENTITY in the environment", "wandb_name": "run_name",
    "wandb_project_name": "logging.wandb_project",
    "wandb_run_id": "- a resumed run continues its own W&B run; leave it out",
    "warmup_steps": "training.warmup_ratio, a share of the steps", "with_tracking": "logging.report_to",
    "xformers_attention": "model.attn_implementation",
}  # fmt: skip
# Below this a similar spelling is no slip: `micro_batch_size` is not `effective_batch_size`.
_SIMILAR = 0.8


def unknown_key(name: str, offered: Collection[str], shown: str) -> str:
    """The problem with an unknown key, in one line.

    Args:
        name: the key's own name.
        offered: the names that exist in its section.
        shown: the key as the user writes it, with `name` at its end.
    """
    if RENAMED.get(name) in offered:
        return f"is called {shown.removesuffix(name)}{RENAMED[name]} now; rename it"
    similar = 0.6 if len(name) <= 4 and name not in COMING_FROM else _SIMILAR  # two letters swapped are half of `dpo`
    if (slip := closest(name, offered, similar)) is not None:
        return f"unknown key. Did you mean {slip!r}? {_listed(offered)}"
    if (meant := COMING_FROM.get(name)) is not None:
        return (
            f"unknown key. {meant[2].upper()}{meant[3:]}"
            if meant.startswith("- ")
            else f"unknown key. Here it is {meant}"
        )
    if places := [path for path in _leaves().get(name, []) if path != shown]:
        return f"unknown key. Here it is {' or '.join(places[:4])}"
    if (slip := closest(name, {*_leaves(), *COMING_FROM}, _SIMILAR)) is not None:
        return unknown_key(slip, offered, shown) if slip != name else f"unknown key. {_listed(offered)}"
    return f"unknown key. {_listed(offered)}"


def _listed(offered: Collection[str]) -> str:
    return f"On offer: {', '.join(sorted(set(offered)))}"


@cache
def _leaves() -> dict[str, list[str]]:
    """Name of a key -> its paths in the schema."""
    found: dict[str, list[str]] = {}
    roots = [
        ("", GlobalSections),
        ("", SharedSections),
        *((f"{name}.", methods.load(name).Config) for name in methods.names()),
    ]
    for prefix, schema in roots:
        _collect(schema, prefix, found)
    return found


def _collect(schema: Any, prefix: str, found: dict[str, list[str]]) -> None:
    hints = get_type_hints(schema)
    for one in fields(schema):
        path = f"{prefix}{one.name}"
        found.setdefault(one.name, []).append(path)
        kinds = [hints[one.name], *get_args(hints[one.name])]
        for kind in (kind for kind in kinds if is_dataclass(kind)):
            _collect(
                kind, f"{path}{'[]' if hints[one.name] is not kind and 'list' in str(hints[one.name]) else ''}.", found
            )
