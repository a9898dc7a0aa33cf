"""Our ids, labels and pairs against TRL's own preparation of the same rows, bit for bit."""

import itertools
import json
import random

import numpy as np
import orjson
import pytest
from tiny import lists_of
from tokenizers_of import KINDS, save

from post_training.data import loss_mask, registry
from post_training.data.tokens.blocks import Settings, Tokenization

CHATML = registry.chat_template_text("chatml")
WORDS = [
    "a",
    "The",
    "12",
    "\n",
    "\n\n",
    "  ",
    "\t",
    "é",
    "日本",
    "👍🏽",
    "👩‍👩‍👧",
    "e\u0301",
    "def f(x):",
    "\u2028",
    "\r\n",
    ".",
    "<|",
    "|>",
]
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"a": "int"}}}]


def text(rng, least=1):
    made = "".join(rng.choice(WORDS) for _ in range(rng.randint(least, 12)))
    return made if made.strip() else f"\n\n{made}x"


def prompt(rng):
    turns = [{"role": "system", "content": text(rng)}] if rng.random() < 0.3 else []
    for _ in range(rng.randint(0, 2)):
        turns += [{"role": "user", "content": text(rng)}, {"role": "assistant", "content": text(rng)}]
    return [*turns, {"role": "user", "content": text(rng)}]


def answer(rng):
    return [{"role": "assistant", "content": text(rng)}]


@pytest.fixture(scope="module")
def conversations():
    rng = random.Random(0)
    return [{"messages": prompt(rng) + answer(rng)} for _ in range(120)]


@pytest.fixture(scope="module")
def pairs():
    rng = random.Random(1)
    return [{"prompt": prompt(rng), "chosen": answer(rng), "rejected": answer(rng)} for _ in range(60)]


@pytest.fixture
def model_and_tokenizer(bpe_folder, monkeypatch):
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    tokenizer = AutoTokenizer.from_pretrained(bpe_folder)
    tokenizer.chat_template = CHATML
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)), tokenizer


def arguments(folder):
    return {"output_dir": str(folder), "bf16": False, "use_cpu": True, "report_to": "none"} | {
        "activation_checkpointing": False, "gradient_checkpointing": False, "disable_tqdm": True,
    }  # fmt: skip


def sft_trainer(folder, rows, model_and_tokenizer, **more):
    from datasets import Dataset
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    model, tokenizer = model_and_tokenizer
    args = SFTConfig(**arguments(folder), max_length=512, packing=True, **more)
    return SFTTrainer(model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)


def documents(rows):
    """(ids, labels) of each document of packed rows, in an order of their own."""
    found = []
    for row in rows:
        start = 0
        for size in row["seq_lengths"]:
            found.append((row["input_ids"][start : start + size], row["labels"][start : start + size]))
            start += size
        assert start == len(row["input_ids"])
    return sorted(found)


def test_conversations(stages, conversations, model_and_tokenizer, tmp_path):
    theirs = sft_trainer(tmp_path / "trl", conversations, model_and_tokenizer, assistant_only_loss=True).train_dataset
    ours = lists_of(stages.mix({"d": stages.tokens_of(conversations)}, max_seq_length=512))
    assert any(len(row["seq_lengths"]) > 1 for row in ours)
    assert documents(ours) == documents(theirs)
    assert len(ours) <= len(theirs)


def test_conversations_with_tools(stages, conversations, model_and_tokenizer, tmp_path):
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    turns = [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "5"}]
    rows = [
        {"messages": [*row["messages"][:-1], *turns, row["messages"][-1]], "tools": TOOLS} for row in conversations[:30]
    ]
    theirs = sft_trainer(tmp_path / "trl", rows, model_and_tokenizer, assistant_only_loss=True).train_dataset
    ours = lists_of(stages.mix({"d": stages.tokens_of(rows)}, max_seq_length=512))
    assert documents(ours) == documents(theirs)


def test_the_collator_masks_the_first_label_of_each_document(model_and_tokenizer, tmp_path):
    """Why the labels may be packed as tokenised: a document's first token has nothing to be predicted from."""
    rows = [{"input_ids": [5, 6, 7, 8, 9], "labels": [5, 6, 7, 8, 9], "seq_lengths": [2, 3]}] * 4
    skip = {"packing_strategy": "bfd", "dataset_kwargs": {"skip_prepare_dataset": True}, "assistant_only_loss": False}
    collated = sft_trainer(tmp_path, rows, model_and_tokenizer, **skip).data_collator(rows[:2])
    assert collated["labels"].tolist() == [[-100, 6, -100, 8, 9] * 2]
    assert collated["position_ids"].tolist() == [[0, 1, 0, 1, 2] * 2]
    assert "attention_mask" not in collated


def test_pairs(stages, pairs, model_and_tokenizer, tmp_path):
    from datasets import Dataset
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    model, tokenizer = model_and_tokenizer
    model.save_pretrained(tmp_path / "model")
    model.config._name_or_path = str(tmp_path / "model")
    args = DPOConfig(**arguments(tmp_path / "trl"), max_length=None)
    data = Dataset.from_list(pairs)
    theirs = DPOTrainer(model=model, args=args, train_dataset=data, processing_class=tokenizer).train_dataset
    ours = lists_of(
        stages.mix({"p": stages.tokens_of(pairs, shape="preference")}, shape="preference", max_seq_length=512)
    )
    columns = ["prompt_ids", "chosen_ids", "rejected_ids"]
    assert sorted(json.dumps([row[c] for c in columns]) for row in ours) == sorted(
        json.dumps([row[c] for c in columns]) for row in theirs
    )
    # Somewhere a token reaches over the end of the prompt, and the answer begins where the ids part.
    whole = [tokenizer.apply_chat_template(p["prompt"], add_generation_prompt=True, return_dict=True) for p in pairs]
    assert any(len(row["prompt_ids"]) < len(ids["input_ids"]) for row, ids in zip(theirs, whole, strict=True))


def test_judged_answers(stages, pairs, model_and_tokenizer, tmp_path):
    from datasets import Dataset
    from trl.trainer.kto_config import KTOConfig
    from trl.trainer.kto_trainer import KTOTrainer

    rows = [
        {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}
        for pair in pairs
        for side in ("chosen", "rejected")
    ]
    model, tokenizer = model_and_tokenizer
    model.save_pretrained(tmp_path / "model")
    model.config._name_or_path = str(tmp_path / "model")
    args = KTOConfig(**arguments(tmp_path / "trl"), max_length=None, per_device_train_batch_size=2)
    data = Dataset.from_list(rows)
    theirs = KTOTrainer(model=model, args=args, train_dataset=data, processing_class=tokenizer).train_dataset
    ours = lists_of(
        stages.mix(
            {"p": stages.tokens_of(rows, shape="unpaired", transform="unpaired_preference")},
            shape="unpaired",
            max_seq_length=512,
        )
    )
    found = sorted(
        json.dumps([list(row["prompt_ids"]), list(row["completion_ids"]), list(row["label"])]) for row in ours
    )
    assert found == sorted(
        json.dumps([row["prompt_ids"], row["completion_ids"], [int(row["label"])]]) for row in theirs
    )


def test_every_token_is_trained_on_where_asked(stages, conversations, model_and_tokenizer, tmp_path):
    theirs = sft_trainer(tmp_path / "trl", conversations, model_and_tokenizer, assistant_only_loss=False).train_dataset
    ours = lists_of(stages.mix({"d": stages.tokens_of(conversations, train_on="all")}, max_seq_length=512))
    assert documents(ours) == documents(theirs)


@pytest.mark.parametrize("name", registry.chat_template_names())
@pytest.mark.parametrize("kind", KINDS)
def test_every_template_with_every_kind_of_tokenizer(tmp_path_factory, conversations, pairs, kind, name):
    """What TRL's preparation calls for each row, on all templates: ids, masks, and pairs cut where their ids part."""
    from transformers import AutoTokenizer
    from trl.data_utils import common_prefix_length

    folder = save(kind, tmp_path_factory.mktemp(kind))
    template = registry.chat_template_text(name)
    theirs = AutoTokenizer.from_pretrained(folder)
    given = {"chat_template": template, "return_dict": True}
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": "é\n"}}}
    turns = [{"role": "assistant", "content": "x", "reasoning_content": "why", "tool_calls": [call]},
             {"role": "tool", "content": "5\n"}]  # fmt: skip
    rows = conversations[:25]
    if kind in ("wordpiece", "metaspace_words"):  # they drop blanks, at which Transformers gives up a row's masks
        rows = [{"messages": [{**m, "content": m["content"].strip()} for m in row["messages"]]} for row in rows]
    rows = rows + [{"messages": [*r["messages"][:-1], *turns, r["messages"][-1]], "tools": TOOLS} for r in rows[:5]]
    block = Tokenization(folder, Settings(template, "messages")).block(lines(rows))
    assert not block.dropped
    for row, tokens in zip(rows, columns_of(block, loss_mask.COLUMN), strict=True):
        expected = theirs.apply_chat_template(
            row["messages"], tools=row.get("tools"), return_assistant_tokens_mask=True, **given
        )
        assert loss_mask.ids_of(np.array(tokens)).tolist() == expected["input_ids"]
        assert [token >= 0 for token in tokens] == [bool(bit) for bit in expected["assistant_masks"]]
    block = Tokenization(folder, Settings(template, "preference")).block(lines(pairs[:15]))
    columns = [columns_of(block, column) for column in ("prompt_ids", "chosen_ids", "rejected_ids")]
    for pair, *found in zip([pairs[index] for index in block.rows], *columns, strict=True):
        asked = theirs.apply_chat_template(pair["prompt"], add_generation_prompt=True, **given)["input_ids"]
        chosen, rejected = (
            theirs.apply_chat_template(pair["prompt"] + pair[side], **given)["input_ids"]
            for side in ("chosen", "rejected")
        )
        shared = min(common_prefix_length(asked, chosen), common_prefix_length(asked, rejected))
        assert found == [asked[:shared], chosen[shared:], rejected[shared:]]
    assert len(block.rows) + sum(block.dropped.values()) == 15


def lines(rows):
    return [orjson.dumps({"row": index, **row}) for index, row in enumerate(rows)]


def columns_of(block, name):
    values, offsets = block.columns[name]
    return [values[start:end].tolist() for start, end in itertools.pairwise(offsets)]


@pytest.mark.parametrize(
    "file, transform", [("gsm8k_train", "question_answer"), ("gpteacher_roleplay_alpaca", "alpaca")]
)
def test_real_conversations(stages, shared, model_and_tokenizer, tmp_path, file, transform):
    source = tmp_path / f"{file}.jsonl"
    with (shared / "sft" / source.name).open() as rows:
        source.write_text("".join(itertools.islice(rows, 300)))
    transformed = stages.transform(source, transform_name=transform)
    rows = [json.loads(line) for line in (transformed.parent / "rows.jsonl").read_text().splitlines()]
    messages = [{"messages": row["messages"]} for row in rows]
    theirs = sft_trainer(tmp_path / "trl", messages, model_and_tokenizer, assistant_only_loss=True).train_dataset
    ours = lists_of(stages.mix({"d": stages.tokenize(transformed)}, max_seq_length=512))
    # TRL cuts what is longer than a row; ours leaves it out and counts it.
    whole = [document for document in documents(theirs) if len(document[0]) < 512]
    assert [document for document in documents(ours) if len(document[0]) < 512] == whole


def test_real_pairs(stages, shared, tokens, model_and_tokenizer):
    """UltraFeedback, each pair as TRL's preparation makes it."""
    from trl.data_utils import _tokenize, common_prefix_length

    _, tokenizer = model_and_tokenizer
    transformed = stages.transform(
        shared / "dpo" / "ultrafeedback_binarized.parquet", transform_name="preference", rows="preference"
    )
    rows = [json.loads(line) for line in (transformed.parent / "rows.jsonl").read_text().split("\n")[:150]]
    (transformed.parent / "rows.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    facts = json.loads(transformed.read_text())
    transformed.write_text(json.dumps(facts | {"examples": len(rows)}))
    found = tokens(stages.tokenize(transformed, shape="preference"))
    assert len(found) > 140
    by_number = {row["row"]: row for row in rows}
    for row in found:
        pair = by_number[row["row"]]
        asked = _tokenize(tokenizer, pair["prompt"], add_generation_prompt=True)["input_ids"]
        chosen, rejected = (
            _tokenize(tokenizer, pair["prompt"] + pair[side])["input_ids"] for side in ("chosen", "rejected")
        )
        cut = min(common_prefix_length(asked, chosen), common_prefix_length(asked, rejected))
        assert [row[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")] == [
            asked[:cut], chosen[cut:], rejected[cut:],
        ]  # fmt: skip
