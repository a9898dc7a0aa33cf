"""Data and models for the training benchmarks, made by the workflow's own stages from a configuration."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parent))

from corpus import write_corpus
from tokenizer import build_tokenizer

from post_training.commands.train import make_inputs
from post_training.config import resolve
from post_training.core.task import Task
from post_training.data.view import open_rows
from post_training.plan import make_plan


def model_folder(folder: Path, entries: int | None = None, **architecture: Any) -> Path:
    """A Llama of random weights (float32) with a tokenizer of real size, or of so many entries; made once."""
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    if not (folder / "model.safetensors").is_file():
        name = build_tokenizer(folder, entries)
        print(f"benchmarks: tokenizer {name}", flush=True)
        entries = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
        set_seed(0)
        config = LlamaConfig(
            vocab_size=-(-(max(entries.values()) + 1) // 64) * 64, pad_token_id=5, eos_token_id=4, **architecture
        )
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def training_task(folder: Path, start: Path, method: str, rows: int, **sections: dict[str, Any]) -> Task:
    """The task of a run from the model `start`, whose inputs are there. `sections` go over the configuration."""
    corpus = folder / f"{method}-{rows}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    if not corpus.is_file():
        write_corpus(corpus, rows, pairs=method == "dpo")
    transform = "messages" if method == "sft" else "preference"
    config: dict[str, Any] = {
        "method": method,
        "offline": True,
        "model": {"name_or_path": str(start), "dtype": "float32"},
        "data": {"datasets": [{"name": "chats", "path": str(corpus), "transform": transform}]},
        "training": {"gradient_checkpointing": False, "effective_batch_size": 1, "learning_rate": 1e-4},
        "logging": {"logging_steps": 1, "report_to": ["none"]},
        "checkpointing": {"save_steps": 100_000},
        "paths": {"output_base": str(folder / "outputs")},
        method: {"init_from": "base"},
    }
    for name, section in sections.items():
        config[name] = {**config.get(name, {}), **section}
    plan = make_plan(resolve(config))
    make_inputs(plan, plan.trained[method], first=True)
    return plan.trained[method].task(plan.base)


def as_arrow(task: Task, path: Path, rows: int | None = None) -> Path:
    """The same rows as an Arrow stream, which `datasets.Dataset.from_file` maps: what a plain script would read."""
    mixed = open_rows(task.inputs["data"])
    names = list(mixed[0])
    schema = pa.schema([(name, pa.list_(pa.int32())) for name in names])
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for start in range(0, rows or len(mixed), 256):
            batch = [mixed[index] for index in range(start, min(start + 256, rows or len(mixed)))]
            arrays = []
            for name in names:
                offsets = np.cumsum([0, *(len(row[name]) for row in batch)]).astype(np.int32)
                arrays.append(
                    pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate([row[name] for row in batch])))
                )
            writer.write_batch(pa.record_batch(arrays, schema=schema))
    return path


def spread(values: list[float]) -> str:
    """`1.02 (0.99-1.05)`: median, smallest and largest."""
    return f"{float(np.median(values)):.3f} ({min(values):.3f}-{max(values):.3f})"
