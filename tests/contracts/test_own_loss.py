"""Training's loss is the model's own before any step, or the run says with both numbers what it does about it."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from tiny import view_of

from post_training.core.errors import UserError
from post_training.models.own_forward import offer_own_forward, use_own_forward
from post_training.preflight import twin_step
from post_training.training.loss_check import Compared

CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class ScaledConfig(LlamaConfig):
    model_type = "scaled"

class ScaledForCausalLM(LlamaForCausalLM):
    config_class = ScaledConfig

    def forward(self, *args, **kwargs):
        found = super().forward(*args, **kwargs)
        found.logits = 30 * (found.logits * {scale}).div(30).tanh()
        return found
"""


@pytest.fixture
def start(tmp_path, model_manifest):
    """A folder with a configuration of that family and a tokenizer; weights are the twin's."""

    def make(config, **files):
        folder = tmp_path / "start"
        shutil.copytree(model_manifest.parent / "model", folder, ignore=shutil.ignore_patterns("*.safetensors"))
        (folder / "config.json").write_text(json.dumps(config))
        for name, text in files.items():
            (folder / f"{name}.py").write_text(text)
        return folder

    return make


def step(folder, view):
    with twin_step.twin_folder(folder, view) as (made, manifest):
        return twin_step.take_step(view, made, manifest)


@pytest.mark.parametrize("method", ["sft", "dpo", "kto"])
def test_a_forward_pass_that_does_more_to_its_logits_is_used_itself(start, template, method):
    """Code that comes with a model scales and caps: TRL's layer reads neither."""
    auto = {"AutoConfig": "scaled.ScaledConfig", "AutoModelForCausalLM": "scaled.ScaledForCausalLM"}
    config = {"model_type": "scaled", "architectures": ["ScaledForCausalLM"], "auto_map": auto}
    folder = start(config, scaled=CODE.format(scale=5.0))
    found = step(folder, view_of(template, method, model__trust_remote_code=True))
    assert found.said.startswith("TRL's fused output layer gives a loss of ")
    given, own = (float(found.said.split(words)[1].split()[0].rstrip(",")) for words in ("loss of ", ", and "))
    assert abs(given - own) > 0.1 and "holds all logits" in found.said
    if method == "sft":  # of about the same tokens
        assert abs(found.loss - own) < abs(given - own)


def test_layers_that_mix_packed_documents_stop_the_run_with_both_numbers(start, template):
    folder = start({"model_type": "mamba", "architectures": ["MambaForCausalLM"]})
    view = view_of(template, "sft", preflight__only_warn=["libraries.packing"])
    with pytest.raises(
        UserError, match=r"before the first step training's loss of \d+ tokens is [\d.]+, and [\d.]+ by"
    ):
        step(folder, view)
    warned = view_of(template, "sft", preflight__only_warn=["libraries.packing", "model.step"])
    assert step(folder, warned).said.startswith("warning: before the first step")
    assert step(folder, view_of(template, "sft", sft__packing=False)).said.startswith("loss of ")


def test_a_tokenizer_without_end_and_padding(start, template):
    """The end token is for padding, too, where there is no other; with neither it is one line."""
    folder = start({"model_type": "llama"})
    file = folder / "tokenizer_config.json"
    named = json.loads(file.read_text())
    for name in ("pad_token", "eos_token"):
        named.pop(name)
        file.write_text(json.dumps(named))
        if name == "pad_token":
            assert step(folder, view_of(template)).loss > 0
    with pytest.raises(
        UserError, match="neither an end token nor one for padding; set eos_token in its tokenizer_config"
    ):
        step(folder, view_of(template))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_rewards_are_the_models_own_too(start, template, family):
    """Without padding, and for a family whose forward pass is its own, with it."""
    found = step(start({"model_type": family}), view_of(template, "reward"))
    assert found.said.startswith("mean negative reward of 4 answers before the first step: ")


@pytest.mark.parametrize("shifted", [False, True])
def test_the_own_forward_returns_what_trls_layer_returns(shifted):
    from transformers import AutoConfig, AutoModelForCausalLM
    from trl.trainer.utils import add_fused_lm_head

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model("llama", vocab_size=50, **sizes)
    model = AutoModelForCausalLM.from_config(config)
    fields = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
    add_fused_lm_head(model, outputs=fields)
    offer_own_forward(model)
    ids = torch.arange(24).reshape(2, 12) % 50
    labels = ids.masked_fill(ids % 5 == 0, -100)
    given = {"shift_labels": labels} if shifted else {"labels": labels}

    def computed(**more):
        model.zero_grad()
        found = model(input_ids=ids, fused_lm_head=True, **given, **more)
        found.loss.backward()
        return found, [parameter.grad.clone() for parameter in model.parameters()]

    expected, gradients = computed(num_items_in_batch=7)
    use_own_forward(model)
    found, own = computed(num_items_in_batch=7)
    for name in (*fields, "loss", "label_mask"):
        torch.testing.assert_close(getattr(found, name).float(), getattr(expected, name).float(), msg=name)
    torch.testing.assert_close(own, gradients)
    assert model(input_ids=ids).logits.shape == (2, 12, 50)


@pytest.mark.parametrize(
    "trained,own,distance,bf16,agrees",
    [
        (5.0, 5.0, 0.0, False, True),
        (5.0, 5.00001, 1e-4, False, True),
        (5.0, 5.01, 0.01, False, False),
        (5.0, 5.01, 0.05, True, True),
        (5.8, 8.03, 2.3, True, False),
        (float("nan"), 5.0, 0.0, True, False),
        (5.0, 5.0, 0.9, True, False),
    ],
)
def test_rounding_by_number_format(trained, own, distance, bf16, agrees):
    args = SimpleNamespace(bf16=bf16, fp16=False, tf32=None)
    assert Compared(100, trained, own, distance).agrees(args) == agrees
