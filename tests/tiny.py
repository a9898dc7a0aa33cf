"""Helpers of the tests: tasks, views and rows for a model of 2 layers."""

import copy
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from post_training import methods
from post_training.config import resolve
from post_training.config.load import Pipeline
from post_training.core.fingerprint import digest, file_sha256
from post_training.core.task import Task
from post_training.plan import Plan, Stage

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 512,
}
MAX_LENGTH = 64


def conversation(number: int) -> list[dict[str, str]]:
    """A sum and its answer."""
    a, b = number % 10, number // 10 % 10
    return [{"role": "user", "content": f"{a} and {b}?"}, {"role": "assistant", "content": str(a + b)}]


def build_task(output: Path, corpus: Path, **weights: Any) -> Task:
    config = {
        "vocab_size": 300,
        "special_tokens": {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>", "others": ["<|im_start|>"]},
        "weights": {"model_type": "llama", "config": LLAMA, "seed": 0} | weights,
    }
    return task("build_model", config, {"corpus": [str(corpus)]}, {}, output)


def tokenised(tokenizer: Any, messages: list[dict[str, str]]) -> tuple[list[int], list[int]]:
    """Ids of a whole conversation, and labels on the last answer and its stop token."""
    ids = tokenizer(render(tokenizer, messages))["input_ids"]
    prompt = tokenizer(render(tokenizer, messages[:-1], add_generation_prompt=True))["input_ids"]
    assert ids[: len(prompt)] == prompt
    stop = len(ids) - 1  # the newline after the stop token is not trained on
    return ids, [-100] * len(prompt) + ids[len(prompt) : stop] + [-100]


def render(tokenizer: Any, messages: list[dict[str, str]], **kwargs: Any) -> str:
    return str(tokenizer.apply_chat_template(messages, chat_template=TEMPLATE, tokenize=False, **kwargs))


def write_mix(folder: Path, rows: list[dict[str, list[int]]], packing: bool) -> Path:
    """A mix of exactly these rows in this order: tokens, index and manifest, as the stages write them."""
    import numpy as np

    from post_training.data import shapes
    from post_training.data.mixing import epochs, shards

    stored = [_as_stored(row) for row in rows]
    shape = shapes.of_columns(stored[0])
    columns = [name for name in shapes.columns(shape) if name in stored[0]]
    documents, starts = [], [0]
    for row in stored:
        ends = np.cumsum(row.get("seq_lengths", [len(row[columns[0]])]))
        pairs = list(zip([0, *ends[:-1]], ends, strict=True))
        cut = [{name: row[name][a:b] for name in columns} for a, b in pairs] if packing else [row]
        documents += cut
        starts.append(len(documents))
    tokens = folder / "tokens"
    tokens.mkdir()
    schema = pa.schema([*((name, pa.list_(pa.int32())) for name in columns), ("row", pa.int64()), ("part", pa.int32())])
    table = pa.Table.from_pylist([{**document, "row": n, "part": 0} for n, document in enumerate(documents)], schema)
    with pa.OSFile(str(tokens / "tokens.arrow"), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_table(table)
    size, sha256 = (tokens / "tokens.arrow").stat().st_size, file_sha256(tokens / "tokens.arrow")
    (tokens / "manifest.json").write_text(
        json.dumps({"files": [{"path": "tokens.arrow", "bytes": size, "sha256": sha256}]})
    )
    name = shape.__name__.rpartition(".")[2]
    tokenized = shards.Tokenized.open("d", tokens / "manifest.json", name, 0)
    shards.leave_out_unused([tokenized], name)
    epochs.save(folder / "documents.npy", tokenized.documents)
    keys = np.zeros(len(documents), epochs.KEY_TYPE)
    keys["copies"], keys["key"], keys["length"] = 1, epochs.row_keys(0, "d", tokenized.numbers), tokenized.lengths
    epochs.save(folder / "keys.npy", keys)
    index = np.array([*starts, *range(len(documents))], dtype=np.int32)
    epochs.save(folder / "epoch-00000.npy", index)
    facts = {
        "stage": "mix",
        "fingerprint": digest(rows),
        "inputs": {},
        "config": {"rows": name, "packing": packing, "max_seq_length": MAX_LENGTH, "seed": 0},
        "rows_out": len(rows),
        "documents": len(documents),
        "tokens": int(tokenized.tokens.sum()),
        "longest_document": int(tokenized.lengths.max()),
        "longest_row": max(int(tokenized.lengths[a:b].sum()) for a, b in itertools.pairwise(starts)),
        "trained_tokens": 0,
        "shards": [{"path": "tokens/tokens.arrow", "bytes": size, "sha256": sha256}],
    }
    path = folder / "manifest.json"
    path.write_text(json.dumps(facts))
    return path


def _as_stored(row: dict[str, list[int]]) -> dict[str, list[int]]:
    """A training row with ids and labels in one column."""
    import numpy as np

    from post_training.data import loss_mask

    if "labels" not in row:
        return row
    trained = np.array(row["labels"]) != loss_mask.IGNORED
    column = loss_mask.with_loss_mask(np.array(row["input_ids"], dtype=np.int32), trained).tolist()
    return {loss_mask.COLUMN: column, **{name: row[name] for name in row.keys() - {"input_ids", "labels"}}}


def as_read(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a tokenised file with ids and labels as lists."""
    import numpy as np

    from post_training.data import loss_mask

    for row in rows:
        if loss_mask.COLUMN in row:
            row[loss_mask.COLUMN] = np.array(row[loss_mask.COLUMN], dtype=np.int32)
    return [
        {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in loss_mask.input_ids_and_labels(row).items()
        }
        for row in rows
    ]


def task(stage: str, config: dict[str, Any], runtime: dict[str, Any], inputs: dict[str, Path], output: Path) -> Task:
    fingerprint = digest([stage, config])
    made = {
        name: json.loads(path.read_text()).get("fingerprint", "0" * 64) if path.is_file() else "0" * 64
        for name, path in inputs.items()
    }
    spec = {"stage": stage, "fingerprint": fingerprint, "config": config, "inputs": made}
    return Task(stage, config, runtime, inputs, output, spec)


def pipeline_of(template: Path, method: str = "sft", **changes: Any) -> Pipeline:
    """A configuration for the tiny model; `changes` are dotted keys with `.` written as `__`."""
    file = {
        "method": method,
        "model": {"name_or_path": "unused", "dtype": "float32"},
        "training": {
            "max_steps": 6,
            "effective_batch_size": 4,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-3,
            "gradient_checkpointing": False,
        },
        "data": {"chat_template": str(template), "datasets": [{"path": "unused.jsonl"}]},
        "checkpointing": {"save_steps": 2},
        "logging": {"logging_steps": 1, "report_to": ["none"]},
        "accelerate": {"num_processes": 1},
        "offline": True,
        method: {"max_seq_length": MAX_LENGTH},
    }
    for key, value in changes.items():
        *parents, last = key.split("__")
        tree: Any = file
        for part in parents:
            tree = tree.setdefault(part, {})
        tree[last] = copy.deepcopy(value)  # a later key may set something inside it
    return resolve(file)


def view_of(template: Path, method: str = "sft", **changes: Any) -> dict[str, Any]:
    return pipeline_of(template, method, **changes).views[method]


def train_task(
    directory: Path,
    model: Path,
    rows: Path,
    template: Path,
    method: str = "sft",
    reference: Path | None = None,
    **changes: Any,
) -> Task:
    """The task of a training stage, as the plan would make it; DPO without a stored `reference` is online."""
    if method == "dpo" and reference is None:
        changes.setdefault("dpo__reference", "online")
    pipeline = pipeline_of(template, method, **changes)
    view = pipeline.views[method]
    config = {"method": method, method: view[method], "training": view["training"]}
    config["model"] = {key: view["model"][key] for key in ("dtype", "trust_remote_code", "quantization")}
    runtime = {"pipeline": pipeline.frozen(method), "slurm": False}
    assert method in methods.names()
    inputs = {"model": model, "data": rows} | ({"reference": reference} if reference else {})
    return task("train", config, runtime, inputs, directory / "manifest.json")


def reference_task(directory: Path, model: Path, rows: Path, template: Path, **changes: Any) -> Task:
    """The task of a reference stage, as the plan would make it."""
    pipeline = pipeline_of(template, "dpo", **changes)
    runtime = {"pipeline": pipeline.frozen("dpo"), "slurm": False}
    config = {"method": "dpo", "max_seq_length": MAX_LENGTH}
    return task("reference", config, runtime, {"model": model, "data": rows}, directory / "manifest.json")


def compute_reference(reference: Task) -> Path:
    """Compute a reference in this process; returns the manifest."""
    from post_training.methods.dpo.reference import finish_if_complete
    from post_training.training.reference_rank import reference_rank

    reference_rank(reference)
    assert finish_if_complete(reference)
    return reference.output


def train_here(training: Task) -> Path:
    """Train in this process, as one rank without a launcher; returns the manifest."""
    from post_training.config import batch
    from post_training.data.mixing.epochs import write_epochs
    from post_training.launch.finish import finish_if_complete
    from post_training.launch.launcher import prepare_directory
    from post_training.training.run import train_rank

    view = resolve(training.runtime["pipeline"]).last
    method = view["method"]
    prepare_directory(training)
    steps = batch.steps(view, method, training.input_manifest("data")["rows_out"])
    write_epochs(training.inputs["data"], (steps or 0) * view["training"]["effective_batch_size"])
    train_rank(training)
    assert finish_if_complete(training, steps or 0)
    return training.output


def make_here(plan: Plan, *stages: Stage) -> None:
    """Make stages and all that they are made from in this process, training included."""
    from post_training.plan.make import run_stage, upstream

    for one in [other for stage in stages for other in [*upstream(stage), stage]]:
        if not (plan.base / one.manifest).is_file():
            if one.kind == "train":
                train_here(one.task(plan.base))
            elif one.kind == "reference":
                compute_reference(one.task(plan.base))
            else:
                run_stage(plan, one)


def export_task(trained: Path, rows: Path, output: Path) -> Task:
    inputs = {"train": trained, "data": rows}
    return task("export", {"method": "sft"}, {"max_shard_size": "200KB"}, inputs, output)


def metrics_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "logs" / "metrics.jsonl").read_text().splitlines()]


def losses_of(run: Path) -> list[float]:
    return [line["loss"] for line in metrics_of(run)]


def launcher_command(task: Task) -> list[str]:
    """What the rule's shell line calls."""
    return [sys.executable, "-m", "post_training", "stage", str(task.saved())]


def wait_for_step(run: Path, step: int, timeout_seconds: float = 120) -> None:
    """Until so many steps are in the metrics."""
    deadline = time.monotonic() + timeout_seconds
    metrics = run / "logs" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") >= step):
        assert time.monotonic() < deadline
        time.sleep(0.005)


def wait_for_ranks(launcher: int, world: int = 2) -> list[int]:
    """Process ids of a launcher's ranks, by rank, once all are there."""
    while len(found := ranks_of(launcher)) < world:
        time.sleep(0.02)
    return found


def ranks_of(launcher: int) -> list[int]:
    """Process ids of a launcher's ranks, by rank."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
            environment = (path.parent / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if int(fields[1]) == launcher and fields[0] != "Z":
            ranks = [entry.partition(b"=")[2] for entry in environment if entry.startswith(b"RANK=")]
            found += [(int(rank), int(path.parent.name)) for rank in ranks]
    return [pid for _, pid in sorted(found)]


def lists_of(mixed: Path) -> list[dict[str, list[int]]]:
    """All rows of a mix as plain lists."""
    from post_training.data.view import open_rows

    return [{name: values.tolist() for name, values in row.items()} for row in open_rows(mixed)]


def trl_with_adapters(output: Path, base: Path, rows: Path, **peft: Any) -> Any:
    """TRL's trainer for 6 steps of LoRA (r 4, alpha 16) on packed rows at a learning rate of 1e-2: the oracle of our runs.

    `base` is the model's folder, `rows` the manifest of a mix; `peft` goes to PEFT's configuration.
    """
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    from post_training.data.view import open_rows

    data = [{name: values.tolist() for name, values in row.items()} for row in open_rows(rows, rows=24)]
    args = SFTConfig(
        output_dir=str(output), max_length=64, packing=True, dataset_kwargs={"skip_prepare_dataset": True},
        max_steps=6, per_device_train_batch_size=2, gradient_accumulation_steps=2, learning_rate=1e-2, warmup_steps=0.03,
        lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs={"min_lr_rate": 0.1}, logging_steps=1, bf16=False,
        activation_checkpointing=False, gradient_checkpointing=False, use_cpu=True, save_strategy="no", report_to="none",
        train_sampling_strategy="sequential", disable_tqdm=True,
    )  # fmt: skip
    return SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(base, dtype="float32"),
        args=args,
        train_dataset=Dataset.from_list(data),
        processing_class=AutoTokenizer.from_pretrained(base),
        peft_config=LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM", **peft),
    )
