"""Models and tokenizers for inference: the export's checks and evaluations. Imports torch when called."""

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from post_training.core.devices import count_gpus
from post_training.core.errors import UserError, brief
from post_training.models.weights import load_arguments


def silence_progress_bars() -> None:
    """No progress bars, which fill a job's log with a line a shard, and no warning of DeepSpeed's that there is no GPU."""
    if not count_gpus():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def load_for_inference(
    folder: Path,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    model_class: str | None = None,
    *,
    on_cpu: bool = False,
    **arguments: Any,
) -> Any:
    """The model in evaluation mode, on the GPU if there is one that holds it, on several, or on the CPU.

    It is of the class that the folder's configuration names, unless given. `arguments`: further ones of `from_pretrained`.
    """
    import transformers

    silence_progress_bars()
    auto: Any = getattr(
        transformers,
        model_class or ("AutoModelForSequenceClassification" if gives_scores(folder) else "AutoModelForCausalLM"),
    )
    placed = {} if on_cpu else load_arguments(folder, dtype)
    model = auto.from_pretrained(folder, dtype=dtype, trust_remote_code=trust_remote_code, **placed, **arguments)
    model.config.use_cache = True
    fix_generation_config(model)
    return model.eval()


def answers_that_fit(model: Any, tokens: int, free_bytes: int | None = None) -> int:
    """Sequences of so many tokens whose cache fits the free memory of the GPUs beside the model; no limit on a CPU.

    Where the configuration does not have the sizes of a cache there is none either, and a batch is halved that does not fit.
    """
    import torch

    if free_bytes is None:
        if model.device.type != "cuda":
            return 1 << 62
        devices = {parameter.device for parameter in model.parameters()}
        free_bytes = sum(torch.cuda.mem_get_info(device)[0] for device in devices if device.type == "cuda")
    text = model.config.get_text_config()
    every = int(getattr(text, "num_attention_heads", None) or 0)
    heads = int(getattr(text, "num_key_value_heads", None) or every)
    size = int(getattr(text, "head_dim", None) or (text.hidden_size // every if every else 0))
    of_token = 2 * int(getattr(text, "num_hidden_layers", None) or 0) * heads * size * model.dtype.itemsize
    return max(1, int(0.8 * free_bytes) // (of_token * tokens)) if of_token and tokens else 1 << 62


def halving(batch: list[Any], answer: Callable[[list[Any]], list[Any]], what: str) -> list[Any]:
    """The results of a batch, in its order; cut in half, and again, where it does not fit the GPU's memory.

    Args:
        batch: what is asked.
        answer: batch -> a result for each.
        what: the stage, for the line that says so.

    Raises:
        UserError: where not even one fits.
    """
    import torch

    try:
        return answer(batch)
    except torch.cuda.OutOfMemoryError as error:
        if len(batch) == 1:
            raise UserError(f"{what}: out of GPU memory with one row: {brief(error)}") from None
    torch.cuda.empty_cache()
    half = len(batch) // 2
    print(f"{what}: {len(batch)} rows at a time do not fit the GPU's memory; trying {half}", flush=True)
    return halving(batch[:half], answer, what) + halving(batch[half:], answer, what)


def gives_scores(folder: Path) -> bool:
    """Whether a folder's model is a sequence-classification model, such as a reward model."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return any(str(name).endswith("ForSequenceClassification") for name in config.get("architectures") or [])


def fix_generation_config(model: Any) -> str:
    """Make a model's generation configuration one that Transformers saves; what was changed, empty for a sound one.

    Many models have `temperature` without `do_sample`, which loads, and ends the run at its first checkpoint.
    """
    config: Any = getattr(model, "generation_config", None)
    changed: list[str] = []
    for _ in range(2 if config is not None else 0):
        try:
            config.validate(strict=True)
            break
        except ValueError as error:
            named = re.findall(r"^- `(\w+)`", str(error), re.MULTILINE)
            if not config.do_sample and "do_sample" in str(error):
                config.do_sample = True
                changed.append("do_sample=true")
                continue
            for name in named:
                setattr(config, name, None)
                changed.append(f"{name} taken out")
    return f"generation_config.json contradicts itself, and would not be saved: {', '.join(changed)}" if changed else ""


def load_tokenizer(folder: Path, trust_remote_code: bool = False) -> Any:
    """The tokenizer, padding with the end token where it has no padding token."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def longest_input(model: Any) -> int:
    """Positions of a model; unlimited where its configuration has no such number."""
    return getattr(model.config, "max_position_embeddings", None) or 1 << 62


def left_padded(prompts: list[list[int]], pad: int, device: Any) -> tuple[Any, Any]:
    """Token ids and attention mask, int64 `[prompts, longest]`, padded so that every answer begins at the same column."""
    import torch

    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    return ids, torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)


def batches_of(lengths: list[int], size: int) -> list[list[int]]:
    """Indices in batches of like lengths, so that there is little padding."""
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    return [order[start : start + size] for start in range(0, len(order), size)]


def in_batches(
    items: list[Any],
    lengths: list[int],
    size: int,
    answer: Callable[[list[Any]], list[Any]],
    what: str,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Any]:
    """The results of `answer` for all items, in their order, in batches of like lengths that are halved where they do not fit.

    Args:
        items: what is asked.
        lengths: of each.
        size: items at a time.
        answer: items -> a result for each.
        what: the stage, for lines about it.
        progress: called with the number of items that are done.
    """
    found: list[Any] = [None] * len(items)
    done = 0
    for batch in batches_of(lengths, size):
        for index, result in zip(batch, halving([items[index] for index in batch], answer, what), strict=True):
            found[index] = result
        done += len(batch)
        progress(done)
    return found


def padded_scores(
    model: Any, rows: list[list[int]], pad: int, batch_size: int, progress: Callable[[int], None] = lambda done: None
) -> list[float]:
    """A reward model's score of each row of token ids, in batches padded on the right; halved where they do not fit.

    `progress` is called with the number of rows that are done.
    """
    lengths = [len(row) for row in rows]
    return in_batches(rows, lengths, batch_size, lambda some: _padded_scores(model, some, pad), "scores", progress)


def _padded_scores(model: Any, rows: list[list[int]], pad: int) -> list[float]:
    import torch

    width = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=model.device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=model.device)
    with torch.inference_mode():
        scores: list[float] = model(input_ids=ids, attention_mask=mask).logits[:, 0].float().tolist()
    return scores


@contextlib.contextmanager
def as_asked(model: Any) -> Iterator[None]:
    """Inside, `model.generate` does what it is asked alone.

    Transformers takes what is not asked from the model's generation configuration: a penalty of repetition, forbidden tokens.
    """
    from transformers import GenerationConfig

    own = model.generation_config
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        model.generation_config = own


def generate(
    model: Any, prompts: list[list[int]], stop: list[int], pad: int, max_new_tokens: int, **sampling: Any
) -> list[list[int]]:
    """Answers as token ids, cut after the stop token; greedy unless `sampling` says otherwise."""
    import torch
    from transformers import GenerationConfig

    ids, mask = left_padded(prompts, pad, model.device)
    settings: dict[str, Any] = {"do_sample": False} | sampling
    settings |= {"max_new_tokens": max_new_tokens, "eos_token_id": stop, "pad_token_id": pad}
    config = GenerationConfig(**settings)  # type: ignore[no-untyped-call]
    with torch.inference_mode(), as_asked(model):
        output = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    answers = output[:, ids.shape[1] :].tolist()
    ends = [next((end for end, token in enumerate(ids, 1) if token in stop), len(ids)) for ids in answers]
    return [ids[:end] for ids, end in zip(answers, ends, strict=True)]
