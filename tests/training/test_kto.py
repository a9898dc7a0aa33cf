"""Our KTO rows against TRL's own preparation of the same conversations, through whole training runs."""

import pytest
from tiny import TEMPLATE, conversation, losses_of, metrics_of, train_here, train_task, view_of, write_mix


@pytest.fixture(scope="module")
def judged():
    """Sums with a right or a wrong answer, in an order without a pattern."""
    rows = []
    for number in range(24):
        question, answer = conversation(7 * number)
        right = number % 5 in (0, 3)
        said = answer["content"] if right else str(int(answer["content"]) + number)
        rows.append({"prompt": [question], "completion": [{"role": "assistant", "content": said}], "label": right})
    return rows


def stock(folder, model_manifest, rows, template, **arguments):
    """TRL's trainer on the text; returns it trained, with the rows as it prepared them."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl.trainer.kto_config import KTOConfig
    from trl.trainer.kto_trainer import KTOTrainer

    from post_training.models import folder as model_folder
    from post_training.training.run import load_model

    tokenizer = AutoTokenizer.from_pretrained(model_folder(model_manifest))
    tokenizer.chat_template = TEMPLATE
    args = KTOConfig(
        output_dir=str(folder), max_length=64, max_steps=6, per_device_train_batch_size=2,
        gradient_accumulation_steps=2, learning_rate=1e-2, warmup_steps=0.03, lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1}, logging_steps=1, bf16=False, activation_checkpointing=False,
        gradient_checkpointing=False, use_cpu=True, save_strategy="no", report_to="none", disable_tqdm=True, **arguments,
    )  # fmt: skip
    model = load_model(model_folder(model_manifest), view_of(template))
    trainer = KTOTrainer(model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    prepared = trainer.train_dataset.to_list()
    trainer.train()
    return trainer, prepared


@pytest.mark.parametrize("loss", ["kto", "apo_zero_unpaired"])
def test_the_same_losses_as_trls_own_trainer(tmp_path, model_manifest, template, judged, loss):
    weights = {"beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.8}
    trainer, prepared = stock(tmp_path / "trl", model_manifest, judged, template, loss_type=loss, **weights)
    expected = [line for line in trainer.state.log_history if "loss" in line]

    columns = ("prompt_ids", "completion_ids")
    rows = [{name: row[name] for name in columns} | {"label": [int(row["label"])]} for row in prepared]
    (tmp_path / "rows").mkdir()
    mix = write_mix(tmp_path / "rows", rows, packing=False)
    own = {f"kto__{name}": value for name, value in weights.items()}
    task = train_task(
        tmp_path / "ours",
        model_manifest,
        mix,
        template,
        "kto",
        training__learning_rate=1e-2,
        kto__loss_type=loss,
        **own,
    )
    train_here(task)
    assert losses_of(tmp_path / "ours") == pytest.approx([line["loss"] for line in expected], rel=1e-6)
    ours = metrics_of(tmp_path / "ours")
    # TRL's means over micro-batches; those of `kto` alone hold the rows that TRL's hold.
    for name in ("kl", "rewards/chosen", "rewards/rejected", "logps/chosen") if loss == "kto" else ():
        values = [[line.get(name, 0.0) for line in lines] for lines in (ours, expected)]
        assert values[0] == pytest.approx(values[1], rel=1e-5, abs=1e-6), name
    assert any(line["kl"] > 0 for line in ours) == (loss == "kto")


def test_a_tokenizer_without_padding_token(tmp_path, model_manifest, template, judged):
    """As many base models have it: TRL pads with the end token."""
    from transformers import AutoTokenizer

    from post_training import methods
    from post_training.config import batch
    from post_training.config.batch import Topology
    from post_training.data.view import open_rows
    from post_training.models import folder
    from post_training.training.arguments import trainer_arguments
    from post_training.training.run import load_model

    rows = [{"prompt_ids": [5] * n, "completion_ids": [7], "label": [n % 2]} for n in range(1, 9)]
    mix = write_mix(tmp_path, rows, packing=False)
    view = view_of(template, "kto")
    plan = batch.batch_plan(view, "kto", Topology(1, 1, "CPU"))
    args = methods.config_class("kto")(**trainer_arguments(view, "kto", tmp_path, plan, 2))
    tokenizer = AutoTokenizer.from_pretrained(folder(model_manifest))
    end, tokenizer.pad_token = tokenizer.eos_token_id, None
    model = load_model(folder(model_manifest), view)
    trainer = methods.trainer_class("kto")(view, open_rows(mix), model=model, args=args, processing_class=tokenizer)
    batch_of_two = trainer.data_collator([trainer.train_dataset[0], trainer.train_dataset[1]])
    assert batch_of_two["input_ids"].tolist() == [[5, 7, end], [5, 5, 7]]
    assert batch_of_two["KL_input_ids"].tolist() == [[5, 7, end], [5, 5, 7]]
    assert batch_of_two["label"].tolist() == [True, False]
