"""Reward models against TRL's own padded trainer, and what becomes of them."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_padding_free import found
from tiny import TEMPLATE, export_task, losses_of, metrics_of, train_here, train_task, view_of, write_mix

from post_training import methods
from post_training.core import manifest
from post_training.data.view import open_rows
from post_training.models import folder as model_folder

ARGUMENTS = {
    "bf16": False, "use_cpu": True, "report_to": "none", "activation_checkpointing": False, "gradient_checkpointing": False,
    "save_strategy": "no", "disable_tqdm": True, "max_length": 64, "logging_steps": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """24 pairs of very different lengths; some answers end with the padding token, some prompts are empty."""
    random = np.random.default_rng(0)
    ids = lambda low, high: random.integers(5, 200, int(random.integers(low, high))).tolist()  # noqa: E731
    rows = [{"prompt_ids": ids(0, 9), "chosen_ids": ids(1, 20), "rejected_ids": ids(1, 20)} for _ in range(24)]
    for row in rows[::5]:
        row["chosen_ids"] += [0, 0]
    return rows, write_mix(tmp_path_factory.mktemp("pairs"), rows, packing=False)


def whole(rows):
    """As TRL has them: the prompt before either answer."""
    answers = [
        {f"{side}_ids": row["prompt_ids"] + row[f"{side}_ids"] for side in ("chosen", "rejected")} for row in rows
    ]
    return [
        made | {name: row[name] for name in row if name == "margin"} for made, row in zip(answers, rows, strict=True)
    ]


def stock(folder, model, rows, tokenizer, **arguments):
    from datasets import Dataset
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.reward_trainer import RewardTrainer

    args = RewardConfig(output_dir=str(folder), **ARGUMENTS, **arguments)
    return RewardTrainer(model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)


@pytest.mark.parametrize(("center", "margins"), [(None, False), (0.1, True)])
def test_losses_and_gradient_of_trls_trainer(
    tmp_path, model_manifest, template, tokenizer, pairs, center, margins, monkeypatch
):
    from post_training.training import held_out
    from post_training.training.run import load_model

    rows, mix = pairs
    if margins:
        given = [[], [0.0], [-1.25], [0.1], [3.0]]
        bits = [np.array(given[n % 5], dtype=np.float32).view(np.int32).tolist() for n in range(len(rows))]
        mix = write_mix(tmp_path, [{**row, "margin": one} for row, one in zip(rows, bits, strict=True)], packing=False)
        rows = [{**row, "margin": sum(given[n % 5])} for n, row in enumerate(rows)]
    view = view_of(template, "reward", reward__center_rewards_coefficient=center)
    folder = model_folder(model_manifest)
    arguments = {"max_steps": 1, "per_device_train_batch_size": 6, "center_rewards_coefficient": center}
    theirs = stock(tmp_path, load_model(folder, view), whole(rows), tokenizer, **arguments)
    expected = found(theirs, theirs.data_collator(whole(rows[:6])))
    args = methods.config_class("reward")(
        output_dir=str(tmp_path), remove_unused_columns=False, **ARGUMENTS, **arguments
    )
    for padding_free in (False, True):
        kwargs = {"args": args, "model": load_model(folder, view), "processing_class": tokenizer}
        ours = methods.trainer_class("reward")(view, open_rows(mix), padding_free=padding_free, **kwargs)
        batch = ours.data_collator([open_rows(mix)[number] for number in range(6)])
        assert ("layout" in batch) == padding_free
        loss, gradient, metrics = found(ours, batch)
        assert loss == pytest.approx(expected[0], rel=1e-5)
        assert (gradient - expected[1]).norm() <= 1e-5 * expected[1].norm()
        metrics.pop("num_tokens")
        assert metrics == pytest.approx({name: expected[2][name] for name in metrics}, rel=1e-4, abs=1e-6)
    monkeypatch.setattr(held_out, "open_rows", lambda path, part: open_rows(path))
    view["evaluation"] |= {"during_training_steps": 1, "max_samples": len(rows)}
    measured = held_out.HeldOut(ours, view, mix, tmp_path, {}).measure()
    theirs.center_rewards_coefficient = theirs.args.center_rewards_coefficient = None  # no part of a held-out loss
    loss, _, metrics = found(theirs, theirs.data_collator(whole(rows)))
    assert measured["eval_loss"] == pytest.approx(loss, rel=1e-5)
    assert measured["eval_margin"] == pytest.approx(metrics["margin"], rel=1e-4, abs=1e-6)


def test_a_run_is_trls_and_resumes_as_it_was_and_ranks_what_it_is_given(
    tmp_path, model_manifest, template, tokenizer, pairs
):
    rows, mix = pairs
    task = train_task(
        tmp_path / "run", model_manifest, mix, template, "reward", training__learning_rate=1e-2,
        training__trainer_args={"adam_epsilon": 1e-4}, reward__center_rewards_coefficient=0.01,
    )  # fmt: skip
    train_here(task)
    theirs = stock(
        tmp_path / "trl", str(model_folder(model_manifest)), whole(rows), tokenizer, max_steps=6, seed=42,
        per_device_train_batch_size=2, gradient_accumulation_steps=2, learning_rate=1e-2, warmup_steps=0.03,
        lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs={"min_lr_rate": 0.1}, adam_epsilon=1e-4,
        center_rewards_coefficient=0.01, train_sampling_strategy="sequential",
    )  # fmt: skip
    theirs.train()
    expected = [line for line in theirs.state.log_history if "loss" in line]
    lines = metrics_of(task.directory)
    for name in ("loss", "accuracy", "margin", "mean_reward"):
        values = [[line[name] for line in one] for one in (lines, expected)]
        assert values[0] == pytest.approx(values[1], rel=1e-4, abs=1e-6), name
    assert all(line["padding_share"] == 0 for line in lines)

    last = task.directory / "checkpoints/checkpoint-6"
    weights, losses = (last / "model.safetensors").read_bytes(), losses_of(task.directory)
    shutil.rmtree(last)
    task.output.unlink()
    train_here(task)
    assert (last / "model.safetensors").read_bytes() == weights and losses_of(task.directory) == losses

    _check_export(tmp_path, task, mix, rows, tokenizer)


def _check_export(tmp_path, task, mix, rows, tokenizer):
    from transformers import AutoModelForSequenceClassification

    from post_training.core.errors import UserError
    from post_training.evaluation.reward_model import Scorer
    from post_training.models.loading import load_for_inference
    from post_training.release import export, serving

    output = task.directory / "model" / "manifest.json"
    export.run(export_task(task.output, mix, output))
    checks = manifest.read(output)["checks"]
    assert checks["tensors"] > 0 and checks["max_padding_difference"] < 1e-5
    folder = output.parent
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    trained = load_file(task.directory / "checkpoints/checkpoint-6/model.safetensors")
    assert torch.equal(model.score.weight, trained["score.weight"]) and model.config.num_labels == 1
    card = (folder / "README.md").read_text()
    assert "AutoModelForSequenceClassification" in card and "text-classification" in card and "vllm serve" not in card

    loaded = load_for_inference(folder)
    assert type(loaded) is type(model)
    # Its scores are those of TRL's forward pass, whatever is in a batch.
    scorer = Scorer(loaded, tokenizer, TEMPLATE, 5)
    sequences = [row[f"{side}_ids"] for row in whole(rows) for side in ("chosen", "rejected")]
    alone = [model.eval()(input_ids=torch.tensor([ids])).logits.item() for ids in sequences]
    assert scorer._scores(sequences) == pytest.approx(alone, abs=1e-5)
    assert not serving.reward_problems(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "pad_token_id": None}))
    assert any("pad_token_id is missing" in line for line in serving.reward_problems(folder))
    config["id2label"]["1"] = "LABEL_1"
    (folder / "config.json").write_text(json.dumps(config))
    assert any("expected one output" in line for line in serving.reward_problems(folder))
    (task.directory / "checkpoints/checkpoint-6/model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="is incomplete"):
        export.run(export_task(task.output, mix, output))
