"""Tests of what only a GPU does: about ten minutes on one card, with `pytest tests/gpu`.

Without a GPU they are skipped. `POST_TRAINING_TEST_GPU=cpu` runs on the CPU those that can: it shows that a test is right
before there is a card to run it on, and nothing about a GPU.
"""

import contextlib
import importlib.util
import os

import pytest
import torch

from post_training.core.devices import count_gpus

ON_CPU = os.environ.get("POST_TRAINING_TEST_GPU") == "cpu"


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name == "gpu":
            item.add_marker(pytest.mark.gpu)
            if not (count_gpus() or ON_CPU):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture
def device():
    return "cuda" if count_gpus() else "cpu"


@pytest.fixture
def only_cuda(device):
    if device != "cuda":
        pytest.skip("nothing of it is there on a CPU")


@pytest.fixture
def triton_head(device, monkeypatch):
    """TRL's output layer with its Triton kernels; on a CPU by Triton's interpreter."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed; tests/contracts/test_triton_head.py installs it aside")
    from trl.kernels import chunked_logprob
    from trl.trainer import utils

    if device == "cpu":
        assert os.environ.get("TRITON_INTERPRET") == "1", "without a GPU Triton needs TRITON_INTERPRET=1"
        for module in (chunked_logprob, utils):
            monkeypatch.setattr(module, "_use_triton", lambda device: True)
        monkeypatch.setattr(torch.cuda, "device", lambda *_: contextlib.nullcontext())
    assert chunked_logprob._use_triton(torch.device(device))


@pytest.fixture
def liger(device, monkeypatch):
    """Liger's kernels; on a CPU by Triton's interpreter, which knows neither arguments that are floats nor CUDA's libdevice."""
    if importlib.util.find_spec("liger_kernel") is None or importlib.util.find_spec("triton") is None:
        pytest.skip("Liger is not installed; tests/contracts/test_triton_head.py installs it aside")
    if device == "cpu":
        assert os.environ.get("TRITON_INTERPRET") == "1", "without a GPU Triton needs TRITON_INTERPRET=1"
        import numpy as np
        import triton.language as tl
        from liger_kernel.ops import rms_norm
        from triton.runtime import interpreter

        convert = interpreter._implicit_cvt

        def with_floats(argument):
            if not isinstance(argument, float):
                return convert(argument)
            return tl.tensor(interpreter.TensorHandle(np.array([argument], dtype=np.float32), tl.float32), tl.float32)

        monkeypatch.setattr(interpreter, "_implicit_cvt", with_floats)
        monkeypatch.setattr(rms_norm, "rsqrt", lambda value: tl.rsqrt(value))
        monkeypatch.setattr(torch.cuda, "device", lambda *_: contextlib.nullcontext())


@pytest.fixture(scope="session")
def rows_of(tmp_path_factory, tokenizer, sft_rows, dpo_rows):
    """Method -> manifest of a mix for it."""
    from tiny import conversation, render, write_mix

    unpaired = []
    for number in range(32):
        question, answer = conversation(7 * number)
        right = number % 5 in (0, 3)
        text = answer["content"] if right else str(int(answer["content"]) + number)
        prompt = tokenizer(render(tokenizer, [question], add_generation_prompt=True))["input_ids"]
        completion = tokenizer(f"{text}<|im_end|>\n")["input_ids"]
        unpaired.append({"prompt_ids": prompt, "completion_ids": completion, "label": [int(right)]})
    return {
        "sft": sft_rows,
        "dpo": dpo_rows,
        "kto": write_mix(tmp_path_factory.mktemp("kto_rows"), unpaired, packing=False),
    }
