"""The ids at the beginning of a conversation (BOS) are the same in training, evaluation, `generate`, rewards, lm_eval and Transformers'
pipeline, whoever is made to write them: the tokenizer, the template, both or neither."""

import json
import shutil
from itertools import chain
from types import SimpleNamespace

import pytest
from tiny import TEMPLATE, conversation, task

from post_training.data import loss_mask
from post_training.data.tokens.blocks import Settings, Tokenization
from post_training.evaluation import lm_eval
from post_training.evaluation.held_out import Evaluator
from post_training.evaluation.reward_model import Scorer
from post_training.models.conversation import ids_before_text
from post_training.models.loading import load_for_inference, load_tokenizer
from post_training.on_policy.engine import Engine
from post_training.preflight import template as of_template
from post_training.rewards import reward_model

BOS = "<|endoftext|>"
TURNS = conversation(12)


@pytest.fixture(params=[True, False], ids=["tokenizer adds it", "tokenizer does not"])
def folder(request, tmp_path, model_manifest):
    """A model folder; its tokenizer may put BOS before every text."""
    folder = shutil.copytree(model_manifest.parent / "model", tmp_path / "models" / "m")
    (folder.parent / "manifest.json").write_text('{"stage": "download_model", "folder": "m", "fingerprint": "0"}')
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"bos_token": BOS}))
    if request.param:
        file = folder / "tokenizer.json"
        made = json.loads(file.read_text())
        bos = next(token["id"] for token in made["added_tokens"] if token["content"] == BOS)
        single = [{"SpecialToken": {"id": BOS, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
        made["post_processor"] = {
            "type": "TemplateProcessing", "single": single, "pair": [*single, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {BOS: {"id": BOS, "ids": [bos], "tokens": [BOS]}},
        }  # fmt: skip
        file.write_text(json.dumps(made))
    return folder


@pytest.mark.parametrize("written", [0, 1, 2])
def test_the_same_ids_everywhere(tmp_path, folder, subject_like, monkeypatch, written):
    from transformers import pipeline
    from transformers.pipelines.text_generation import Chat

    template = "{{ bos_token }}" * written + TEMPLATE
    line = json.dumps({"row": 1, "messages": TURNS}).encode()
    (column,) = Tokenization(folder, Settings(template, "messages")).block([line]).columns.values()
    trained = loss_mask.ids_of(column[0]).tolist()
    model, tokenizer = load_for_inference(folder), load_tokenizer(folder)
    adds = bool(ids_before_text(tokenizer))
    assert adds == (tokenizer("x").input_ids != tokenizer("x", add_special_tokens=False).input_ids)
    assert trained[:written] == [tokenizer.bos_token_id] * written != trained[written : written + 1]

    evaluator = Evaluator(model, tokenizer, template, 8, 2)
    prompts = {"evaluate": evaluator._prompt(TURNS[:1]), "engine": Engine(model, tokenizer, template, {"max_new_tokens": 8}).prompt_ids(TURNS[:1])}  # fmt: skip
    whole = {
        "evaluate": evaluator._encode(TURNS)[0],
        "scorer": Scorer(model, tokenizer, template, 2)._encode({"prompt": TURNS[:1], "chosen": TURNS[1:]}, "chosen"),
    }
    tokenizer.chat_template = {"default": template, "tool_use": "{{ 'other' }}"}  # several by name
    seen = []
    monkeypatch.setattr(reward_model, "_loaded", lambda _: (model, tokenizer, 512))
    monkeypatch.setattr("post_training.models.loading.padded_scores", lambda _, rows, *more: seen.extend(rows) or [0.0])
    reward_model.reward_model([TURNS[:1]], [TURNS[1:]], model="m")
    whole["reward"] = seen[0]

    config = {"apply_chat_template": True, "chat_template": template}
    inputs = {"model": folder.parent / "manifest.json"}
    harness = lm_eval._model(task("lm_eval", config, {"batch_size": 2}, inputs, tmp_path / "lm" / "manifest.json"))
    text = harness.apply_chat_template([dict(turn) for turn in TURNS[:1]])
    prompts |= {
        "lm_eval": harness.tok_encode(text),
        "lm_eval, batches": harness.tok_batch_encode([text])[0][0].tolist(),
        "lm_eval, choices": [*chain(*harness._encode_pair(text, "3"))][: len(prompts["evaluate"])],
    }
    tokenizer.chat_template = template
    asked = pipeline("text-generation", model=model, tokenizer=tokenizer)
    prompts["pipeline"] = asked.preprocess(Chat(TURNS[:1]))["input_ids"][0].tolist()
    assert whole == dict.fromkeys(whole, trained)
    assert prompts == dict.fromkeys(prompts, trained[: len(prompts["evaluate"])])

    found = subject_like(folder, template)["template.beginning"]
    said = {0: "before a text, and the template begins with" if adds else "begins a conversation", 1: "begins a conversation", 2: "twice"}  # fmt: skip
    assert said[written] in found.value and "\n" not in found.line()
    assert found.verdict == ("warning" if written == 2 or (adds and not written) else "ok")


@pytest.fixture
def subject_like(tmp_path):
    """(folder, template) -> {name: check} of the template's checks."""

    def check(folder, template):
        path = tmp_path / "asked.jinja"
        path.write_text(template)
        made = tmp_path / "tokenized" / "manifest.json"
        made.parent.mkdir()
        made.write_text(json.dumps({"config": {"chat_template": template}}))
        view = {"data": {"chat_template": str(path)}, "model": {"trust_remote_code": False}}
        subject = SimpleNamespace(view=view, folder=folder, data=made, mix={"inputs": {"d": {"path": str(made)}}})
        return {found.name: found for found in of_template.checks(subject)}

    return check
