"""Adapters beside 4-bit weights: LoRA on the rounded model as oracle, exact resume, the reference, the export, two ranks."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import compute_reference, export_task, losses_of, pipeline_of, reference_task, train_here, train_task

from post_training.core import manifest
from post_training.core.errors import ConfigError
from post_training.launch import launcher
from post_training.models import folder, quantization
from post_training.plan.checks import check_view
from post_training.release import export

LORA = {"model__lora": {"r": 4, "alpha": 16}, "training__learning_rate": 1e-2}
QLORA = LORA | {"model__quantization": {}}
SETTINGS = {"bits": 4, "type": "nf4", "double": True}


@pytest.fixture(scope="module")
def run(tmp_path_factory, model_manifest, sft_rows, template):
    """Manifest of an SFT run, 6 steps, trained in this process."""
    return train_here(train_task(tmp_path_factory.mktemp("qlora") / "run", model_manifest, sft_rows, template, **QLORA))


@pytest.fixture(scope="module")
def rounded(tmp_path_factory, model_manifest):
    """Manifest of the model whose linear layers have the values that 4 bits leave of them."""
    from transformers import AutoModelForCausalLM

    made = tmp_path_factory.mktemp("rounded") / "model"
    shutil.copytree(model_manifest.parent, made)
    model = AutoModelForCausalLM.from_pretrained(folder(model_manifest), dtype=torch.float32)
    quantization.round_weights(model, SETTINGS)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, made / "model" / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
    return made / "manifest.json"


def adapters(directory, step=6):
    return (directory / "checkpoints" / f"checkpoint-{step}" / "adapter_model.safetensors").read_bytes()


def test_it_trains_as_adapters_do_on_the_rounded_model(tmp_path, run, rounded, model_manifest, sft_rows, template):
    """But for the adapters' random start, which TRL rounds to bfloat16."""
    found = losses_of(run.parent)
    same, other = (
        losses_of(train_here(train_task(tmp_path / name, model, sft_rows, template, **LORA)).parent)
        for name, model in (("rounded", rounded), ("given", model_manifest))
    )
    assert found[:2] == pytest.approx(same[:2], abs=1e-6)
    assert found == pytest.approx(same, abs=2e-3)
    assert max(abs(one - two) for one, two in zip(found, other, strict=True)) > 5e-3
    facts, told = manifest.read(run), manifest.read(tmp_path / "given" / "manifest.json")
    assert facts["parameters"] == told["parameters"]
    weights = load_file(run.parent / "checkpoints" / "checkpoint-6" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert any((tensor != tensor.bfloat16().float()).any() for tensor in weights.values())


def test_an_interrupted_run_ends_with_the_same_adapters(tmp_path, run, model_manifest, sft_rows, template):
    again = tmp_path / "run"
    shutil.copytree(run.parent, again, ignore=shutil.ignore_patterns("model", "checkpoint-6", "manifest.json"))
    train_here(train_task(again, model_manifest, sft_rows, template, **QLORA))
    assert losses_of(again) == losses_of(run.parent)
    assert adapters(again) == adapters(run.parent)


def test_the_export_is_the_rounded_model_and_the_adapters(tmp_path, run, rounded, model_manifest, sft_rows):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    output = tmp_path / "model" / "manifest.json"
    export.run(export_task(run, sft_rows, output))
    checkpoint = run.parent / "checkpoints" / "checkpoint-6"
    pairs = load_file(checkpoint / "adapter_model.safetensors")
    expected = load_file(folder(rounded) / "model.safetensors")
    for name, first in ((name, tensor) for name, tensor in pairs.items() if "lora_A" in name):
        target = name.removeprefix("base_model.model.").replace(".lora_A", "")
        expected[target] = expected[target] + (pairs[name.replace("lora_A", "lora_B")] @ first) * 4
    found = {name: tensor for path in output.parent.glob("*.safetensors") for name, tensor in load_file(path).items()}
    assert found.keys() <= expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    # The model that was trained, weights in 4 bits, answers alike; Transformers rounds the same layers to the same values.
    loading = quantization.load_arguments(SETTINGS, "float32", "cpu")
    trained = AutoModelForCausalLM.from_pretrained(folder(model_manifest), dtype="float32", **loading)
    quantization.keep_exact(trained)
    trained = PeftModel.from_pretrained(trained, str(checkpoint)).eval()
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        exported = AutoModelForCausalLM.from_pretrained(output.parent)(ids).logits
        assert torch.allclose(exported, trained(ids).logits, atol=1e-4)
    assert "quantization_config" not in json.loads((output.parent / "config.json").read_text())


@pytest.mark.parametrize("double", [True, False])
def test_memory_of_the_weights_is_predicted(tmp_path, double):
    from transformers import AutoModelForCausalLM, LlamaConfig

    from post_training.preflight import memory
    from post_training.preflight.shape import ModelShape

    settings = SETTINGS | {"double": double}
    config = LlamaConfig(hidden_size=512, intermediate_size=1024, num_hidden_layers=8, vocab_size=500)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    loading = quantization.load_arguments(settings, "bfloat16", "cpu")
    model, held = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="bfloat16", **loading), 0
    for parameter in model.parameters():
        held += parameter.nbytes
        if state := getattr(parameter, "quant_state", None):
            held += state.absmax.nbytes + (state.state2.absmax.nbytes if double else 0)
    view = {"model": {"dtype": "bfloat16", "quantization": settings}}
    one_layer = 2 * 512 * 1024  # which is turned back
    assert memory._base_bytes(ModelShape.of(tmp_path), view) - one_layer == pytest.approx(held, rel=1e-2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_rounding_is_what_transformers_does(tmp_path, family, dtype):
    """GPT-2's layers are stored the other way round."""
    from bitsandbytes.functional import dequantize_4bit
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 300}
    config = CONFIG_MAPPING[family](**shape, **({"intermediate_size": 192} if family == "llama" else {}))
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    loading = quantization.load_arguments(SETTINGS, dtype, "cpu")
    quantised = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype, **loading)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    quantization.round_weights(plain, SETTINGS)
    values, compared = dict(plain.named_parameters()), 0
    for name, parameter in quantised.named_parameters():
        if state := getattr(parameter, "quant_state", None):
            compared += 1
            parameter = dequantize_4bit(parameter.data, state)
            parameter = parameter.T if family == "gpt2" else parameter
        assert torch.equal(values[name].data, parameter.data), name
    assert compared == 2 * (7 if family == "llama" else 4)


def test_preferences_start_at_the_rounded_model(tmp_path, model_manifest, dpo_rows, template):
    """With the adapters switched off, and with stored log-probabilities of the same 4-bit weights."""
    changes = QLORA | {"training__max_steps": 3}
    stored = compute_reference(reference_task(tmp_path / "reference", model_manifest, dpo_rows, template, **changes))
    losses = {}
    for reference in (None, stored):
        given = (tmp_path / ("stored" if reference else "online"), model_manifest, dpo_rows, template, "dpo", reference)
        train_here(train_task(*given, **changes))
        losses[reference] = losses_of(given[0])
        assert losses[reference][0] == pytest.approx(0.693147, abs=1e-5) != losses[reference][-1]
    assert losses[stored] == pytest.approx(losses[None], abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__quantization": {}}, "model.quantization: 4-bit weights cannot be trained; train adapters: model.lora={}"),
        ({"model__quantization": {"bits": 8}, "model__lora": {}}, "model.quantization.bits: found 8, expected 4"),
        ({"model__quantization": {"type": "fp4"}, "model__lora": {}}, "model.quantization.type: found fp4, expected nf4"),
        ({"model__quantization": True, "model__lora": {}}, "model.quantization: found True, expected a mapping"),
        (
            {"model__quantization": {}, "model__lora": {}, "deepspeed__config_path": "zero3"},
            "model.quantization: ZeRO-3 cannot divide 4-bit weights",
        ),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(template, changes, message):
    with pytest.raises(ConfigError) as caught:
        check_view("sft", pipeline_of(template, **changes))
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.slow
def test_on_two_processes(tmp_path, run, model_manifest, sft_rows, template):
    """The losses of one process."""
    settings = QLORA | {"accelerate__num_processes": 2, "training__per_device_train_batch_size": 1}
    task = train_task(tmp_path / "run", model_manifest, sft_rows, template, **settings)
    assert launcher.run(task) == 0
    assert losses_of(task.directory) == pytest.approx(losses_of(run.parent), abs=2e-4)
