"""Every family of models packs documents without mixing them, or is refused: on two layers with random weights."""

import pytest
from transformers import CONFIG_MAPPING

from post_training.models.packing_probe import probe

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
