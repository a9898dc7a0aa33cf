"""Adapters in training: TRL as oracle, small checkpoints, exact resume, a merge that is checked, two ranks."""

import json
import shutil

import pytest
from tiny import export_task, losses_of, train_here, train_task, trl_with_adapters, view_of

from post_training.core import manifest
from post_training.core.errors import ConfigError, UserError
from post_training.launch import launcher
from post_training.models import folder, lora
from post_training.release import export

LORA = {"model__lora": {"r": 4, "alpha": 16}, "training__learning_rate": 1e-2}


@pytest.fixture(scope="module")
def run(tmp_path_factory, model_manifest, sft_rows, template):
    """Manifest of an SFT run with adapters, 6 steps, trained in this process."""
    return train_here(train_task(tmp_path_factory.mktemp("lora") / "run", model_manifest, sft_rows, template, **LORA))


def names(directory):
    return {path.name for path in directory.iterdir()}


def adapters(run, step=6):
    return (run / "checkpoints" / f"checkpoint-{step}" / "adapter_model.safetensors").read_bytes()


def test_the_same_losses_as_trl_with_the_same_adapters(tmp_path, run, model_manifest, sft_rows, template):
    trainer = trl_with_adapters(tmp_path, folder(model_manifest), sft_rows)
    trainer.train()
    expected = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses_of(run.parent) == pytest.approx(expected, rel=1e-5)  # sums in another order


def test_a_checkpoint_holds_adapters_and_no_model(run, trained):
    checkpoint = run.parent / "checkpoints" / "checkpoint-6"
    assert {"adapter_model.safetensors", "adapter_config.json", "optimizer.pt"} <= names(checkpoint)
    assert "model.safetensors" not in names(checkpoint)
    told = json.loads((checkpoint / "adapter_config.json").read_text())
    adapted = {name.rpartition(".")[2] for name in told["target_modules"]}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert (folder(manifest.read(run)["inputs"]["model"]["path"]) / "config.json").samefile(
        told["base_model_name_or_path"] + "/config.json"
    )
    facts = manifest.read(run)
    # r * (in + out) of four square layers and of the three of the MLP, in two blocks.
    assert facts["trainable_parameters"] == 2 * 4 * (4 * (64 + 64) + 3 * (64 + 128))
    assert facts["parameters"] - facts["trainable_parameters"] == manifest.read(trained)["parameters"]


def test_an_interrupted_run_ends_with_the_same_adapters(tmp_path, run, model_manifest, sft_rows, template):
    again = tmp_path / "run"
    shutil.copytree(run.parent, again, ignore=shutil.ignore_patterns("model", "checkpoint-6", "manifest.json"))
    train_here(train_task(again, model_manifest, sft_rows, template, **LORA))
    assert losses_of(again) == losses_of(run.parent)
    assert adapters(again) == adapters(run.parent)


def test_the_export_is_the_merged_model(tmp_path, run, model_manifest, sft_rows, monkeypatch):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    output = tmp_path / "model" / "manifest.json"
    export.run(export_task(run, sft_rows, output))
    checks = manifest.read(output)["checks"]
    assert checks["merge_logit_difference"] <= 1e-5 < 0.1 < checks["adapter_logit_difference"]
    assert "adapter_model.safetensors" not in names(output.parent)
    merged = AutoModelForCausalLM.from_pretrained(output.parent)
    base = AutoModelForCausalLM.from_pretrained(folder(model_manifest), dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, str(run.parent / "checkpoints" / "checkpoint-6"))
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        assert torch.allclose(merged(ids).logits, adapted(ids).logits, atol=1e-5)
    # Adapters that did not get into the weights are noticed.
    monkeypatch.setattr(PeftModel, "merge_and_unload", lambda self, **_: self.unload(), raising=False)
    with pytest.raises(UserError, match=r"the adapters give logits that differ by [\d.]+ of the largest"):
        export.run(export_task(run, sft_rows, tmp_path / "wrong" / "manifest.json"))
    assert not (tmp_path / "wrong" / "manifest.json").exists()


def test_bfloat16_with_inference_checkpoints(tmp_path, model_manifest, sft_rows, template):
    import torch
    from peft import AutoPeftModelForCausalLM
    from safetensors.torch import load_file

    settings = LORA | {"model__dtype": "bfloat16", "checkpointing__inference_checkpoint_steps": 3}
    done = train_here(train_task(tmp_path / "run", model_manifest, sft_rows, template, **settings))
    step = done.parent / "inference_checkpoints" / "step-6"
    assert {tensor.dtype for tensor in load_file(step / "adapter_model.safetensors").values()} == {torch.float32}
    assert AutoPeftModelForCausalLM.from_pretrained(step).peft_config["default"].r == 4
    output = tmp_path / "run" / "model" / "manifest.json"
    export.run(export_task(done, sft_rows, output))
    assert manifest.read(output)["checks"]["merge_logit_difference"] < 0.02
    weights = [load_file(path) for path in output.parent.glob("*.safetensors")]
    assert {tensor.dtype for file in weights for tensor in file.values()} == {torch.bfloat16}


def test_preferences_start_at_the_model_without_adapters(tmp_path, model_manifest, dpo_rows, template, capsys):
    settings = LORA | {"dpo__reference": "online", "training__max_steps": 3, "model__lora__dropout": 0.5}
    train_here(train_task(tmp_path / "run", model_manifest, dpo_rows, template, "dpo", **settings))
    first, _, last = losses_of(tmp_path / "run")
    assert first == pytest.approx(0.693147, abs=1e-6) != last
    assert "model.lora.dropout has no effect, because TRL disables dropout" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["q_proj", "v_prj"], "model.lora.target_modules: no linear layer is named 'v_prj'. Did you mean 'v_proj'"),
        (["input_layernorm"], "model.lora.target_modules: no linear layer is named 'input_layernorm'"),
    ],
)  # fmt: skip
def test_names_are_checked_against_the_model(tmp_path, model_manifest, sft_rows, template, targets, message):
    settings = {"model__lora": {"target_modules": targets}}
    with pytest.raises(ConfigError) as caught:
        train_here(train_task(tmp_path / "run", model_manifest, sft_rows, template, **settings))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"r": 0}, "model.lora.r: found 0, expected 1 or more"),
        ({"alpha": 0}, "model.lora.alpha: found 0"),
        ({"dropout": 1.0}, "model.lora.dropout: found 1.0"),
        ({"target_modules": "q_proj"}, "model.lora.target_modules: found 'q_proj', expected all-linear or a list"),
        ({"target_modules": []}, "model.lora.target_modules: found []"),
        ({"target_modules": ["q_proj", "lm_head"]}, "model.lora.target_modules: lm_head cannot have an adapter"),
    ],
)
def test_values_that_cannot_work(template, given, message):
    with pytest.raises(ConfigError) as caught:
        lora.check_lora(view_of(template, model__lora=given))
    assert message in str(caught.value)


@pytest.mark.slow
def test_on_two_processes(tmp_path, run, model_manifest, sft_rows, template):
    """Plain DDP: one process's losses, small checkpoints, an exact resume, a merged export. ZeRO is in test_beside_adapters."""
    settings = LORA | {"accelerate__num_processes": 2, "training__per_device_train_batch_size": 1}
    task = train_task(tmp_path / "run", model_manifest, sft_rows, template, **settings)
    assert launcher.run(task) == 0
    assert losses_of(task.directory) == pytest.approx(losses_of(run.parent), abs=2e-4)
    whole = adapters(task.directory)
    checkpoint = task.directory / "checkpoints" / "checkpoint-6"
    base = (folder(model_manifest) / "model.safetensors").stat().st_size
    assert all(path.stat().st_size < base for path in checkpoint.rglob("*") if path.is_file())
    task.output.unlink()
    shutil.rmtree(checkpoint)
    assert launcher.run(task) == 0
    assert adapters(task.directory) == whole
    output = tmp_path / "run" / "model" / "manifest.json"
    export.run(export_task(task.output, sft_rows, output))
    assert manifest.read(output)["checks"]["merge_logit_difference"] <= 1e-5
