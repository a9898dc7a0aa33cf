"""How large weights are, where they are held for inference, and batches that do not fit."""

import gc
import weakref

import pytest
import torch
from safetensors.torch import save_file
from tiny import TEMPLATE, export_task

from post_training import models
from post_training.core.errors import UserError
from post_training.core.format import GIB
from post_training.evaluation import held_out
from post_training.models import loading, weights
from post_training.models.loading import load_for_inference, load_tokenizer
from post_training.release import export, tensors


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float32"])
def test_bytes_are_those_of_the_loaded_model(exported, dtype):
    folder = models.folder(exported)  # three files and their index
    model = load_for_inference(folder, dtype)
    assert weights.weight_bytes(folder, dtype) == sum(p.nbytes for p in model.parameters())


def test_other_files_beside_the_weights_do_not_count(tmp_path):
    save_file({"a": torch.zeros(3, 5), "n": torch.zeros(4, dtype=torch.int64)}, tmp_path / "model.safetensors")
    save_file({"a": torch.zeros(3, 5)}, tmp_path / "consolidated.safetensors")
    assert weights.weight_bytes(tmp_path, "bfloat16") == 2 * 15 + 4
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 9)
    with pytest.raises(UserError, match=r"model\.safetensors: is no safetensors file, or cut off"):
        weights.weight_bytes(tmp_path)


@pytest.mark.parametrize(
    ("size", "free", "devices"),
    [
        (16, [79, 79], [0]),
        (71, [79], []),
        (70, [79, 79], [0]),
        (141, [79, 79, 79, 79], [0, 1, 2]),
        (141, [79, 79], []),
        (16, [10, 79], [0, 1]),  # a GPU that is in use
        (16, [], []),
    ],
)
def test_a_model_is_put_where_it_fits(size, free, devices):
    assert weights.devices_for(size * GIB, [one * GIB for one in free]) == devices


@pytest.mark.parametrize("free", [(64,), (6,), (6, 6), (1, 1)])
def test_what_transformers_is_asked_for(exported, monkeypatch, capsys, free):
    monkeypatch.setattr(weights, "weight_bytes", lambda *_: 8 * GIB)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[device] * GIB, 80 * GIB))
    found, said = weights.load_arguments(models.folder(exported)), capsys.readouterr().out
    if free == (64,):
        assert found == {"device_map": {"": 0}} and not said
    elif free == (6, 6):  # 10.8 GiB do not fit 90 % of 12
        assert found == {"device_map": "auto", "max_memory": {0: 5 * GIB, 1: 5 * GIB}} and "over 2 GPUs" in said
    else:
        assert found == {} and "do not fit the GPUs" in said and "on the CPU" in said


def test_the_number_of_gpus_is_the_one_that_holds_it():
    for size in (1, 16, 66, 70, 141, 800):
        count = weights.gpus_needed(size * GIB, 75 * GIB)
        assert weights.devices_for(size * GIB, [75 * GIB] * count) == list(range(count))
        assert count == 1 or not weights.devices_for(size * GIB, [75 * GIB] * (count - 1))


def test_one_model_is_in_memory_at_a_time(tmp_path, trained, sft_rows, monkeypatch):
    loaded, load = [], export.load_for_inference

    def watched(*given, **settings):
        gc.collect()
        assert all(model() is None for model in loaded)
        model = load(*given, **settings)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr(export, "load_for_inference", watched)
    export.run(export_task(trained, sft_rows, tmp_path / "model" / "manifest.json"))
    assert len(loaded) == 2


def test_tensors_are_compared_bit_for_bit(tmp_path):
    given = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[3.0]])}
    save_file({name: tensor.bfloat16() for name, tensor in given.items()}, tmp_path / "model.safetensors")
    assert tensors.compare(tmp_path, given, set()) == {"tensors": 2}
    assert tensors.compare(tmp_path, {**given, "head": given["a"]}, {"head"}) == {"tensors": 2}
    assert tensors.compare(tmp_path, {"a": given["a"]}, set(), renamed=True) == {
        "tensors": 1,
        "tensors_not_compared": 1,
    }
    for trained, message in (
        ({**given, "a": torch.tensor([1.0, 2.02])}, "a differs from the tensor that was trained"),
        ({**given, "a": torch.tensor([[1.0, 2.0]])}, "a differs"),
        ({**given, "c": given["a"]}, "the tensor c is missing"),
        ({"a": given["a"]}, "the tensor b was not trained"),
    ):
        with pytest.raises(UserError, match=message):
            tensors.compare(tmp_path, trained, set())
    save_file({"a": torch.tensor([1.0, float("nan")])}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="a has NaN or infinity"):
        tensors.compare(tmp_path, {"a": torch.tensor([1.0, float("nan")])}, set())


def test_evaluation_halves_batches_that_do_not_fit(exported, monkeypatch, capsys):
    folder = models.folder(exported)
    evaluator = held_out.Evaluator(load_for_inference(folder), load_tokenizer(folder), TEMPLATE, 8, 5)
    prompts = [{"messages": [{"role": "user", "content": f"{n} and {n}?"}]} for n in range(5)]
    rows = [evaluator._encode([*prompt["messages"], {"role": "assistant", "content": "3"}]) for prompt in prompts]

    def asked():
        return evaluator.open_answers(prompts), [total for total, _ in evaluator._scored(rows)]

    answers, totals = asked()
    forward, most = evaluator.model.forward, 2

    def small(*given, **inputs):
        if len(inputs["input_ids"]) > most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return forward(*given, **inputs)

    monkeypatch.setattr(evaluator.model, "forward", small)
    found = asked()
    assert found[0] == answers and found[1] == pytest.approx(totals, abs=1e-4)
    assert capsys.readouterr().out.count("evaluate: 5 rows at a time do not fit the GPU's memory; trying 2") == 2
    most = 0
    with pytest.raises(UserError, match="evaluate: out of GPU memory with one row"):
        asked()


def test_the_batch_is_what_the_memory_holds(exported, monkeypatch):
    """Keys and values of 2 layers x 64 numbers x 4 bytes a token."""
    model = load_for_inference(models.folder(exported))
    assert loading.answers_that_fit(model, 100, 10 * 2 * 2 * 64 * 4 * 100) == 8
    assert loading.answers_that_fit(model, 100, 1) == 1
    assert loading.answers_that_fit(model, 100) > 10**9  # no GPU
