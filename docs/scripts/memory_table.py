"""Writes the table of docs/memory.md from preflight's own formula: `python docs/scripts/memory_table.py`.

The shapes are those of published models, built on torch's meta device from the sizes in their `config.json`.
"""

import json
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from post_training.config import resolve
from post_training.config.batch import Topology
from post_training.core.devices import USABLE, known_gpu
from post_training.core.format import GIB
from post_training.preflight import memory
from post_training.preflight.shape import ModelShape
from post_training.preflight.subject import Subject

PAGE = Path(__file__).resolve().parents[1] / "memory.md"
BEGIN, END = "<!-- table: docs/scripts/memory_table.py -->\n", "<!-- end of the table -->"
# Name -> type, hidden, feed-forward, layers, heads, key-value heads, head size, vocabulary, tied embeddings.
MODELS: dict[str, tuple[str, int, int, int, int, int, int, int, bool]] = {
    "Qwen3 0.6B": ("qwen3", 1024, 3072, 28, 16, 8, 128, 151936, True),
    "Llama 3.2 1B": ("llama", 2048, 8192, 16, 32, 8, 64, 128256, True),
    "Qwen3 1.7B": ("qwen3", 2048, 6144, 28, 16, 8, 128, 151936, True),
    "Qwen3 4B": ("qwen3", 2560, 9728, 36, 32, 8, 128, 151936, True),
    "Llama 3.1 8B": ("llama", 4096, 14336, 32, 32, 8, 128, 128256, False),
    "Qwen3 14B": ("qwen3", 5120, 17408, 40, 40, 8, 128, 151936, False),
    "Qwen3 32B": ("qwen3", 5120, 25600, 64, 64, 8, 128, 151936, False),
    "Llama 3.1 70B": ("llama", 8192, 28672, 80, 64, 8, 128, 128256, False),
}
LENGTHS = (4096, 32768)
GPU = "h100-80"
# Heading -> keys, and devices.
COLUMNS: dict[str, tuple[dict[str, Any], int]] = {
    "QLoRA, 1 GPU": ({"model": {"lora": {"r": 16}, "quantization": {}}}, 1),
    "LoRA, 1 GPU": ({"model": {"lora": {"r": 16}}}, 1),
    "full, 1 GPU": ({}, 1),
    "full, 8 GPUs": ({}, 8),
    "full, 8 GPUs, ZeRO-2": ({"deepspeed": {"config_path": "zero2"}}, 8),
    "full, 8 GPUs, ZeRO-3": ({"deepspeed": {"config_path": "zero3"}}, 8),
    "full, 64 GPUs, ZeRO-3": ({"deepspeed": {"config_path": "zero3"}}, 64),
}


def shape_of(name: str, folder: Path) -> ModelShape:
    """The shape of one of MODELS."""
    kind, hidden, intermediate, layers, heads, key_value, head, vocabulary, tied = MODELS[name]
    (folder / "config.json").write_text(
        json.dumps(
            {
                "model_type": kind, "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers,
                "num_attention_heads": heads, "num_key_value_heads": key_value, "head_dim": head, "vocab_size": vocabulary,
                "tie_word_embeddings": tied, "max_position_embeddings": 32768,
            }
        )
    )  # fmt: skip
    return ModelShape.of(folder)


def peak(shape: ModelShape, keys: dict[str, Any], devices: int, length: int) -> int:
    """Predicted bytes on one device of SFT on packed rows of so many tokens, one a device."""
    file = {
        "model": {"name_or_path": "any", "dtype": "bfloat16", "attn_implementation": "varlen", **keys.pop("model", {})},
        "training": {"max_steps": 1, "effective_batch_size": 2 * devices}, "data": {"datasets": [{"path": "any"}]},
        "sft": {"max_seq_length": length}, **keys,
    }  # fmt: skip
    view = resolve(file).views["sft"]
    subject = Subject(
        "sft",
        view,
        Path(),
        Path(),
        shape,
        Topology(-(-devices // 8), min(devices, 8), "GPU"),
        known_gpu(GPU),
        Path(),
    )
    subject.__dict__["mix"] = {"config": {"rows": "messages", "packing": True}, "longest_row": length}
    return memory.predict(subject).peak + memory.CONTEXT_BYTES


def table(models: Iterable[str] = MODELS) -> str:
    """The table in Markdown: a row a model and length, GiB on each GPU, in bold where it fits on one of GPU's size."""
    lines = [f"| model | tokens | {' | '.join(COLUMNS)} |", "|---|---:|" + "---:|" * len(COLUMNS)]
    memory_bytes = known_gpu(GPU).memory_bytes
    assert memory_bytes is not None
    with tempfile.TemporaryDirectory() as folder:
        for name in models:
            shape = shape_of(name, Path(folder))
            for length in LENGTHS:
                sizes = [peak(shape, {**keys}, devices, length) for keys, devices in COLUMNS.values()]
                marks = ["**" if size <= USABLE * memory_bytes else "" for size in sizes]
                cells = [f"{mark}{size / GIB:,.0f}{mark}" for size, mark in zip(sizes, marks, strict=True)]
                lines.append(f"| {name} | {length:,} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Replace the table of the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}{table()}{END}{after}", encoding="utf-8")
    print(f"wrote {PAGE}", file=sys.stderr)


if __name__ == "__main__":
    main()
