"""Kernels that a GPU runs in place of the CPU's: attention over packed documents, and the output layer with its loss."""

import importlib.util
import itertools

import pytest
import torch

LENGTHS = (37, 5, 64, 22)


@pytest.fixture
def model(device):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=512, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).to(device, torch.bfloat16 if device == "cuda" else torch.float32)


def packed(device):
    """Documents one behind the other, as the collator lays them out."""
    ids = torch.randint(5, 500, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(1)).to(device)
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None].to(device)
    starts = torch.tensor([0, *itertools.accumulate(LENGTHS)], dtype=torch.int32, device=device)
    bounds = {
        "cu_seq_lens_q": starts,
        "cu_seq_lens_k": starts,
        "max_length_q": max(LENGTHS),
        "max_length_k": max(LENGTHS),
    }
    return {"input_ids": ids, "position_ids": positions, **bounds}


def gradients(model, logits):
    model.zero_grad()
    logits.float().square().mean().backward()
    return torch.cat([parameter.grad.float().flatten() for parameter in model.parameters()])


def close(one, other, share):
    return (one - other).norm() <= share * other.norm()


@pytest.mark.parametrize("window", [None, 8], ids=["full", "sliding window"])
def test_packed_documents_are_as_alone(model, device, window):
    """Forward and backward, grouped queries, with the kernels that PyTorch ships."""
    from post_training.models import attention

    model.config._attn_implementation = attention.register()
    for layer in model.model.layers:
        layer.self_attn.sliding_window = window
    inputs = packed(device)
    together = model(**inputs, use_cache=False).logits
    alone = torch.cat(
        [model(input_ids=ids, use_cache=False).logits for ids in inputs["input_ids"].split(LENGTHS, dim=1)], dim=1
    )
    share = 1e-2 if device == "cuda" else 1e-5
    assert close(together.float(), alone.float(), share)
    assert close(gradients(model, together), gradients(model, alone), 2 * share)


def test_flash_attention_is_varlen(model, device, only_cuda):
    if importlib.util.find_spec("flash_attn") is None:
        pytest.skip("flash-attn is not installed; `make flash`")
    from post_training.models import attention

    inputs, found = packed(device), {}
    for name in (attention.register(), "flash_attention_2"):
        model.set_attn_implementation(name)
        found[name] = model(**inputs, use_cache=False).logits.float()
    assert close(*found.values(), 1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", ["plain", "softcap", "scale", "bias", "temperature"])
def test_the_fused_output_layer_is_a_log_softmax(device, case, dtype, triton_head):
    """TRL's Triton kernels against all logits at once: log-probabilities, entropy, and the gradients of both."""
    from trl.kernels import ChunkedLogProbFunction

    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(*size, generator=generator) for size in ((33, 32), (1500, 32), (1500,)))
    hidden, weight, bias = ((tensor / 4).to(device, dtype).requires_grad_() for tensor in (hidden, weight, bias))
    targets = torch.randint(0, 1500, (33,), generator=generator).to(device)
    bias = bias if case == "bias" else None
    softcap, scale, temperature = 5.0 if case == "softcap" else None, 0.5 if case == "scale" else 1.0, 0.7 if case == "temperature" else 1.0  # fmt: skip
    given = [tensor for tensor in (hidden, weight, bias) if tensor is not None]

    fused = ChunkedLogProbFunction.apply(hidden, weight, bias, targets, temperature, 512, softcap, scale)
    (fused[0].sum() + 0.1 * fused[1].sum()).backward()
    found = [fused[0], fused[1], *(tensor.grad.clone() for tensor in given)]

    leaves = [tensor.detach().float().requires_grad_() for tensor in given]
    logits = leaves[0] @ leaves[1].T * scale if bias is None else (leaves[0] @ leaves[1].T + leaves[2]) * scale
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    everything = torch.log_softmax(logits / temperature, dim=-1)
    expected = [everything.gather(1, targets[:, None])[:, 0], -(everything.exp() * everything).sum(-1)]
    (expected[0].sum() + 0.1 * expected[1].sum()).backward()
    expected += [leaf.grad for leaf in leaves]
    for one, other in zip(found, expected, strict=True):
        assert close(one.float(), other, 1e-5 if dtype == torch.float32 and device == "cpu" else 2e-2)


@pytest.mark.parametrize("layer", ["norm", "feed-forward", "rotary positions"])
def test_ligers_layers_are_those_of_transformers(device, layer, liger):
    """The kernels that `training.use_liger_kernel` puts into a Llama, forward and backward."""
    from liger_kernel.transformers.rms_norm import LigerRMSNorm
    from liger_kernel.transformers.rope import liger_rotary_pos_emb
    from liger_kernel.transformers.swiglu import LigerSwiGLUMLP
    from transformers.models.llama import modeling_llama as llama

    torch.manual_seed(0)
    if layer == "rotary positions":
        angles = torch.randn(2, 5, 8, device=device)
        position = tuple(torch.cat([values] * 2, dim=-1) for values in (angles.cos(), angles.sin()))
        inputs = [torch.randn(2, heads, 5, 16, device=device) for heads in (4, 2)]
        ours, theirs = (lambda *given, f=f: f(*given, *position) for f in (llama.apply_rotary_pos_emb, liger_rotary_pos_emb))  # fmt: skip
        parameters = [[], []]
    else:
        config = llama.LlamaConfig(hidden_size=64, intermediate_size=128)
        norm, inputs = layer == "norm", [torch.randn(2, 5, 64, device=device)]
        ours = (llama.LlamaRMSNorm(64) if norm else llama.LlamaMLP(config)).to(device)
        theirs = (LigerRMSNorm(64) if norm else LigerSwiGLUMLP(config)).to(device)
        weights = {name: torch.randn_like(tensor) for name, tensor in ours.state_dict().items()}
        for one in (ours, theirs):
            one.load_state_dict(weights)
        parameters = [list(one.parameters()) for one in (ours, theirs)]
    found = []
    for one, own in zip((ours, theirs), parameters, strict=True):
        given = [tensor.clone().requires_grad_() for tensor in inputs]
        results = one(*given)
        results = list(results) if isinstance(results, tuple) else [results]
        torch.autograd.backward(results, [torch.linspace(-1, 1, r.numel(), device=device).view_as(r) for r in results])
        found.append([*results, *(leaf.grad for leaf in (*given, *own))])
    for one, other in zip(*found, strict=True):
        assert close(one, other, 1e-5 if device == "cpu" else 1e-2)
