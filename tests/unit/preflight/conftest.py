"""A stage as preflight sees it, made of what a test says and sound defaults, without any stage being run."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from tiny import view_of

from post_training.config.batch import Topology
from post_training.core.devices import Device
from post_training.core.format import GIB
from post_training.models.parts import Parts
from post_training.preflight.shape import ModelShape
from post_training.preflight.subject import Subject

BILLION = ModelShape(
    model_type="llama",
    parameters=1_000_000_000,
    embedding=64_000_000,
    tied=False,
    layers=16,
    hidden=2048,
    intermediate=8192,
    heads=32,
    head_size=64,
    key_value_heads=8,
    vocabulary=32_000,
    max_positions=4096,
    parts=Parts(
        linear=dict.fromkeys(("q_proj", "o_proj"), 65_536)
        | dict.fromkeys(("gate_proj", "up_proj", "down_proj"), 163_840)
    ),
)
SOUND_MIX: dict[str, Any] = {
    "stage": "mix",
    "rows_out": 400,
    "tokens": 800_000,
    "trained_tokens": 240_000,
    "longest_document": 2000,
    "longest_row": 2048,
    "contradictory": None,
    "dropped": {},
    "held_out": {"rows": 0},
    "config": {"rows": "messages", "packing": True, "max_seq_length": 2048},
    "table": [{"name": "d", "tokens": 800_000, "trained_tokens": 240_000, "rows_in": 1000}],
    "inputs": {},
    "files": [],
    "shards": [],
}
H100 = Device("h100-80", 80 * GIB, 989e12)


LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}


@pytest.fixture
def subject_of(tmp_path: Path, template: Path):
    """`subject_of(method, mix={...}, shape={...}, ranks=8, device="GPU", **dotted keys with __)`."""

    def make(method="sft", *, mix=None, shape=None, ranks=8, device="GPU", gpu=H100, folder=None, **changes) -> Subject:
        facts = copy.deepcopy(SOUND_MIX) | (mix or {})
        if method != "sft" and not (mix or {}).get("config"):
            rows = {"dpo": "preference", "kto": "unpaired"}[method]
            facts |= {"config": {"rows": rows, "packing": False, "max_seq_length": 2048}}
        path = tmp_path / "data" / "mixed" / "d" / "manifest.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(facts))
        sound = {
            f"{method}__max_seq_length": 2048,
            "training__max_steps": None,
            "training__num_train_epochs": 2,
            "training__effective_batch_size": 32,
            "training__per_device_train_batch_size": 1,
            "checkpointing__save_steps": 500,
            "training__learning_rate": 1e-6 if method != "sft" else 2e-5,
            "training__gradient_checkpointing": True,
            "model__dtype": "bfloat16",
        }
        view = copy.deepcopy(view_of(template, method, **(sound | changes)))  # sections are shared
        made = ModelShape(**(BILLION.__dict__ | (shape or {})))
        topology = Topology(1, ranks, device)
        if folder is None:
            (tmp_path / "config.json").write_text(json.dumps(LLAMA))
        return Subject(method, view, path, folder or tmp_path, made, topology, gpu, tmp_path / "run")

    return make


@pytest.fixture
def verdicts():
    """Checks -> {name: verdict}."""
    return lambda checks: {check.name: check.verdict for check in checks}
