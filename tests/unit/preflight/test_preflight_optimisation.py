"""Checks of batch, length, warm-up, learning rate, beta and schedule."""

import pytest

from post_training.preflight import optimisation


def test_published_recipes_are_silent(subject_of, verdicts):
    for method, changes in (
        ("sft", {}),
        ("sft", {"training__learning_rate": 3e-4}),  # SmolLM2 1.7B
        ("sft", {"training__lr_scheduler_type": "linear"}),
        ("sft", {"training__lr_scheduler_type": "constant_with_warmup"}),
        ("sft", {"model__lora": {}, "training__learning_rate": 2e-4}),
        ("dpo", {"training__learning_rate": 5e-7}),
        ("dpo", {"training__learning_rate": 8e-8, "dpo__loss_type": "sigmoid_norm", "dpo__beta": 5.0}),  # OLMo 3 Think
        ("kto", {"training__per_device_train_batch_size": 2}),
    ):
        found = optimisation.checks(subject_of(method, **changes))
        assert set(verdicts(found).values()) == {"ok"}, [check.line() for check in found]


@pytest.mark.parametrize(
    "name,method,changes,verdict,said",
    [
        (
            "batch",
            "sft",
            {"training__effective_batch_size": 30},
            "failure",
            "30 sequences do not divide over 1 node x 8 GPUs",
        ),
        ("epochs", "sft", {"training__effective_batch_size": 800}, "warning", "0.5 steps per epoch"),
        ("epochs", "sft", {"training__num_train_epochs": 40}, "warning", "40.00 epochs"),
        ("warmup", "sft", {"training__warmup_ratio": 0.0}, "warning", "0 of 25 steps"),
        ("warmup", "sft", {"training__warmup_ratio": 0.7}, "warning", "18 of 25 steps"),
        ("learning_rate", "sft", {"training__learning_rate": 5e-3}, "warning", "0.005 for sft"),
        ("learning_rate", "sft", {"training__learning_rate": 2.0}, "failure", "2 for sft"),
        ("learning_rate", "dpo", {"training__learning_rate": 1e-4}, "warning", "0.0001 for dpo"),
        ("learning_rate", "dpo", {"training__learning_rate": 1e-12}, "failure", "1e-12 for dpo"),
        ("beta", "dpo", {"dpo__beta": 5.0, "dpo__allow_implausible": True}, "warning", "5 with loss sigmoid"),
        ("beta", "kto", {"kto__beta": 4.0, "training__per_device_train_batch_size": 2}, "warning", "4 with loss kto"),
        ("schedule", "sft", {"training__lr_scheduler_kwargs": {"num_decay": 1}}, "failure", "num_decay"),
        (
            "schedule",
            "sft",
            {
                "training__lr_scheduler_type": "warmup_stable_decay",
                "training__lr_scheduler_kwargs": {"num_stable_steps": 2, "num_decay_steps": 4},
            },
            "warning",
            "ends at 0% of the peak",
        ),
    ],
)
def test_fires(subject_of, name, method, changes, verdict, said):
    found = {check.name: check for check in optimisation.checks(subject_of(method, **changes))}
    check = found[f"optimisation.{name}"]
    assert (check.verdict, bool(check.remedy or name in ("batch",))) == (verdict, True), check
    assert said in check.value


def test_small_models_take_higher_rates(subject_of, verdicts):
    tiny = {"parameters": 400_000}
    sft = optimisation.checks(subject_of(shape=tiny, training__learning_rate=4e-3))
    assert verdicts(sft)["optimisation.learning_rate"] == "ok"
    dpo = optimisation.checks(subject_of("dpo", shape=tiny, training__learning_rate=3e-4))
    assert verdicts(dpo)["optimisation.learning_rate"] == "ok"


def test_warmup_is_counted_as_transformers_does(subject_of):
    from transformers import TrainingArguments

    for ratio in (0.0, 0.001, 0.03, 0.1, 0.333):
        args = TrainingArguments(output_dir="x", warmup_steps=ratio, use_cpu=True)
        assert optimisation.warmup_steps(subject_of(training__warmup_ratio=ratio)) == args.get_warmup_steps(25)
