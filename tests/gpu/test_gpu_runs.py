"""Runs on a card, as the rules start them: losses against the CPU's, resume, memory, export, evaluation, energy."""

import json
import os
import random
import subprocess

import pytest
from tiny import (
    TEMPLATE,
    build_task,
    conversation,
    export_task,
    launcher_command,
    losses_of,
    pipeline_of,
    task,
    train_task,
    write_mix,
)

WIDE = {
    "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12,
    "num_key_value_heads": 4, "max_position_embeddings": 2048,
}  # fmt: skip
STEPS = {"training__max_steps": 6, "checkpointing__save_steps": 3}


def run(made, **environment):
    done = subprocess.run(
        launcher_command(made), env={**os.environ, **environment}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return made.directory


@pytest.fixture(scope="module")
def runs(tmp_path_factory, model_manifest, rows_of, template):
    """Method -> run directory of 6 steps in bfloat16 on this device."""
    folder, made = tmp_path_factory.mktemp("gpu"), {}

    def of(method):
        if method not in made:
            given = (folder / method, model_manifest, rows_of[method], template, method)
            made[method] = run(train_task(*given, model__dtype="bfloat16", **STEPS))
        return made[method]

    return of


@pytest.mark.parametrize("method", ["sft", "dpo", "kto"])
def test_losses_are_those_of_the_cpu(tmp_path, runs, model_manifest, rows_of, template, method):
    """In float32 there: the number format may move a loss, the kernels may not."""
    given = (tmp_path / "cpu", model_manifest, rows_of[method], template, method)
    expected = losses_of(run(train_task(*given, **STEPS), CUDA_VISIBLE_DEVICES=""))
    assert losses_of(runs(method)) == pytest.approx(expected, rel=2e-2, abs=2e-2)


def test_resumed_weights_are_the_undisturbed_ones(tmp_path, model_manifest, rows_of, template):
    """With `training.deterministic`, bit for bit."""
    weights = []
    for name in ("straight", "resumed"):
        given = (tmp_path / name, model_manifest, rows_of["sft"], template)
        made = train_task(*given, model__dtype="bfloat16", training__deterministic=True, **STEPS)
        directory = run(made)
        if name == "resumed":  # as after a kill between the two saves
            last = directory / "checkpoints" / "checkpoint-6"
            last.rename(directory / "lost")
            made.output.unlink()
            run(made)
        weights.append((directory / "checkpoints/checkpoint-6/model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_adapters_beside_4_bit_weights(tmp_path, model_manifest, rows_of, template):
    """The losses of the CPU, whose kernels of bitsandbytes are others; an export that is the rounded model and the adapters."""
    from post_training.release import export

    changes = {**STEPS, "model__lora": {"r": 4}, "model__quantization": {}, "training__learning_rate": 1e-2}
    given = (model_manifest, rows_of["sft"], template)
    made = run(train_task(tmp_path / "gpu", *given, model__dtype="bfloat16", **changes))
    expected = losses_of(run(train_task(tmp_path / "cpu", *given, **changes), CUDA_VISIBLE_DEVICES=""))
    assert losses_of(made) == pytest.approx(expected, rel=3e-2, abs=3e-2)
    output = made / "model" / "manifest.json"
    export.run(export_task(made / "manifest.json", rows_of["sft"], output))
    assert json.loads(output.read_text())["checks"]["merge_logit_difference"] < 0.05


def test_the_export_passes_its_checks_and_answers(runs, rows_of):
    from post_training.evaluation import held_out
    from post_training.release import export

    directory = runs("sft")
    output = directory / "model" / "manifest.json"
    export.run(export_task(directory / "manifest.json", rows_of["sft"], output))
    assert json.loads(output.read_text())["checks"]["tensors"] > 0
    rows = directory / "held_out" / "rows.jsonl"
    rows.parent.mkdir()
    rows.write_text("".join(json.dumps({"messages": conversation(n)}) + "\n" for n in range(1000, 1256)))
    (rows.parent / "manifest.json").write_text("{}")
    results = {}
    for size in (8, 256):
        config = {"chat_template": TEMPLATE, "max_new_tokens": 12, "max_samples": None}
        inputs = {"model": output, "sums": rows.parent / "manifest.json"}
        made = task("evaluate", config, {"batch_size": size}, inputs, directory / f"evaluate-{size}" / "manifest.json")
        made.directory.mkdir()
        held_out.run(made)
        results[size] = json.loads(made.output.read_text())["results"]["sums"]
    assert results[8]["loss"] == pytest.approx(results[256]["loss"], rel=2e-2)


def test_energy_is_counted(runs, only_cuda):
    manifest = json.loads((runs("sft") / "manifest.json").read_text())
    assert manifest["energy_joules"] > 0


def test_memory_is_predicted(tmp_path, corpus, template):
    """By the probe: a model of 0.1 billion parameters at 1,024 tokens."""
    from post_training.models import build
    from post_training.preflight import probe

    model = tmp_path / "wide" / "manifest.json"
    build.run(build_task(model, corpus, config=WIDE))
    (tmp_path / "mix").mkdir()
    tokens = random.Random(0).choices(range(256), k=1024)
    rows = [{"input_ids": tokens, "labels": tokens, "seq_lengths": [256] * 4}] * 8
    changes = {
        "model__dtype": "bfloat16", "sft__max_seq_length": 1024, "training__effective_batch_size": 4,
        "training__per_device_train_batch_size": 2,
    }  # fmt: skip
    runtime = {"pipeline": pipeline_of(template, "sft", **changes).frozen("sft")}
    inputs = {"model": model, "data": write_mix(tmp_path / "mix", rows, packing=True)}
    made = task("preflight_probe", {"steps": 2}, runtime, inputs, tmp_path / "probe" / "manifest.json")
    assert probe.run(made) == 0
    found = json.loads((made.directory / "preflight.json").read_text())
    predicted, measured = (found[side]["peak_memory_bytes"] for side in ("predicted", "measured"))
    assert 0.8 * measured <= predicted <= 1.25 * measured, found
