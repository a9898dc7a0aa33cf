"""Modules and rows of embeddings that are trained beside adapters: TRL with PEFT's own configuration as oracle, embeddings of their own and
tied ones, exact resume, merged exports bit for bit, 4 bits, preferences, two ranks."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from tiny import LLAMA, build_task, export_task, losses_of, pipeline_of, train_here, train_task, trl_with_adapters

from post_training.core import manifest
from post_training.core.errors import ConfigError
from post_training.launch import launcher
from post_training.models import build, folder, parts
from post_training.plan.checks import check_view
from post_training.preflight.shape import ModelShape
from post_training.preflight.subject import Subject
from post_training.release import export

CHAT = ["<|im_start|>", "<|im_end|>"]
CASES = {
    "modules": (False, {"modules_to_save": ["embed_tokens", "lm_head", "norm"]}, {"modules_to_save": ["embed_tokens", "lm_head", "model.norm"]}),
    "modules, tied": (True, {"modules_to_save": ["embed_tokens"]}, {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    "rows": (False, {"trainable_tokens": CHAT}, {"trainable_token_indices": {"embed_tokens": [1, 2], "lm_head": [1, 2]}}),
    "rows, tied": (True, {"trainable_tokens": CHAT}, {"trainable_token_indices": [1, 2]}),
}  # fmt: skip


def settings_of(case, **more):
    return {"model__lora": {"r": 4, "alpha": 16, **CASES[case][1]}, "training__learning_rate": 1e-2, **more}


@pytest.fixture(scope="module")
def models(tmp_path_factory, corpus, model_manifest):
    """Tied or not -> manifest of a model with the same tokenizer."""
    output = tmp_path_factory.mktemp("tied") / "scratch" / "manifest.json"
    build.run(build_task(output, corpus, config=LLAMA | {"tie_word_embeddings": True}))
    return {False: model_manifest, True: output}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return request.param


@pytest.fixture(scope="module")
def run(case, tmp_path_factory, models, sft_rows, template):
    """Manifest of an SFT run, 6 steps, trained in this process."""
    place = tmp_path_factory.mktemp("beside") / "run"
    return train_here(train_task(place, models[CASES[case][0]], sft_rows, template, **settings_of(case)))


def adapters(directory, step=6):
    return (directory / "checkpoints" / f"checkpoint-{step}" / "adapter_model.safetensors").read_bytes()


def test_the_losses_of_trl_with_pefts_configuration(tmp_path, case, run, models, sft_rows):
    base = folder(models[CASES[case][0]])
    trainer = trl_with_adapters(tmp_path, base, sft_rows, **CASES[case][2])
    assert trainer.processing_class.convert_tokens_to_ids(CHAT) == [1, 2]
    if "rows" in case:
        trainer.model.get_output_embeddings().bias = None  # which TRL's output layer asks PEFT's wrapper for
    trainer.train()
    expected = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses_of(run.parent) == pytest.approx(expected, rel=1e-5)
    assert not (run.parent / "checkpoints" / "own_forward").exists()  # which would hold all logits
    log = manifest.read(run)
    assert log["trainable_parameters"] == sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    # Preflight predicts it.
    view = pipeline_of(tmp_path, **settings_of(case)).views["sft"]
    subject = Subject("sft", view, run, base, ModelShape.of(base), None, None, run)
    assert subject.trainable == log["trainable_parameters"]


def test_an_interrupted_run_ends_with_the_same_weights(tmp_path, case, run, models, sft_rows, template):
    again = tmp_path / "run"
    shutil.copytree(run.parent, again, ignore=shutil.ignore_patterns("model", "checkpoint-6", "manifest.json"))
    train_here(train_task(again, models[CASES[case][0]], sft_rows, template, **settings_of(case)))
    assert losses_of(again) == losses_of(run.parent)
    assert adapters(again) == adapters(run.parent)


def test_the_export_is_pefts_merge_and_has_what_was_trained(tmp_path, case, run, models, sft_rows):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    output = tmp_path / "model" / "manifest.json"
    export.run(export_task(run, sft_rows, output))
    tied, start = CASES[case][0], load_file(folder(models[CASES[case][0]]) / "model.safetensors")
    found = {name: tensor for path in output.parent.glob("*.safetensors") for name, tensor in load_file(path).items()}
    assert found.keys() == start.keys() and ("lm_head.weight" in found) != tied
    checkpoint = run.parent / "checkpoints" / "checkpoint-6"
    saved = {
        n.removeprefix("base_model.model."): t for n, t in load_file(checkpoint / "adapter_model.safetensors").items()
    }
    for name in ("model.embed_tokens", *(() if tied else ("lm_head",)), *(["model.norm"] if case == "modules" else ())):
        trained, whole = found[f"{name}.weight"], saved.get(f"{name}.weight")
        if whole is None:
            whole = start[f"{name}.weight"].index_copy(
                0, torch.tensor([1, 2]), saved[f"{name}.token_adapter.trainable_tokens_delta"]
            )
        assert torch.equal(trained, whole) and not torch.equal(whole, start[f"{name}.weight"])
    base = AutoModelForCausalLM.from_pretrained(folder(models[tied]), dtype=torch.float32)
    merged = PeftModel.from_pretrained(base, str(checkpoint)).merge_and_unload().state_dict()
    assert all(torch.equal(found[name], merged[name]) for name in found)
    exported = AutoModelForCausalLM.from_pretrained(output.parent)
    assert (exported.lm_head.weight is exported.model.embed_tokens.weight) == tied


@pytest.mark.parametrize(("case", "quantized"), [("modules, tied", True), ("rows", False)])
def test_in_bfloat16_small_updates_are_kept(tmp_path, models, sft_rows, template, case, quantized):
    """What is trained is float32 from the model's own values on, beside 4-bit weights, too."""
    changes = settings_of(case, model__dtype="bfloat16", training__learning_rate=1e-4, training__max_steps=2)
    changes |= {"model__quantization": {}} if quantized else {}
    tied = CASES[case][0]
    done = train_here(train_task(tmp_path / "run", models[tied], sft_rows, template, **changes))
    saved = load_file(done.parent / "checkpoints" / "checkpoint-2" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    (name,) = (name for name in saved if "embed_tokens" in name)
    first = load_file(folder(models[tied]) / "model.safetensors")["model.embed_tokens.weight"].bfloat16().float()
    moved = (saved[name] - (first[[1, 2]] if case == "rows" else first)).abs()
    assert 0 < moved.max() <= 3e-4  # two steps of Adam at 1e-4
    output = tmp_path / "run" / "model" / "manifest.json"
    export.run(export_task(done, sft_rows, output))
    assert manifest.read(output)["checks"]["merge_logit_difference"] < 0.02


@pytest.mark.parametrize("case", ["rows, tied"])
def test_preferences_start_at_the_model_itself(tmp_path, models, dpo_rows, template, case):
    changes = settings_of(case, dpo__reference="online", training__max_steps=3)
    train_here(train_task(tmp_path / "run", models[CASES[case][0]], dpo_rows, template, "dpo", **changes))
    first, _, last = losses_of(tmp_path / "run")
    assert first == pytest.approx(0.693147, abs=1e-6) != last


def test_a_reward_model_reads_new_tokens(tmp_path, models, dpo_rows, template):
    """It has no output embedding; the embedding is that of a tied model."""
    changes = settings_of("rows, tied", training__max_steps=2, checkpointing__save_steps=2)
    done = train_here(train_task(tmp_path / "run", models[True], dpo_rows, template, "reward", **changes))
    asked = export_task(done, dpo_rows, tmp_path / "run" / "model" / "manifest.json")
    export.run(asked)
    assert manifest.read(asked.output)["checks"]["merge_logit_difference"] <= 1e-5
    name = "model.embed_tokens.weight"
    found = {
        key: tensor for path in asked.output.parent.glob("*.safetensors") for key, tensor in load_file(path).items()
    }
    moved = found[name] != load_file(folder(models[True]) / "model.safetensors")[name]
    assert moved.any(dim=1).nonzero()[:, 0].tolist() == [1, 2]


NEOX = {
    "model_type": "gpt_neox",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
}
GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 2}
PHI = {
    "model_type": "phi",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
}
TIED = {"model_type": "llama", **LLAMA, "tie_word_embeddings": True}


@pytest.mark.parametrize(
    ("config", "given", "message"),
    [
        (NEOX, {"modules_to_save": ["embed_tokens"]}, "modules_to_save: no module with weights is named 'embed_tokens'. "),
        (NEOX, {"modules_to_save": ["embed_in", "embed_out"]}, "modules_to_save: no module with weights is named 'embed_out'. "),
        (NEOX, {"modules_to_save": ["dense"]}, "modules_to_save: dense has an adapter already; take it out, or list"),
        (GPT2, {"modules_to_save": ["wte"]}, "lm_head is wte's own matrix in this model (tie_word_embeddings); PEFT would train two"),
        (GPT2, {"modules_to_save": ["lm_head"]}, "name wte, which trains both"),
        (TIED, {"modules_to_save": ["lm_head"]}, "name embed_tokens, which trains both"),
        (TIED, {"modules_to_save": ["embed_tokens"], "trainable_tokens": ["<|im_end|>"]}, "trains all of embed_tokens; take one"),
        (PHI, {"trainable_tokens": ["<|im_end|>"]}, "trainable_tokens: the output embedding lm_head has a bias"),
        (TIED, {"trainable_tokens": ["<|im_end|>", "<|nothing|>"]}, "'<|nothing|>' is 1"),
    ],
)  # fmt: skip
def test_names_that_a_model_does_not_have_or_cannot_train(tmp_path, model_manifest, config, given, message):
    from transformers import AutoConfig, AutoModelForCausalLM

    from post_training.models.lora import adapter_arguments

    shutil.copytree(folder(model_manifest), tmp_path / "m")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(vocab_size=272, **config))
    model.generation_config = None
    view = pipeline_of(tmp_path, model__lora=given).views["sft"]
    with pytest.raises(ConfigError) as caught:
        adapter_arguments(view, model, tmp_path / "m")
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"modules_to_save": []}, "model.lora.modules_to_save: found [], expected a list of texts, or null"),
        ({"modules_to_save": ["norm", "norm"]}, "model.lora.modules_to_save: names something twice"),
        ({"trainable_tokens": "<|im_end|>"}, "model.lora.trainable_tokens: found '<|im_end|>', expected"),
        ({"trainable_tokens": ["a"], "zero": 3}, "model.lora.trainable_tokens: PEFT cannot train rows of an embedding that ZeRO-3"),
    ],
)  # fmt: skip
def test_values_that_cannot_work(template, given, message):
    zero = {"deepspeed__config_path": "zero3"} if given.pop("zero", None) else {}
    with pytest.raises(ConfigError) as caught:
        check_view("sft", pipeline_of(template, model__lora=given, **zero))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_name_is_the_whole_last_part(models):
    """PEFT takes whatever ends with it."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder(models[False]))
    asked = {"modules_to_save": ["norm"], "trainable_tokens": None, "target_modules": "all-linear"}
    assert parts.peft_arguments(asked, model, folder(models[False])) == {"modules_to_save": ["model.norm"]}
    found = parts.peft_arguments(asked | {"modules_to_save": ["input_layernorm"]}, model, folder(models[False]))
    assert found["modules_to_save"] == [f"model.layers.{layer}.input_layernorm" for layer in (0, 1)]


@pytest.mark.slow
def test_on_two_processes(tmp_path, models, sft_rows, template):
    """One process's losses, an exact resume, a merged export: with ZeRO-3, whose checkpoints are in shards."""
    kind = "modules, tied"
    one = train_here(train_task(tmp_path / "one", models[CASES[kind][0]], sft_rows, template, **settings_of(kind)))
    settings = settings_of(kind, accelerate__num_processes=2, training__per_device_train_batch_size=1)
    settings["deepspeed__config"] = {"zero_optimization": {"stage": 3}, "zero_allow_untested_optimizer": True}
    task = train_task(tmp_path / "run", models[CASES[kind][0]], sft_rows, template, **settings)
    assert launcher.run(task) == 0
    assert losses_of(task.directory) == pytest.approx(losses_of(one.parent), abs=2e-4)
    whole = adapters(task.directory)
    task.output.unlink()
    shutil.rmtree(task.directory / "checkpoints" / "checkpoint-6")
    assert launcher.run(task) == 0
    assert adapters(task.directory) == whole
    output = tmp_path / "run" / "model" / "manifest.json"
    export.run(export_task(task.output, sft_rows, output))
    assert manifest.read(output)["checks"]["merge_logit_difference"] <= 1e-5
