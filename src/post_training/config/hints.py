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
    "adam_beta2": "training.trainer_args", "adapter": "model.lora", "add_bos": "data.chat_template",
    "assistant_only_loss": "sft.train_on", "auto_insert_empty_system_msg": "- no turn is added; leave it out",
    "auto_resume_from_checkpoints": "- a run always resumes from its newest complete checkpoint; leave it out",
    "base_model": "model.name_or_path", "batch_size": "training.effective_batch_size", "bf16": "model.dtype: bfloat16",
    "bnb_4bit_compute_dtype": "model.dtype", "bnb_4bit_quant_type": "model.quantization.type",
    "bnb_4bit_use_double_quant": "model.quantization.double", "budget": "slurm.account",
    "cache_dataset_only": "- type `snakemake data`", "chat_template_jinja": "data.chat_template",
    "chat_template_name": "data.chat_template", "chat_template_path": "data.chat_template",
    "checkpointing_steps": "checkpointing.save_steps", "clip_grad_norm": "training.max_grad_norm",
    "columns": f"{_DATASET}.transform with the columns' names", "completion_only_loss": "sft.train_on: last",
    "config": f"{_DATASET}.subset", "cosine_min_lr_ratio": "training.lr_scheduler_kwargs: {min_lr_rate: ...}",
    "data_files": f"{_DATASET}.path", "dataset_config": f"{_DATASET}.subset", "dataset_configs": f"{_DATASET}.subset",
    "dataset_mixer": "data.datasets, a list with path and weight", "dataset_mixer_list": "data.datasets, a list with path and weight",
    "dataset_mixer_list_splits": f"{_DATASET}.split", "dataset_mixture": "data.datasets", "dataset_name": f"{_DATASET}.path",
    "dataset_num_proc": "data.num_proc", "dataset_prepared_path": "- prepared data are found by their content; leave it out",
    "dataset_processes": "data.num_proc", "dataset_splits": f"{_DATASET}.split", "dataset_test_split": f"{_DATASET}.eval_split",
    "dataset_train_split": f"{_DATASET}.split", "dataset_transform_fn": f"{_DATASET}.transform",
    "deepspeed_config_file": "deepspeed.config_path", "dpo_beta": "dpo.beta or kto.beta",
    "dpo_label_smoothing": "dpo.label_smoothing",
    "eval_steps": "data.eval_fraction: every model is evaluated on held-out examples after training",
    "epochs": "training.num_train_epochs", "excess_length_strategy": "sft.overlong", "exp_name": "run_name",
    "field_instruction": f"{_DATASET}.transform: question_answer with the columns' names",
    "field_messages": f"{_DATASET}.transform: {{name: messages, column: ...}}",
    "field_output": f"{_DATASET}.transform: question_answer with the columns' names",
    "flash_attention": "model.attn_implementation: flash_attention_2", "fp16": "model.dtype: float16",
    "fraction": f"{_DATASET}.weight, which counts passes over the dataset", "gpus": "slurm.gpus_per_node",
    "gradient_accumulation_steps": "training.effective_batch_size: devices x per_device_train_batch_size x accumulation",
    "id": f"{_DATASET}.path", "keep_last_n_checkpoints": "checkpointing.save_total_limit",
    "lm_eval_batch_size": "evaluation.lm_eval.batch_size", "lm_eval_tasks": "evaluation.lm_eval.tasks",
    "load_in_4bit": "model.quantization: {} with model.lora",
    "load_in_8bit": "model.quantization, which has 4 bits, with model.lora",
    "lora_alpha": "model.lora.alpha", "lora_dropout": "model.lora.dropout", "lora_r": "model.lora.r", "lora_rank": "model.lora.r",
    "lora_modules_to_save": "model.lora.modules_to_save", "additional_target": "model.lora.modules_to_save",
    "trainable_token_indices": "model.lora.trainable_tokens, the tokens' texts", "lora_model_dir": "model.name_or_path: the adapters' folder",
    "lora_target_linear": "model.lora.target_modules", "lora_target_modules": "model.lora.target_modules",
    "loss_watchdog_threshold": "logging.loss_spike_sigmas", "lr": "training.learning_rate",
    "lr_scheduler": "training.lr_scheduler_type",
    "max_length": "sft.max_seq_length, dpo.max_seq_length or kto.max_seq_length",
    "max_prompt_length": "- pairs longer than dpo.max_seq_length are dropped and counted, not cut; leave it out",
    "max_train_samples": f"{_DATASET}.rows", "max_train_steps": "training.max_steps",
    "message_property_mappings": f"{_DATASET}.transform: {{name: messages, role: ..., content: ...}}",
    "micro_batch_size": "training.per_device_train_batch_size", "mixer_list": "data.datasets, a list with path and weight",
    "model_name_or_path": "model.name_or_path", "model_revision": "model.revision", "num_epochs": "training.num_train_epochs",
    "optim": "training.trainer_args: {optim: ...}", "optimizer": "training.trainer_args: {optim: ...}",
    "output_dir": "paths.output_base and run_name", "plugins": "training.use_liger_kernel",
    "precompute_ref_batch_size": "dpo.reference_batch_size", "precompute_ref_log_probs": "dpo.reference",
    "preprocessing_num_workers": "data.num_proc", "rank": "model.lora.r",
    "reduce_loss": "- the loss is the mean over trained tokens of the whole batch; leave it out",
    "resume_from_checkpoint": "- a run always resumes from its newest complete checkpoint; leave it out",
    "revision_of_model": "model.revision", "rl": "method", "rl_beta": "dpo.beta or kto.beta",
    "roles": f"{_DATASET}.transform, argument roles", "roles_to_train": "sft.train_on", "sample_packing": "sft.packing",
    "saves_per_epoch": "checkpointing.save_steps", "sdp_attention": "model.attn_implementation: sdpa",
    "sequence_len": "sft.max_seq_length or dpo.max_seq_length", "shards": f"{_DATASET}.weight or {_DATASET}.rows",
    "shuffle_merged_datasets": "data.seed", "test_datasets": "evaluation.datasets", "test_split_size": "data.eval_fraction",
    "tf32": "model.dtype", "tokenizer_name": "- the tokenizer is the model's own; leave it out",
    "torch_compile": "accelerate.dynamo_backend: inductor", "torch_dtype": "model.dtype", "train_on_eos": "data.chat_template",
    "train_on_inputs": "sft.train_on", "type": f"{_DATASET}.transform",
    "use_flash_attention_2": "model.attn_implementation: flash_attention_2",
    "use_flash_attn": "model.attn_implementation: flash_attention_2", "use_lora": "model.lora", "use_peft": "model.lora",
    "use_bnb_nested_quant": "model.quantization.double",
    "use_qlora": "model.quantization: {} with model.lora",
    "use_slow_tokenizer": "- tokenising needs the fast tokenizer; leave it out", "val_set_size": "data.eval_fraction",
    "wandb_project_name": "logging.wandb_project", "warmup_steps": "training.warmup_ratio, a share of the steps",
    "with_tracking": "logging.report_to",
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
            f"unknown key. {meant[2:].capitalize()}" if meant.startswith("- ") else f"unknown key. Here it is {meant}"
        )
    if places := [path for path in _leaves().get(name, []) if path != shown]:
        return f"unknown key. Here it is {' or '.join(places[:3])}"
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
