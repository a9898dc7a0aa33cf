"""Attention over packed documents: the same numbers as a mask, and none is built."""

import itertools
import subprocess
import sys

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, masking_utils

from post_training.models import attention

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0,
}  # fmt: skip
CONFIGS = {"full": LlamaConfig(**SIZES), "sliding": MistralConfig(**SIZES, sliding_window=4)}
LENGTHS = (7, 1, 9)


@pytest.fixture(params=CONFIGS)
def model_of(request):
    def make(implementation):
        attention.register()
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(CONFIGS[request.param], attn_implementation=implementation)

    return make


def packed_batch():
    torch.manual_seed(1)
    bounds = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0)], dtype=torch.int32)
    return {
        "input_ids": torch.randint(1, 64, (1, sum(LENGTHS))),
        "position_ids": torch.cat([torch.arange(length) for length in LENGTHS])[None],
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": max(LENGTHS),
        "max_length_k": max(LENGTHS),
        "use_cache": False,
    }


def loss_and_gradient(model, **inputs):
    logits = model(**inputs).logits
    logits.square().mean().backward()
    return logits.detach(), torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def assert_close(one, other):
    for a, b in zip(one, other, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_documents_have_the_logits_and_gradients_of_a_mask(model_of, checkpointing):
    model = model_of(attention.NAME).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_close(loss_and_gradient(model, **packed_batch()), loss_and_gradient(model_of("eager"), **packed_batch()))


def test_no_mask_is_built_for_packed_documents(model_of, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a mask")

    for name in ("sdpa_mask", "eager_mask"):
        monkeypatch.setattr(masking_utils, name, refuse)
    model_of(attention.NAME)(**packed_batch())


def test_a_padded_batch_and_a_cache_are_those_of_sdpa(model_of):
    ids = torch.randint(1, 64, (2, 9))
    for mask in (torch.arange(9) < torch.tensor([[9], [4]]), torch.arange(9) >= torch.tensor([[0], [5]])):
        found = [model_of(name)(input_ids=ids, attention_mask=mask.long()).logits for name in (attention.NAME, "sdpa")]
        assert torch.equal(*found)
    found = [
        model_of(name).generate(ids[:1], max_new_tokens=6, do_sample=False, output_logits=True, return_dict_in_generate=True)
        for name in (attention.NAME, "sdpa")
    ]  # fmt: skip
    torch.testing.assert_close(torch.stack(found[0].logits), torch.stack(found[1].logits))


def test_the_kernels_get_documents_windows_and_scale(model_of, monkeypatch):
    """What PyTorch's kernels for CUDA are called with gives the numbers of the CPU."""
    calls = []

    def kernels(query, key, value, bounds, bounds_k, longest, longest_k, *, scale, window_size, enable_gqa):
        assert bounds is bounds_k and longest == longest_k == max(LENGTHS) and query.dim() == 3
        calls.append(window_size)
        pieces = []
        for a, b in itertools.pairwise(bounds.tolist()):
            mask = torch.ones(b - a, b - a, dtype=torch.bool).tril()
            if window_size[0] >= 0:
                mask = mask.triu(-window_size[0])
            parts = [tensor[a:b].transpose(0, 1)[None] for tensor in (query, key, value)]
            pieces.append(functional.scaled_dot_product_attention(*parts, mask, scale=scale, enable_gqa=enable_gqa)[0])
        return torch.cat(pieces, dim=1).transpose(0, 1)

    expected = loss_and_gradient(model_of(attention.NAME), **packed_batch())
    monkeypatch.setattr(attention, "varlen_attn", kernels)
    monkeypatch.setattr(attention, "_kernel_type", lambda query, value: query.dtype)
    model = model_of(attention.NAME)
    assert_close(loss_and_gradient(model, **packed_batch()), expected)
    window = getattr(model.config, "sliding_window", None)
    assert set(calls) == {(-1, 0) if window is None else (window - 1, 0)}


def test_kernels_only_where_they_serve(monkeypatch):
    query = torch.empty(1, 4, 2, 64)
    assert attention._kernel_type(query, query) is None  # the CPU
    assert attention._kernel_type(query.to("meta"), query) is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [({"softcap": 50.0}, "soft-capped"), ({"s_aux": torch.zeros(4)}, "sinks"), ({"position_bias": 1}, "ALiBi")],
)
def test_what_it_cannot_compute_is_an_error(arguments, said):
    parts = [torch.zeros(1, 4, 3, 8)] * 3
    with pytest.raises(attention.UnsupportedAttention, match=said):
        attention.attend(torch.nn.Identity(), *parts, None, **arguments)


OLDER = """
import sys, torch
import torch.distributed as dist

sys.modules["torch.nn.attention.varlen"] = None
del dist.all_gather_single
from post_training.models import attention
from post_training.training import ranks

query = torch.randn(1, 4, 5, 8)
found, _ = attention.attend(torch.nn.Linear(1, 1), query, query, query, None, cu_seq_lens_q=torch.tensor([0, 2, 5]))
alone = torch.nn.functional.scaled_dot_product_attention(*[query[:, :, 2:]] * 3, is_causal=True)
assert torch.allclose(found[:, 2:].transpose(1, 2), alone, atol=1e-6) and attention._kernel_type(query, query) is None
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1)
assert ranks.gather(torch.tensor([7])).tolist() == [[7]]
dist.destroy_process_group()
"""


def test_a_sites_older_pytorch_does_without_what_came_later(tmp_path):
    """PyTorch 2.6, the oldest that BUILD=site accepts, has neither these kernels nor the name of the collective."""
    done = subprocess.run([sys.executable, "-c", OLDER, str(tmp_path / "store")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
