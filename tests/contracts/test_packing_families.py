"""Every family of models packs documents without mixing them, and trains on its own loss, or is refused: on two layers."""

import datetime
import hashlib
import os
import shutil

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from tiny import view_of
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from post_training.core.errors import UserError
from post_training.models.packing_probe import probe
from post_training.preflight import twin_step

SERVED = (
    "apertus arcee bitnet cohere cohere2 cwm deepseek_v3 ernie4_5 ernie4_5_moe exaone4 flex_olmo gemma gemma3_text glm glm4 "
    "glm4_moe gpt2 gpt_neox granite granitemoe helium internlm3 llama minimax_m2 ministral3 mistral mixtral modernbert-decoder "
    "olmo olmo2 olmo3 olmoe opt phi phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_moe seed_oss smollm3 starcoder2"
).split()
"""Families whose attention is `varlen`."""
OTHER = {
    "gemma2": ("eager", "soft-capped scores"),
    "vaultgemma": ("eager", "soft-capped scores"),
    "llama4_text": ("sdpa", "differ"),
    "stablelm": ("sdpa", "packed documents differ"),
    "gpt_neo": ("eager", "does not know"),
}
"""Families that keep packed documents apart with another attention, and why it is not `varlen`."""
MIXING = "bloom falcon falcon_mamba gpt_oss jamba mamba minimax mpt recurrent_gemma rwkv".split()
"""Families whose layers mix them, by ALiBi without restart, states, or masks without documents."""
UNKNOWN = "bamba granitemoehybrid olmo_hybrid qwen3_next qwen3_5_text".split()
"""Families that need kernels which are not here to keep them apart."""

NOT_BUILT = (
    "blt cohere_compass_text dbrx deepseek_v2 dots1 dots3_note dots3_note_text emu3 falcon_h1 "
    "gemma4_assistant git hunyuan_v1_dense "
    "hunyuan_v1_moe lfm2_moe longcat_flash mamba2 ministral mllama musicgen musicgen_melody nemotron "
    "phi4_multimodal plbart qwen4_exp qwen4_exp_text reformer whisper xlm xlnet xlstm xmod zamba zamba2 zaya"
).split()
"""Architectures that have no two small layers by their own defaults: other sizes that go together, or parts besides text."""
FAILS = {"flint": "tuple index out of range"}
"""Architectures whose own forward pass fails, and with what: preflight shows it as it is."""
_A_DAY = 8


def todays():
    """All architectures with causal language models; some, by a hash of the day, without LONG=1."""
    families, day = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES), datetime.date.today().isoformat()
    if os.environ.get("LONG"):
        return families
    return sorted(families, key=lambda name: hashlib.sha256(f"{day} {name}".encode()).digest())[:_A_DAY]


def found(family):
    return probe(CONFIG_MAPPING[family]())


@pytest.mark.parametrize("family", SERVED)
def test_packed_documents_have_the_logits_that_they_have_alone(family):
    packing = found(family)
    assert (packing.implementation, packing.safe) == ("varlen", True), packing


@pytest.mark.parametrize("family", OTHER)
def test_other_attention_where_varlen_does_not_serve(family):
    packing, (name, reason) = found(family), OTHER[family]
    assert (packing.implementation, packing.safe) == (name, True) and reason in packing.reason, packing


@pytest.mark.parametrize("family", MIXING)
def test_a_family_that_mixes_documents_is_refused_with_the_figure(family):
    packing = found(family)
    assert not packing.safe and packing.difference > 0.01
    assert f"logits differ by {packing.difference:.2g}" in packing.verdict()


@pytest.mark.parametrize("family", UNKNOWN)
def test_what_is_not_known_is_not_packed(family):
    packing = found(family)
    assert not packing.safe and packing.difference is None and packing.reason


def test_the_attention_that_was_asked_for_is_the_one_that_is_probed():
    llama = CONFIG_MAPPING["llama"]()
    assert [probe(llama, name).implementation for name in ("sdpa", "eager", "flash_attention_2")] == [
        "sdpa",
        "eager",
        "varlen",
    ]
    assert probe(CONFIG_MAPPING["gemma2"](), "varlen").implementation is None


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_a_model_of_one_layer(family):
    config = CONFIG_MAPPING[family](num_hidden_layers=1)
    assert (probe(config).implementation, probe(config).safe) == ("varlen", True)


def own_loss(folder, documents):
    """Log-probability of each document from a token on, by its model's own forward with eager attention."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    found = []
    with torch.no_grad():
        for ids, begin in documents:
            tokens = torch.as_tensor(ids)[None]
            scores = model(input_ids=tokens, use_cache=False).logits[0, begin - 1 : -1].log_softmax(-1)
            found.append(float(scores.gather(-1, tokens[0, begin:, None]).double().sum()))
    return found


def outcome(family, method, template, tokenizer, place):
    """`equal`, `own forward`, `refused` or `cannot be built`, and the line that says so; AssertionError where it is none of them."""
    config = CONFIG_MAPPING[family]()
    text = config.get_text_config()
    for one in {id(config): config, id(text): text}.values():
        for name in [name for name, value in vars(one).items() if isinstance(value, float)]:
            if "drop" in name or "jitter" in name:  # noise of training
                setattr(one, name, 0.0)
    experts = hasattr(text, "output_router_logits") and hasattr(text, "router_aux_loss_coef")
    config.save_pretrained(place)
    for file in tokenizer.iterdir():
        if not (place / file.name).exists() and file.suffix != ".safetensors":
            shutil.copyfile(file, place / file.name)
    changes = {}
    if method == "sft":
        packed = probe(config).safe
        changes = {"sft__packing": packed} | (
            {"training__trainer_args": {"router_aux_loss_coef": 0.0}} if experts else {}
        )
    view = view_of(template, method, **changes)
    try:
        with twin_step.twin_folder(place, view) as (folder, manifest):
            step = twin_step.take_step(view, folder, manifest)
            rows = list(twin_step.Rows(method, 2, packed=method == "sft" and packed))
            if method == "sft":
                pieces = [np.split(row["input_ids"], np.cumsum(row.get("seq_lengths", []))[:-1]) for row in rows]
                documents = [(ids, 1) for row in pieces for ids in row]
                expected = -sum(own_loss(folder, documents)) / sum(len(ids) - 1 for ids, _ in documents)
            else:
                sides = [
                    np.append(row["prompt_ids"], row[name]) for row in rows for name in ("chosen_ids", "rejected_ids")
                ]
                found = own_loss(folder, [(ids, len(rows[0]["prompt_ids"])) for ids in sides])
                margins = [0.1 * (a - b) for a, b in zip(found[::2], found[1::2], strict=True)]
                expected = float(np.mean([np.logaddexp(0, -margin) for margin in margins]))
    except twin_step.NoTwin as error:
        return "cannot be built", str(error)
    except UserError as error:
        assert "\n" not in str(error)
        return "refused", str(error)
    except (IndexError, TypeError, AttributeError, RuntimeError) as error:
        if family not in FAILS:
            raise
        return "fails", str(error)
    # Of a model of experts, DPO's loss has that of the router besides.
    allowed = 0.1 if experts and method == "dpo" else 1e-5 * abs(expected)
    assert abs(step.loss - expected) <= allowed, (family, method, step, expected)
    return ("own forward" if step.said.startswith("TRL's") else "equal"), step.said


@pytest.mark.parametrize("family", todays())
def test_a_step_has_the_models_own_loss_or_is_refused(family, template, model_manifest, tmp_path):
    """Packed SFT where that is safe, and DPO; all families with LONG=1, else some of them a day."""
    for method in ("sft", "dpo"):
        place = tmp_path / method
        place.mkdir()
        try:
            kind, line = outcome(family, method, template, model_manifest.parent / "model", place)
        except (ValueError, StrictDataclassClassValidationError) as error:
            kind, line = "cannot be built", str(error)
        if os.environ.get("LONG"):
            print("|", family, "|", method, "|", kind, "|", " ".join(line.split())[:160], "|")
        assert (kind == "cannot be built") == (family in NOT_BUILT), line
        if kind == "fails":
            assert FAILS[family] in line
        elif family in SERVED:
            assert kind in ("equal", "own forward"), line
        elif kind == "refused":
            assert "sees the tokens after" in line or "by the model's own forward" in line, line
