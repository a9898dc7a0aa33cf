"""A tiny model, its tokenizer, mixed rows: without the stages that would make them."""

import json
import random
from pathlib import Path
from typing import Any

import huggingface_hub.constants  # noqa: F401  reads HF_HUB_OFFLINE once, before a test sets it
import pytest
from hypothesis import settings
from tiny import (
    MAX_LENGTH,
    TEMPLATE,
    build_task,
    compute_reference,
    conversation,
    export_task,
    reference_task,
    render,
    tokenised,
    train_here,
    train_task,
    write_mix,
)

# How long an example takes says more about what else the machine does.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: Any) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    path.write_text("".join(json.dumps({"messages": conversation(n)}) + "\n" for n in range(200)))
    return path


@pytest.fixture(scope="session")
def model_manifest(tmp_path_factory: Any, corpus: Path) -> Path:
    """A built model: 2 layers of 64, 300 tokens."""
    from post_training.models import build

    output = tmp_path_factory.mktemp("model") / "scratch" / "manifest.json"
    build.run(build_task(output, corpus))
    return output


@pytest.fixture(scope="session")
def tokenizer(model_manifest: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_manifest.parent / "model")


@pytest.fixture(scope="session")
def template(tmp_path_factory: Any) -> Path:
    path = tmp_path_factory.mktemp("template") / "plain.jinja"
    path.write_text(TEMPLATE)
    return path


@pytest.fixture(scope="session")
def sft_rows(tmp_path_factory: Any, tokenizer: Any) -> Path:
    """Manifest of 96 packed rows of at most 64 tokens."""
    documents = [tokenised(tokenizer, conversation(n)) for n in random.Random(0).sample(range(1000), 400)]
    rows: list[dict[str, list[int]]] = []
    for ids, labels in documents:
        if not rows or len(rows[-1]["input_ids"]) + len(ids) > MAX_LENGTH:
            rows.append({"input_ids": [], "labels": [], "seq_lengths": []})
        rows[-1]["input_ids"] += ids
        rows[-1]["labels"] += labels
        rows[-1]["seq_lengths"].append(len(ids))
    return write_mix(tmp_path_factory.mktemp("sft_rows"), rows[:96], packing=True)


@pytest.fixture(scope="session")
def unpacked_rows(tmp_path_factory: Any, tokenizer: Any) -> Path:
    rows = []
    for n in range(96):
        ids, labels = tokenised(tokenizer, conversation(n))
        rows.append({"input_ids": ids, "labels": labels})
    return write_mix(tmp_path_factory.mktemp("unpacked_rows"), rows, packing=False)


@pytest.fixture(scope="session")
def dpo_rows(tmp_path_factory: Any, tokenizer: Any) -> Path:
    """Manifest of 64 pairs: the right sum over a wrong one."""
    rows = []
    for n in range(64):
        question, answer = conversation(n)
        prompt = render(tokenizer, [question], add_generation_prompt=True)
        wrong = str(int(answer["content"]) + 1)
        rows.append(
            {
                "prompt_ids": tokenizer(prompt)["input_ids"],
                "chosen_ids": tokenizer(f"{answer['content']}<|im_end|>\n")["input_ids"],
                "rejected_ids": tokenizer(f"{wrong}<|im_end|>\n")["input_ids"],
            }
        )
    return write_mix(tmp_path_factory.mktemp("dpo_rows"), rows, packing=False)


@pytest.fixture(scope="session")
def dpo_reference(tmp_path_factory: Any, model_manifest: Path, dpo_rows: Path, template: Path) -> Path:
    """Manifest of what the model says about those pairs."""
    directory = tmp_path_factory.mktemp("reference") / "dpo-tiny"
    return compute_reference(reference_task(directory, model_manifest, dpo_rows, template))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: Any, model_manifest: Path, sft_rows: Path, template: Path) -> Path:
    """Manifest of an SFT run of 6 steps, trained in this process."""
    return train_here(train_task(tmp_path_factory.mktemp("runs") / "sft-tiny", model_manifest, sft_rows, template))


@pytest.fixture(scope="session")
def exported(tmp_path_factory: Any, trained: Path, sft_rows: Path) -> Path:
    """Manifest of that run's export."""
    from post_training.release import export

    output = trained.parent / "model" / "manifest.json"
    export.run(export_task(trained, sft_rows, output))
    return output
