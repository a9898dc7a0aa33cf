"""The only flags with which packed documents do not see each other; see methods/sft.py."""

import json

import pytest
from tiny import TEMPLATE, conversation, losses_of, tokenised, train_here, train_task, write_mix


@pytest.fixture(scope="module")
def documents(tokenizer):
    return [tokenised(tokenizer, conversation(number)) for number in range(0, 160, 7)]


def mix(folder, groups):
    """One row a group of documents."""
    folder.mkdir()
    packed = [
        {
            "input_ids": [token for ids, _ in group for token in ids],
            "labels": [label for _, labels in group for label in labels],
            "seq_lengths": [len(ids) for ids, _ in group],
        }
        for group in groups
    ]
    return write_mix(folder, packed, packing=True)


def test_packed_loss_equals_the_loss_of_the_same_documents_unpacked(tmp_path, model_manifest, documents, template):
    whole = documents[: len(documents) // 2 * 2]
    packed = mix(tmp_path / "packed", [whole[i : i + 2] for i in range(0, len(whole), 2)])
    unpacked = [{"input_ids": ids, "labels": labels} for ids, labels in whole]
    (tmp_path / "unpacked").mkdir()
    single = write_mix(tmp_path / "unpacked", unpacked, packing=False)
    length = {"training__max_steps": 1, "training__per_device_train_batch_size": 1, "checkpointing__save_steps": 1}
    rows = len(whole) // 2
    one = train_task(tmp_path / "a", model_manifest, packed, template, training__effective_batch_size=rows, **length)
    settings = {"training__effective_batch_size": 2 * rows, "sft__packing": False} | length
    two = train_task(tmp_path / "b", model_manifest, single, template, **settings)
    train_here(one)
    train_here(two)
    assert losses_of(tmp_path / "a") == pytest.approx(losses_of(tmp_path / "b"), abs=1e-5)


def test_our_rows_train_like_trls_own_preparation(tmp_path, model_manifest, template):
    """TRL tokenises, masks and packs the same conversations; its rows go through our path to the same losses."""
    from datasets import Dataset
    from tiny import view_of
    from transformers import AutoTokenizer
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    from post_training.models import folder
    from post_training.training.run import load_model

    conversations = Dataset.from_list([{"messages": conversation(number)} for number in range(0, 300, 7)])
    tokenizer = AutoTokenizer.from_pretrained(folder(model_manifest))
    tokenizer.chat_template = TEMPLATE
    args = SFTConfig(
        output_dir=str(tmp_path / "trl"), max_length=64, packing=True, assistant_only_loss=True, max_steps=3,
        per_device_train_batch_size=2, gradient_accumulation_steps=2, learning_rate=1e-3, warmup_steps=0.03,
        lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs={"min_lr_rate": 0.1}, logging_steps=1, bf16=False,
        activation_checkpointing=False, gradient_checkpointing=False, use_cpu=True, save_strategy="no", report_to="none",
        train_sampling_strategy="sequential", disable_tqdm=True,
    )  # fmt: skip
    model = load_model(folder(model_manifest), view_of(template))
    trainer = SFTTrainer(model=model, args=args, train_dataset=conversations, processing_class=tokenizer)
    prepared = trainer.train_dataset.to_list()
    trainer.train()
    expected = [line["loss"] for line in trainer.state.log_history if "loss" in line]

    columns = ("input_ids", "labels", "seq_lengths")
    (tmp_path / "rows").mkdir()
    rows = write_mix(tmp_path / "rows", [{name: row[name] for name in columns} for row in prepared], packing=True)
    assert any(len(row["seq_lengths"]) > 1 for row in prepared)
    ours = train_task(tmp_path / "ours", model_manifest, rows, template, training__max_steps=3)
    train_here(ours)
    assert losses_of(tmp_path / "ours") == pytest.approx(expected, rel=1e-6)


def test_labels_and_tokens_of_the_manifest_are_those_of_the_rows(trained, sft_rows):
    manifest = json.loads(trained.read_text())
    assert 0 < manifest["trained_tokens"] < manifest["tokens"] <= 6 * 4 * 64
