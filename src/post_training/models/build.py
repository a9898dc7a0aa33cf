"""A small model with random weights, and a byte-level BPE tokenizer trained on the user's text."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from post_training.core.errors import ConfigError, DataError, did_you_mean, guess
from post_training.core.manifest import describe, own_files
from post_training.core.task import Task
from post_training.models.files import make_portable
from post_training.models.loading import silence_progress_bars

_KEY = "model.from_scratch"


def run(task: Task) -> None:
    """Write `model/` beside the manifest; equal configuration and corpus give equal bytes."""
    folder = task.directory / "model"
    folder.mkdir(parents=True, exist_ok=True)
    silence_progress_bars()
    corpus = [Path(path).absolute() for path in task.runtime["corpus"]]
    sources = describe(task.directory, corpus)
    tokenizer = train_tokenizer(corpus, task.config["vocab_size"], task.config["special_tokens"])
    tokenizer.save_pretrained(folder)
    parameters = write_weights(folder, len(tokenizer), tokenizer, task.config["weights"])
    make_portable(folder)
    print(f"model: {parameters:,} parameters, {len(tokenizer):,} tokens in the vocabulary -> {folder}", flush=True)
    task.finish(
        folder=folder.name,
        parameters=parameters,
        vocab_size=len(tokenizer),
        trust_remote_code=False,
        files=describe(task.directory, own_files(task.directory)) + sources,
    )


def train_tokenizer(corpus: list[Path], vocab_size: int, special_tokens: dict[str, Any]) -> Any:
    """A `PreTrainedTokenizerFast` of at most `vocab_size` entries, the control tokens first. Raises ConfigError.

    Args:
        corpus: JSON Lines files.
        vocab_size: entries, control tokens included.
        special_tokens: `pad_token`, `eos_token`, maybe `bos_token`, and a list of `others`.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    named = {key: value for key, value in special_tokens.items() if key != "others"}
    control = list(dict.fromkeys([named["pad_token"], *special_tokens["others"], *named.values()]))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    smallest = len(alphabet) + len(control)
    if vocab_size < smallest:
        expected = f"{smallest} or more (256 bytes and {len(control)} control tokens)"
        raise ConfigError(f"{_KEY}.vocab_size", f"found {vocab_size}, expected {expected}")
    tokenizer = Tokenizer(models.BPE())
    # One token a digit, as in current models: numbers of any length are then spelled alike.
    split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=control, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(strings_of(corpus), trainer)
    # Explicit, because Transformers 4 cleans up spaces by default, so that decoded text would differ.
    settings: dict[str, Any] = {**named, "clean_up_tokenization_spaces": False}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings)  # type: ignore[no-untyped-call]


def strings_of(files: list[Path]) -> Iterator[str]:
    """Every string value in the rows of JSON Lines files, in order."""
    for file in files:
        opener: Any = gzip.open if file.suffix == ".gz" else open
        with opener(file, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    try:
                        yield from _strings(json.loads(line))
                    except ValueError as error:
                        remedy = f"{_KEY}.corpus takes JSON Lines"
                        raise DataError(f"{file}:{number}: not JSON ({error}); {remedy}") from None


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def write_weights(folder: Path, vocab_size: int, tokenizer: Any, weights: dict[str, Any]) -> int:
    """Write float32 safetensors with the architecture's own random initialisation; returns the parameter count.

    Raises ConfigError for arguments that the architecture does not take.
    """
    import torch
    import transformers

    architectures: Any = transformers.CONFIG_MAPPING
    auto_model: Any = transformers.AutoModelForCausalLM
    kind, arguments = weights["model_type"], weights["config"]
    if kind not in architectures:
        expected = (
            f"{guess(kind, list(architectures))}Expected a model_type of Transformers such as llama, qwen3 or olmo2"
        )
        raise ConfigError(f"{_KEY}.model_type", f"found {kind!r}. {expected}")
    # Transformers silently keeps unknown arguments as attributes.
    offered = [name for name in vars(architectures[kind]()) if not name.startswith("_")]
    for name in arguments:
        if name == "vocab_size":
            raise ConfigError(f"{_KEY}.config.vocab_size", f"give {_KEY}.vocab_size; the model follows the tokenizer")
        if name not in offered:
            raise ConfigError(f"{_KEY}.config.{name}", f"unknown for {kind}. {did_you_mean(name, offered)}")
    tokens = {name: getattr(tokenizer, name) for name in ("pad_token_id", "eos_token_id", "bos_token_id")}
    try:
        config = architectures[kind](vocab_size=vocab_size, **{**tokens, **arguments})
        torch.manual_seed(weights["seed"])
        model = auto_model.from_config(config, dtype=torch.float32)
    except Exception as error:  # each architecture has its own checks; all of them are about these keys
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        named = next((f".{name}" for name in arguments if f"'{name}'" in str(error)), "")
        raise ConfigError(f"{_KEY}.config{named}", lines[-1] if lines else repr(error)) from None
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())
