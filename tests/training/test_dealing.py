"""The step decides: how its rows are dealt to ranks and micro-batches changes nothing but rounding."""

import shutil
from itertools import chain

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import losses_of, metrics_of, train_here, train_task, write_mix

from post_training.launch import launcher
from post_training.training.step_samples import read_samples

STEPS = 12
CASES = {
    "sft": ("sft", {"sft__packing": False}),
    "packed sft": ("sft", {}),
    "dpo": ("dpo", {}),
    "several dpo losses": (
        "dpo",
        {"dpo__loss_type": ["sigmoid", "sft", "ipo"], "dpo__loss_weights": [1.0, 0.2, 0.1], "dpo__beta": 0.5},
    ),
    "reward": ("reward", {"reward__center_rewards_coefficient": 0.05}),
    "kto": ("kto", {"kto__loss_type": "apo_zero_unpaired"}),
}


@pytest.fixture(scope="module")
def rows_of(tmp_path_factory):
    """Rows of very different lengths, written once a shape."""
    made = {}

    def make(name):
        if name not in made:
            random = np.random.default_rng(0)
            ids = lambda: random.integers(5, 200, int(random.choice([1, 2, 4, 9, 18]))).tolist()  # noqa: E731
            if name == "dpo":
                rows = [{key: ids() for key in ("prompt_ids", "chosen_ids", "rejected_ids")} for _ in range(8 * STEPS)]
            elif name == "kto":
                rows = [{"prompt_ids": ids(), "completion_ids": ids(), "label": [n % 2]} for n in range(8 * STEPS)]
            else:
                parts = [[ids() for _ in range(3 if name == "packed" else 2)] for _ in range(8 * STEPS)]
                rows = [
                    {"input_ids": [*chain(*part)], "labels": [-100] * len(part[0]) + [*chain(*part[1:])]}
                    for part in parts
                ]
                if name == "packed":
                    rows = [
                        row | {"seq_lengths": [len(p) for p in part]} for row, part in zip(rows, parts, strict=True)
                    ]
            made[name] = write_mix(tmp_path_factory.mktemp("rows"), rows, packing=name == "packed")
        return made[name]

    return make


@pytest.fixture
def train(tmp_path, model_manifest, template, rows_of):
    def run(case, per_device, ranks=1, **changes):
        method, settings = CASES[case]
        settings = {
            "training__max_steps": STEPS,
            "training__effective_batch_size": 8,
            "training__per_device_train_batch_size": per_device,
            "training__learning_rate": 1e-3,
            "training__trainer_args": {"adam_epsilon": 1e-4},  # or a gradient of nothing but rounding is a whole step
            "checkpointing__save_steps": STEPS,
            "accelerate__num_processes": ranks,
            **settings,
            **changes,
        }
        rows = rows_of("packed" if case == "packed sft" else {"reward": "dpo"}.get(method, method))
        task = train_task(
            tmp_path / f"{ranks}-{per_device}-{len(changes)}", model_manifest, rows, template, method, **settings
        )
        if ranks == 1:
            train_here(task)
        else:
            assert launcher.run(task) == 0
        return task.directory

    return run


def assert_same(one, other):
    weights = [load_file(run / f"checkpoints/checkpoint-{STEPS}" / "model.safetensors") for run in (one, other)]
    expected, found = (torch.cat([tensor.flatten() for _, tensor in sorted(part.items())]) for part in weights)
    assert (found - expected).norm() <= 1e-5 * expected.norm()
    assert losses_of(other) == pytest.approx(losses_of(one), rel=1e-4, abs=1e-5)
    assert read_samples(one / "logs" / "samples.jsonl") == read_samples(other / "logs" / "samples.jsonl")


@pytest.mark.parametrize("case", CASES)
def test_any_micro_batch_gives_the_same_weights(train, case):
    one = train(case, per_device=1)
    assert_same(one, train(case, per_device=4))
    assert {line["padding_share"] for line in metrics_of(one)} == {0.0}


def test_padded_pairs_are_with_pairs_of_like_length(train):
    one = train("dpo", per_device=4, model__attn_implementation="sdpa")
    assert_same(one, train("dpo", per_device=4))
    padded = [line["padding_share"] for line in metrics_of(one)]
    assert 0 < sum(padded) / STEPS < 0.45


COMPILER = pytest.mark.skipif(
    not (shutil.which("g++") and shutil.which("ninja")), reason="DeepSpeed compiles with g++ and ninja"
)


@pytest.fixture(scope="module")
def alone():
    """The run on one rank, trained by the first test that asks for it."""
    return {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "strategy"),
    [
        ("several dpo losses", "ddp"),
        pytest.param("several dpo losses", "zero3", marks=COMPILER),
        pytest.param("reward", "zero3", marks=COMPILER),
    ],
)
def test_two_ranks_with_pairs_of_any_length_train_like_one(train, alone, case, strategy):
    one = alone[case] = alone.get(case) or train(case, per_device=1)
    deepspeed = {} if strategy == "ddp" else {"deepspeed__config_path": strategy}
    # All of its share at once, as the machine's memory allows, or two at a time.
    two = train(case, per_device="auto" if strategy == "ddp" else 2, ranks=2, **deepspeed)
    names = {
        "several dpo losses": [
            "rewards/chosen",
            "rewards/margins",
            "rewards/accuracies",
            "logps/rejected",
            "grad_norm",
        ],
        "reward": ["accuracy", "margin", "mean_reward", "grad_norm"],
    }[case]
    assert_same(one, two)
    for first, second in zip(metrics_of(one), metrics_of(two), strict=True):
        for name in names:
            assert second[name] == pytest.approx(first[name], rel=1e-3, abs=1e-4)
        assert first["rank_imbalance"] == 1 <= second["rank_imbalance"] < 1.3
