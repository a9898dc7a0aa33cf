"""Without padding every loss and metric of TRL has the value and the gradient that it has with padding."""

import numpy as np
import pytest
import torch
from tiny import view_of

from post_training import methods
from post_training.data import collate
from post_training.methods.dpo import losses

LOSSES = {
    **{name: {"loss_type": [name]} for name in losses.LOSSES if name not in losses.SMOOTHED},
    **{name: {"loss_type": [name], "label_smoothing": 0.1} for name in losses.SMOOTHED},
    "several": {"loss_type": ["sigmoid", "sft", "ipo"], "loss_weights": [1.0, 0.2, 0.5]},
    "length-desensitised": {"loss_type": ["sigmoid"], "ld_alpha": 0.5},
    "weighted": {"loss_type": ["sigmoid"], "use_weighting": True},
    "divergence": {"loss_type": ["sigmoid"], "f_divergence_type": "js_divergence"},
}


def sequence(random, shortest=1, longest=12):
    return random.integers(5, 200, random.integers(shortest, longest)).astype(np.int32)


@pytest.fixture(scope="module")
def pairs():
    random = np.random.default_rng(0)
    return [
        {name: sequence(random) for name in ("prompt_ids", "chosen_ids", "rejected_ids")}
        | {f"ref_{side}_logps": -np.float64(random.uniform(5, 60)) for side in ("chosen", "rejected")}
        for _ in range(4)
    ]


@pytest.fixture(scope="module")
def model_of():
    """A new model with the same random weights: with TRL's output layer by a trainer of it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from post_training.models import attention

    def make(seed=0):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=256, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, pad_token_id=0, eos_token_id=1, attn_implementation=attention.register(),
        )  # fmt: skip
        return LlamaForCausalLM(config)

    return make


def trainer_on(rows, method, template, tokenizer, folder, view=None, args=None, **kwargs):
    module = methods.load(method)
    view = view_of(template, method, **(view or {}))
    made = methods.config_class(method)(
        output_dir=str(folder), max_steps=1, bf16=False, use_cpu=True, report_to=[], per_device_train_batch_size=len(rows),
        activation_checkpointing=False, gradient_checkpointing=False, remove_unused_columns=False,
        **{**module.training_arguments(view), **(args or {})},
    )  # fmt: skip
    if method == "dpo":
        made.precompute_ref_log_probs = kwargs.get("ref_model") is None

    class Rows(list):
        def distinct(self):
            return self

    return methods.trainer_class(method)(view, Rows(rows), args=made, processing_class=tokenizer, **kwargs)


def found(trainer, inputs, num_items=None):
    """Loss, gradient and metrics of a micro-batch."""
    trainer.model.train()
    trainer.model.zero_grad()
    trainer._metrics["train"].clear()
    trainer._total_train_tokens = 0
    loss = trainer.compute_loss(trainer.model, dict(inputs), num_items_in_batch=num_items)
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])
    return loss.item(), gradient, {name: values[-1] for name, values in trainer._metrics["train"].items()}


def assert_equal_without_padding(make, rows, num_items=None):
    """`make(padding_free=...)`: a trainer."""
    both = []
    for padding_free in (False, True):
        trainer = make(padding_free=padding_free)
        trainer.state.global_step = 1  # the reference is made up
        both.append(found(trainer, trainer.data_collator(rows), num_items))
    expected, (loss, gradient, metrics) = both
    # Which TRL counts itself, by what stands in for a mask.
    assert metrics.pop("num_tokens") <= expected[2].pop("num_tokens")
    assert loss == pytest.approx(expected[0], rel=1e-5, abs=1e-6)
    assert (gradient - expected[1]).norm() <= 1e-5 * expected[1].norm()
    assert metrics == pytest.approx(expected[2], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_dpo(tmp_path, model_of, tokenizer, template, pairs, name):
    def make(**kwargs):
        return trainer_on(pairs, "dpo", template, tokenizer, tmp_path, args=LOSSES[name], model=model_of(), **kwargs)

    assert_equal_without_padding(make, pairs)


def test_dpo_with_a_second_model_and_stored_values(tmp_path, model_of, tokenizer, template, pairs):
    rows, stored = [{k: v for k, v in pair.items() if k.endswith("ids")} for pair in pairs], []

    def make(**kwargs):
        trainer = trainer_on(
            pairs, "dpo", template, tokenizer, tmp_path, model=model_of(), ref_model=model_of(1),
            view={"dpo__reference": "online"}, **kwargs,
        )  # fmt: skip
        stored.append(trainer.compute_ref_log_probs(trainer.ref_model, trainer.data_collator(rows)))
        return trainer

    assert_equal_without_padding(make, rows)
    for one, other in zip(*stored, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)


def test_lora(tmp_path, model_of, tokenizer, template, pairs):
    from peft import LoraConfig

    def make(**kwargs):
        torch.manual_seed(1)
        config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
        kwargs |= {"model": model_of(), "peft_config": config}
        return trainer_on(pairs, "dpo", template, tokenizer, tmp_path, **kwargs)

    assert_equal_without_padding(make, pairs)


@pytest.mark.parametrize("loss", ["kto", "apo_zero_unpaired"])
def test_kto(tmp_path, model_of, tokenizer, template, loss):
    random = np.random.default_rng(1)
    rows = [
        {"prompt_ids": sequence(random), "completion_ids": sequence(random), "label": np.array([number % 2])}
        for number in range(5)
    ]

    def make(**kwargs):
        kwargs |= {"view": {"kto__loss_type": loss}, "model": model_of(), "ref_model": model_of(1)}
        return trainer_on(rows, "kto", template, tokenizer, tmp_path, **kwargs)

    assert_equal_without_padding(make, rows)


@pytest.mark.parametrize("loss", ["nll", "dft"])
@pytest.mark.parametrize("packed", [False, True])
def test_sft(tmp_path, model_of, tokenizer, template, packed, loss):
    random = np.random.default_rng(2)
    rows = []
    for _ in range(3):
        ids = sequence(random, 6, 20)
        labels = np.where(random.random(len(ids)) < 0.5, ids, -100).astype(np.int32)
        rows.append(
            {"input_ids": ids, "labels": labels, **({"seq_lengths": np.array([4, len(ids) - 4])} if packed else {})}
        )

    def make(**kwargs):
        kwargs |= {"view": {"sft__packing": packed}, "args": {"loss_type": loss}, "model": model_of()}
        return trainer_on(rows, "sft", template, tokenizer, tmp_path, **kwargs)

    assert type(make().data_collator) is (collate.PackedCollator if packed else collate.PaddedCollator)
    assert_equal_without_padding(make, rows, num_items=torch.tensor(40))


def test_nothing_to_train_on_has_no_gradient(tmp_path, model_of, tokenizer, template):
    rows = [{"input_ids": np.arange(5, 9, dtype=np.int32), "labels": np.full(4, -100, np.int32)}]
    kwargs = {"view": {"sft__packing": False}, "model": model_of(), "padding_free": True}
    trainer = trainer_on(rows, "sft", template, tokenizer, tmp_path, **kwargs)
    loss, gradient, _ = found(trainer, trainer.data_collator(rows))
    assert loss == 0 and not gradient.any()


def test_layout_of_prompts_and_answers():
    sequences = [([1, 2], [3]), ([4], [5, 6]), ([], [7, 8])]
    sequences = [tuple(np.array(ids, dtype=np.int32) for ids in pair) for pair in sequences]
    (made,) = collate.answers([sequences])
    layout = made["layout"]
    inputs = {name: value.tolist() for name, value in layout["inputs"].items() if isinstance(value, torch.Tensor)}
    assert inputs == {
        "input_ids": [[1, 2, 3, 4, 5, 6, 7, 8]],
        "position_ids": [[0, 1, 2, 0, 1, 2, 0, 1]],
        "seq_idx": [[0, 0, 0, 1, 1, 1, 2, 2]],
        "cu_seq_lens_q": [0, 3, 6, 8],
        "cu_seq_lens_k": [0, 3, 6, 8],
    }
    assert layout["inputs"]["max_length_q"] == layout["inputs"]["max_length_k"] == 3
    assert (layout["before"].tolist(), layout["targets"].tolist()) == ([1, 3, 4, 6], [[3, 5, 6, 8]])
    assert made["completion_mask"].tolist() == [[0, 1, 0], [0, 1, 1], [1, 1, 0]]
    assert layout["places"].tolist() == [0, 2, 3, 4]


def test_a_step_laid_out_at_once_is_its_micro_batches_each_by_itself():
    random = np.random.default_rng(0)
    draw = lambda shortest: random.integers(5, 99, random.integers(shortest, 9)).astype(np.int32)  # noqa: E731
    columns = {"prompt_ids": 0, "chosen_ids": 1, "rejected_ids": 1}
    rows = [{**{name: draw(n) for name, n in columns.items()}, "ref_chosen_logps": n / 7} for n in range(40)]
    parts, left = [], list(rows)
    while left:
        size = int(random.integers(1, 6))
        parts, left = [*parts, left[:size]], left[size:]
    collator = collate.PairsCollator()
    for batch, part in zip(collate.collate_step(collator, parts), parts, strict=True):
        torch.testing.assert_close(batch, collator(part), rtol=0, atol=0)


def test_layers_see_real_tokens_and_the_output_layer_those_before_answers(
    tmp_path, model_of, tokenizer, template, pairs, monkeypatch
):
    from trl.trainer import utils

    trainer = trainer_on(pairs, "dpo", template, tokenizer, tmp_path, model=model_of(), padding_free=True)
    trainer.state.global_step = 1  # the reference is made up
    inputs, layers, head = trainer.data_collator(pairs), [], []
    trainer.model.model.layers[0].register_forward_pre_hook(lambda _, arguments: layers.append(arguments[0].shape[:2]))
    original = utils._ChunkedLogProbFunction.apply
    fused = lambda hidden, *rest: head.append(len(hidden)) or original(hidden, *rest)  # noqa: E731
    monkeypatch.setattr(utils, "_ChunkedLogProbFunction", type("Fused", (), {"apply": staticmethod(fused)}))
    trainer.compute_loss(trainer.model, dict(inputs))
    tokens = sum(2 * len(pair["prompt_ids"]) + len(pair["chosen_ids"]) + len(pair["rejected_ids"]) for pair in pairs)
    assert (layers, head) == ([(1, tokens)], [int(inputs["completion_mask"].sum())])
