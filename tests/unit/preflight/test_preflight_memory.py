"""The predicted peak against torch's own tracker, for models of real width and types; see fake_step.py.

Models have three layers, so that what does not grow with their number counts as much as what does; one has all.
"""

import json

import fake_step
import pytest

from post_training.models.packing_probe import Packing
from post_training.preflight import memory
from post_training.preflight.shape import ModelShape

SIZES = {
    "1B": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256, "tie_word_embeddings": True,
    },
    "8B": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "tie_word_embeddings": False,
    },
}  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")
FULL, ADAPTERS = {"model": "1B"}, {"model": "8B", "lora": 16}
SHARDED = {"model": "8B", "zero3": True}
CASES = {
    "1B full": FULL,
    "1B full, no checkpointing": FULL | {"checkpointing": False},
    "1B full, 32k": FULL | {"tokens": 32768},
    "8B full, ZeRO-3 on 8": SHARDED,
    "8B full, ZeRO-3 on 8, no checkpointing": SHARDED | {"checkpointing": False},
    "8B full, ZeRO-3 on 8, 32k": SHARDED | {"tokens": 32768},
    "8B LoRA": ADAPTERS,
    "8B LoRA, no checkpointing": ADAPTERS | {"checkpointing": False},
    "8B LoRA, 32k": ADAPTERS | {"tokens": 32768},
    "8B DPO stored": SHARDED | {"pairs": True},
    "8B DPO online, no checkpointing": SHARDED | {"pairs": True, "online": True, "checkpointing": False},
}


@pytest.fixture
def both(subject_of, tmp_path):
    """Predicted and tracked bytes of a case."""

    def measure(*, model, layers=3, tokens=4096, checkpointing=True, lora=None, zero3=False, pairs=False, online=False):
        sizes = {**SIZES[model], "num_hidden_layers": layers, "max_position_embeddings": 65536}
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **sizes}))
        shape, method = ModelShape.of(tmp_path), "dpo" if pairs else "sft"
        subject = subject_of(
            method,
            ranks=fake_step.RANKS if zero3 else 1,
            mix={
                "longest_row": tokens,
                "config": {"rows": "preference" if pairs else "messages", "packing": not pairs},
            },
            folder=tmp_path,
            training__effective_batch_size=16,
            training__gradient_checkpointing=checkpointing,
            model__attn_implementation="varlen",
            **{f"{method}__max_seq_length": tokens},
            **({"model__lora": {"r": lora}} if lora else {}),
            **({"deepspeed__config_path": "zero3"} if zero3 else {}),
        )
        subject.shape, subject.reference = shape, shape if online else None
        subject.__dict__["packing"] = Packing("varlen", "", 0.0)
        tracked = fake_step.peak_bytes(
            sizes=sizes, tokens=tokens, sequences=2 if pairs else 1, checkpointing=checkpointing, lora=lora, pairs=pairs,
            online=online, zero3={"live": 10**9, "bucket": shape.hidden**2} if zero3 else None,
        )  # fmt: skip
        return memory.predict(subject), tracked

    return measure


@pytest.mark.parametrize("case", CASES)
def test_the_peak_is_within_a_tenth_of_the_trackers(both, case):
    predicted, tracked = both(**CASES[case])
    assert predicted.peak == pytest.approx(tracked, rel=0.1)


@pytest.mark.slow
def test_all_layers_where_the_optimizers_step_is_the_peak(both):
    predicted, tracked = both(**SHARDED, layers=32, tokens=512)
    assert predicted.peak == pytest.approx(tracked, rel=0.1)
    assert predicted.step > 5 * 2**30
