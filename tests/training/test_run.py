"""One rank in this process: what a run leaves behind, and how it goes on."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from tiny import losses_of, metrics_of, train_here, train_task

from post_training.config import resolve
from post_training.core.errors import ConfigError, UserError
from post_training.run_dir.checkpoints import MARKER, newest_complete


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_a_run_leaves_behind(trained):
    run = trained.parent
    assert set(names(run)) >= {"checkpoints", "config.yaml", "logs", "manifest.json"}
    assert "inference_checkpoints" not in names(run)
    # Two are kept, the last of them at the last step.
    assert {"checkpoint-4", "checkpoint-6"} <= set(names(run / "checkpoints"))
    assert "checkpoint-2" not in names(run / "checkpoints")
    manifest = json.loads(trained.read_text())
    assert (manifest["steps"], manifest["world_size"], manifest["rows_in"]) == (6, 1, 96)
    assert manifest["loss_last"] < manifest["loss_first"]
    lines = metrics_of(run)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert set(lines[0]) >= {"epoch", "loss", "learning_rate", "grad_norm", "tokens", "seconds", "tokens_per_second"}
    assert lines[-1]["tokens"] == manifest["tokens"]


def test_the_frozen_configuration_makes_the_same_run(trained):
    told = yaml.safe_load((trained.parent / "config.yaml").read_text())
    assert resolve(told).views["sft"]["training"]["max_steps"] == 6


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (Path.unlink, "resuming from checkpoint-4; incomplete and passed over: checkpoint-6 (optimizer.pt is missing)"),
        (flip_a_bit, "resuming from checkpoint-4"),
    ],
)
def test_a_run_goes_on_from_its_newest_whole_checkpoint(
    tmp_path, trained, model_manifest, sft_rows, template, capsys, damage, why
):
    run = tmp_path / "run"
    shutil.copytree(trained.parent, run, ignore=shutil.ignore_patterns("model"))
    (run / "manifest.json").unlink()
    damage(run / "checkpoints" / "checkpoint-6" / "optimizer.pt")  # TRL would resume all the same
    train_here(train_task(run, model_manifest, sft_rows, template))
    said = capsys.readouterr().out
    assert f"sft: {why}" in said
    assert ("checkpoint-6: optimizer.pt is not as it was saved: XXH3" in said) == (damage is flip_a_bit)
    assert [line["step"] for line in metrics_of(run)] == [1, 2, 3, 4, 5, 6]
    assert losses_of(run) == losses_of(trained.parent)
    weights = "checkpoints/checkpoint-6/model.safetensors"
    assert (run / weights).read_bytes() == (trained.parent / weights).read_bytes()
    assert [line["tokens"] for line in metrics_of(run)] == [line["tokens"] for line in metrics_of(trained.parent)]


def test_deterministic_kernels_are_required_and_change_nothing_on_the_cpu(
    tmp_path, trained, model_manifest, sft_rows, template
):
    import torch

    assert not torch.are_deterministic_algorithms_enabled()
    try:
        task = train_task(tmp_path / "run", model_manifest, sft_rows, template, training__deterministic=True)
        train_here(task)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert losses_of(task.directory) == losses_of(trained.parent)


def test_a_log_over_several_steps_is_the_same_across_a_resume(tmp_path, model_manifest, sft_rows, template):
    rare = {"logging__logging_steps": 5, "checkpointing__save_steps": 3}
    whole = train_task(tmp_path / "whole", model_manifest, sft_rows, template, **rare)
    train_here(whole)
    cut = tmp_path / "cut"
    shutil.copytree(whole.directory, cut, ignore=shutil.ignore_patterns("checkpoint-6", "manifest.json"))
    train_here(train_task(cut, model_manifest, sft_rows, template, **rare))
    (one,), (other,) = metrics_of(whole.directory), metrics_of(cut)
    for timing in ("seconds", "tokens_per_second", "peak_memory_bytes"):
        one.pop(timing)
        other.pop(timing)
    assert one == other


def test_changed_intervals_hold_for_a_resumed_run(tmp_path, trained, model_manifest, sft_rows, template):
    run = tmp_path / "run"
    shutil.copytree(trained.parent, run, ignore=shutil.ignore_patterns("model", "checkpoint-6"))
    train_here(
        train_task(run, model_manifest, sft_rows, template, logging__logging_steps=2, checkpointing__save_steps=1)
    )
    assert [line["step"] for line in metrics_of(run)] == [1, 2, 3, 4, 6]
    assert newest_complete(run / "checkpoints").chosen.step == 6
    assert "checkpoint-5" in names(run / "checkpoints")


def test_inference_checkpoints_are_loadable_models(tmp_path, model_manifest, sft_rows, template):
    from transformers import AutoModelForCausalLM

    run = tmp_path / "run"
    every = {"checkpointing__inference_checkpoint_steps": 2, "training__max_steps": 5}
    train_here(train_task(run, model_manifest, sft_rows, template, **every))
    assert names(run / "inference_checkpoints") == ["step-2", "step-4"]
    step = run / "inference_checkpoints" / "step-2"
    assert not {"training_args.bin", "optimizer.pt"} & set(names(step))
    assert "chat_template.jinja" in names(step)
    assert AutoModelForCausalLM.from_pretrained(step).config.use_cache is True
    saved = (run / "checkpoints" / "checkpoint-4" / "model.safetensors").read_bytes()
    assert (run / "inference_checkpoints" / "step-4" / "model.safetensors").read_bytes() == saved


def test_inference_checkpoints_elsewhere_or_off(tmp_path, model_manifest, sft_rows, template):
    elsewhere = tmp_path / "elsewhere"
    settings = {"checkpointing__inference_checkpoint_path": str(elsewhere), "training__max_steps": 2}
    train_here(
        train_task(
            tmp_path / "on", model_manifest, sft_rows, template, checkpointing__inference_checkpoint_steps=1, **settings
        )
    )
    assert names(elsewhere) == ["on"]
    assert names(elsewhere / "on") == ["step-1", "step-2"]
    off = {"checkpointing__inference_checkpoint_steps": 0, "training__max_steps": 1}
    train_here(train_task(tmp_path / "off", model_manifest, sft_rows, template, **off))
    assert "inference_checkpoints" not in names(tmp_path / "off")


def test_dpo_starts_at_ln_2_because_the_reference_is_the_start(tmp_path, model_manifest, dpo_rows, template):
    train_here(train_task(tmp_path / "run", model_manifest, dpo_rows, template, "dpo", training__max_steps=2))
    lines = metrics_of(tmp_path / "run")
    assert lines[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert "rewards/margins" in lines[0]


def test_another_reference_model(tmp_path, model_manifest, exported, dpo_rows, template):
    training = train_task(tmp_path / "run", model_manifest, dpo_rows, template, "dpo", training__max_steps=1)
    training.inputs["reference_model"] = exported
    training.spec["inputs"]["reference_model"] = "0" * 64
    train_here(training)
    assert losses_of(tmp_path / "run")[0] != pytest.approx(0.693147, abs=1e-5)


def test_a_run_that_diverges_stops_at_the_step(tmp_path, model_manifest, sft_rows, template):
    hot = {"training__learning_rate": 1e30, "training__max_grad_norm": 1e30, "training__warmup_ratio": 0.0}
    with pytest.raises(UserError, match=r"not a finite number, at step [2-4] on rank 0; its rows of the mix: \d+, "):
        train_here(train_task(tmp_path / "run", model_manifest, sft_rows, template, **hot))
    assert not (tmp_path / "run" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model__attn_implementation": "flash_attention_2"},
            "model.attn_implementation: 'flash_attention_2' cannot be used",
        ),
        ({"model__attn_implementation": "spda"}, "model.attn_implementation: 'spda' cannot be used"),
        ({"training__trainer_args": {"adam_beta": 1}}, "training.trainer_args.adam_beta: no argument"),
    ],
)
def test_what_this_machine_cannot_do_is_one_line(tmp_path, model_manifest, sft_rows, template, change, message):
    with pytest.raises(ConfigError, match=message) as caught:
        train_here(train_task(tmp_path / "run", model_manifest, sft_rows, template, **change))
    assert "\n" not in str(caught.value)


def test_tensorboard_and_length_in_epochs(tmp_path, model_manifest, sft_rows, template, monkeypatch):
    run = tmp_path / "run"
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(run / "logs"))
    length = {"training__max_steps": None, "training__num_train_epochs": 0.25, "logging__report_to": ["tensorboard"]}
    train_here(train_task(run, model_manifest, sft_rows, template, **length))
    assert len(metrics_of(run)) == 6
    assert list((run / "logs").glob("events.out.tfevents.*"))
    assert (run / "checkpoints" / "checkpoint-6" / MARKER).is_file()
