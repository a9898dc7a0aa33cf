"""The final inference checkpoint of a run: written, compared tensor by tensor, reloaded, and tested on one prompt.

It is put together in a hidden folder beside `model/` and moved there once every check has passed. One model is in memory at a
time: the trained one until it is written, then the exported one, on one GPU, several, or the CPU (models/weights.py).
"""

import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from post_training import methods
from post_training.core import manifest
from post_training.core.adapters import is_adapter_folder
from post_training.core.errors import UserError
from post_training.core.fingerprint import write_atomically
from post_training.core.task import Task
from post_training.data import shapes
from post_training.data.view import open_rows
from post_training.lineage.collect import PROVENANCE
from post_training.lineage.verify import CARD
from post_training.models import folder as model_folder
from post_training.models import lora
from post_training.models.files import carry_over, make_portable, replace_folder, stop_tokens
from post_training.models.loading import generate, load_for_inference, load_tokenizer, padded_scores
from post_training.models.quantization import round_weights
from post_training.release import serving
from post_training.release.card import card
from post_training.release.provenance import write_config, write_provenance
from post_training.release.tensors import StoredTensors, compare
from post_training.run_dir.checkpoints import why_incomplete

_ROW_TOKENS = 512
_SAMPLES = 16
GREEDY = "greedy"


def run(task: Task) -> None:
    """Export the last checkpoint. A failed check raises UserError and leaves no manifest."""
    trained = task.input_manifest("train")
    checkpoint = task.inputs["train"].parent / trained["final_checkpoint"]
    if why := why_incomplete(checkpoint):
        remedy = f"delete {task.inputs['train']} to resume training from the one before"
        raise UserError(f"{checkpoint}: is incomplete ({why}); {remedy}")
    settings = trained["config"]["model"]
    unfinished = task.directory.with_name(f".{task.directory.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)

    row, method = sample_row(task.inputs["data"]), trained["config"]["method"]
    start = model_folder(trained["inputs"]["model"]["path"])
    checks = write_trained(checkpoint, start, unfinished, task.runtime["max_shard_size"], settings, row, method)
    verified = verify if methods.answers(method) else verify_scores
    checks |= verified(unfinished, task.inputs["data"], settings)
    write_config(task, unfinished)
    files = manifest.describe(unfinished, manifest.own_files(unfinished))
    provenance = write_provenance(task, unfinished, files)
    files += manifest.describe(unfinished, [unfinished / PROVENANCE])
    write_atomically(unfinished / CARD, card(provenance, {}, {}, task.runtime.get("title")))
    (card_file,) = manifest.describe(unfinished, [unfinished / CARD])

    # Snakemake has made the target's directory already, and a forced run finds an earlier export there.
    replace_folder(unfinished, task.directory)
    weights = sorted(path.name for path in task.directory.glob("*.safetensors"))
    task.finish(
        folder=".",
        checkpoint=trained["final_checkpoint"],
        weights=weights,
        checks=checks,
        files=files,
        card=card_file,
        **settings,
    )
    print(f"export: {task.directory} ({len(weights)} file(s) of weights, {settings['dtype']})", flush=True)


def write_trained(
    checkpoint: Path,
    start: Path,
    folder: Path,
    max_shard_size: str,
    settings: dict[str, Any],
    row: list[int],
    method: str,
) -> dict[str, Any]:
    """Write the trained model, and compare what was written; the measurements. Nothing of it is in memory afterwards."""
    model, checks = load_trained(checkpoint, start, settings, row, method)
    tokenizer = load_tokenizer(checkpoint, settings["trust_remote_code"])
    write_model(model, tokenizer, folder, max_shard_size)
    carry_over(start, folder, settings["trust_remote_code"])
    make_portable(folder)
    merged, tied = is_adapter_folder(checkpoint), set(model.all_tied_weights_keys)
    trained = model.state_dict() if merged else StoredTensors(checkpoint)
    return checks | compare(folder, trained, tied, renamed=merged)


def load_trained(
    checkpoint: Path, start: Path, settings: dict[str, Any], row: list[int], method: str
) -> tuple[Any, dict[str, Any]]:
    """The trained model, and the differences of logits when adapters were merged into the model that the run started from.

    Raises UserError for a checkpoint that holds shards of ZeRO-3 only.
    """
    dtype, trust = settings["dtype"], settings["trust_remote_code"]
    if not any(checkpoint.glob("*.safetensors*")):
        command = f"python {checkpoint}/zero_to_fp32.py {checkpoint} {checkpoint} --safe_serialization"
        raise UserError(f"{checkpoint}: holds DeepSpeed's shards and no weights; `{command}` makes them")
    if not is_adapter_folder(checkpoint):
        return load_for_inference(checkpoint, dtype, trust, on_cpu=True), {}
    answers = methods.answers(method)
    arguments: dict[str, Any] = {} if answers else {"model_class": methods.model_class(method), "num_labels": 1}
    base = load_for_inference(start, dtype, trust, **arguments)
    if settings.get("quantization") is not None:
        round_weights(base, settings["quantization"])
    return lora.merge(base, checkpoint, row, logits_of if answers else scores_of, dtype)


def write_model(model: Any, tokenizer: Any, folder: Path, max_shard_size: str) -> None:
    """Write weights, configuration and tokenizer."""
    if model.can_generate():
        model.generation_config._from_model_config = False  # so that it is not derived from the model again at load
        model.generation_config.eos_token_id = stop_tokens(tokenizer, tokenizer.chat_template)
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    else:
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id  # by which an output finds the last token
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(folder)


def verify(folder: Path, data: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Reload the written model, and let it answer one prompt, which must end with a stop token.

    Returns the measurements for the manifest. Raises UserError for a failed check.
    """
    model = load_for_inference(folder, "auto", settings["trust_remote_code"])
    tokenizer = load_tokenizer(folder, settings["trust_remote_code"])
    if wrong := serving.problems(folder, stop_tokens(tokenizer, tokenizer.chat_template)):
        raise UserError("\n".join(wrong))
    prompt, answer = short_prompt(data)
    stop = model.generation_config.eos_token_id
    answered, how = stops(model, prompt, stop, tokenizer.pad_token_id, max(64, 4 * len(answer)), _hint(settings))
    texts = {"prompt": tokenizer.decode(prompt), "answer": tokenizer.decode(answered)}
    if how != GREEDY:
        print(
            f"export: warning: with greedy decoding an answer does not end by itself, {how} ones did; {_hint(settings)}"
        )
    return {**texts, "stopped": how}


def verify_scores(folder: Path, data: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """As `verify`, of a reward model: its scores, which must be those that it gives when a batch is padded, too."""
    model = load_for_inference(folder, "auto", settings["trust_remote_code"])
    tokenizer = load_tokenizer(folder, settings["trust_remote_code"])
    if wrong := serving.reward_problems(folder):
        raise UserError("\n".join(wrong))
    rows = [ids[:_ROW_TOKENS] for ids, _ in islice(_sequences(data, rows=100), _SAMPLES)]
    alone = [score for ids in rows for score in scores_of(model, ids, parts=1)[:, 0].tolist()]
    padded = padded_scores(model, rows, tokenizer.pad_token_id, len(rows))
    apart = max(abs(one - other) for one, other in zip(alone, padded, strict=True))
    largest = max(map(abs, alone))
    if not apart <= lora.TOLERANCE[settings["dtype"]] * largest:
        raise UserError(f"{folder}: scores of the same answers differ by {apart:.3g} where the batch is padded")
    return {"max_padding_difference": apart, "scores": [min(alone), max(alone)]}


def _hint(settings: dict[str, Any]) -> str:
    lora = settings.get("lora")
    if lora is not None and not lora.get("trainable_tokens") and not lora.get("modules_to_save"):
        return "adapters leave the embedding of the stop token as it is: set model.lora.trainable_tokens to the template's tokens, or train longer"
    return "is it inside the chat template's generation markers, and is the model trained long enough?"


def stops(
    model: Any, prompt: list[int], stop: list[int], pad: int, budget: int, hint: str = ""
) -> tuple[list[int], str]:
    """An answer that ends with a stop token, greedy or sampled. Raises UserError when none does.

    A model that has trained too little may repeat itself for ever when it is greedy, and stop in some samples. A model
    whose stop token was never in the loss stops in none.
    """
    import torch

    answer = generate(model, [prompt], stop, pad, budget)[0]
    if answer[-1] in stop:
        return answer, GREEDY
    torch.manual_seed(0)
    settings: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    sampled = generate(model, [prompt] * _SAMPLES, stop, pad, budget, **settings)
    ended = [ids for ids in sampled if ids[-1] in stop]
    if not ended:
        found = f"{1 + _SAMPLES} answers of {budget} tokens without a stop token {stop}"
        raise UserError(f"the exported model never stops: {found}; {hint}")
    return ended[0], f"sampled, {len(ended)} of {_SAMPLES}"


def logits_of(model: Any, row: list[int]) -> Any:
    """Float32 logits `[tokens, vocabulary]` on the CPU."""
    import torch

    with torch.inference_mode():
        return model(input_ids=torch.tensor([row], device=model.device)).logits[0].float().cpu()


def scores_of(model: Any, row: list[int], parts: int = 8) -> Any:
    """Float32 scores `[parts, 1]` on the CPU of a reward model, of ever longer beginnings of a row."""
    import torch

    lengths = [max(1, len(row) * (part + 1) // parts) for part in range(parts)]
    with torch.inference_mode():
        found = [model(input_ids=torch.tensor([row[:size]], device=model.device)).logits for size in lengths]
    return torch.cat(found).float().cpu()


def sample_row(data: Path) -> list[int]:
    """A sequence of the training data, at most 512 tokens."""
    return next(iter(_sequences(data, rows=1)))[0][:_ROW_TOKENS]


def short_prompt(data: Path) -> tuple[list[int], list[int]]:
    """Prompt and answer, as tokens, of the shortest exchange among the first examples. Raises UserError without one."""
    exchanges = [exchange for ids, trained in _sequences(data, rows=100) if (exchange := _first_exchange(ids, trained))]
    if not exchanges:
        raise UserError(f"{data}: no answer in the first rows to ask the model for")
    return min(exchanges, key=lambda exchange: len(exchange[0]) + len(exchange[1]))


def _first_exchange(ids: list[int], trained: list[bool]) -> tuple[list[int], list[int]] | None:
    begin = trained.index(True) if True in trained else 0
    end = trained.index(False, begin) if False in trained[begin:] else len(ids)
    return (ids[:begin], ids[begin:end]) if begin else None


def _sequences(data: Path, rows: int) -> Iterator[tuple[list[int], list[bool]]]:
    """Token ids, and which of them are trained on, of all sequences of the first `rows` examples."""
    mixed = open_rows(data)
    shape = shapes.of_columns(mixed.columns)
    for index in range(min(len(mixed), rows)):
        for _, ids, trained in shape.sequences(mixed[index]):
            yield ids.tolist(), trained.tolist()
