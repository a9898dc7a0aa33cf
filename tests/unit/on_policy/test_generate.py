"""Answers are the same bytes for any number of shards and after any kill, and follow the model's distribution."""

import json
import random

import numpy as np
import pytest
import torch
from on_policy_parts import SAMPLING, generate_task, prompts, task
from tiny import TEMPLATE

from post_training.core.errors import DataError
from post_training.data import registry
from post_training.models import folder as model_folder
from post_training.models.loading import generate as padded_generate
from post_training.on_policy import generate, score
from post_training.on_policy.answers import read_answers
from post_training.on_policy.decoding import decode, draw
from post_training.on_policy.engine import Engine, Request, uniforms
from post_training.run_dir import attempts
from post_training.run_dir.stop import REQUEST, REQUEUE


def request(text: str, stream: str) -> Request:
    return Request([{"role": "user", "content": text}], None, stream)


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    return prompts(tmp_path_factory.mktemp("asked") / "prompts", 13)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, asked, model_manifest):
    """A finished stage of one shard."""
    task = generate_task(tmp_path_factory.mktemp("one") / "generate", asked, model_manifest)
    assert generate.run(task) == 0
    return task


def test_any_number_of_shards_gives_the_same_answers(undisturbed, asked, model_manifest, tmp_path):
    shards = {}
    for number in range(3):
        task = generate_task(tmp_path / f"shard{number}", asked, model_manifest, (number, 3))
        assert generate.run(task) == 0
        shards[f"answers {number}"] = task.output
    together = read_answers({"answers 0": undisturbed.output})
    assert read_answers(shards) == together and len(together) == 39
    assert list(together) == sorted(together)
    assert len({line["answer"] for line in together.values()}) > 20, "samples differ"


def test_a_killed_job_continues_and_ends_with_the_same_bytes(undisturbed, asked, model_manifest, tmp_path, capsys):
    expected = (undisturbed.directory / "answers.jsonl").read_bytes()
    pick = random.Random(0)
    for number, size in enumerate([0, *(pick.randrange(1, len(expected)) for _ in range(3)), len(expected)]):
        task = generate_task(tmp_path / f"killed{number}", asked, model_manifest)
        (task.directory / "answers.jsonl").write_bytes(expected[:size])  # what a kill at any moment leaves
        assert generate.run(task) == 0
        assert (task.directory / "answers.jsonl").read_bytes() == expected
    assert "resuming after 39 of 39 answers" in capsys.readouterr().out


def test_a_warning_of_the_time_limit_keeps_what_is_written(
    undisturbed, asked, model_manifest, tmp_path, monkeypatch, capsys
):
    task = generate_task(tmp_path / "warned", asked, model_manifest)
    answer = Engine.answers

    def warned(self, requests):
        REQUEST._receive(10, None)  # SIGUSR1
        return answer(self, requests)

    monkeypatch.setattr(Engine, "answers", warned)
    try:
        assert generate.run(task) == REQUEUE
    finally:
        REQUEST.received.clear()
    assert not task.output.exists() and "stopped by SIGUSR1, after 8 of 39 answers" in capsys.readouterr().out
    assert attempts.safe_steps(task.directory) == 8, "what Slurm's attempts call progress"
    monkeypatch.undo()
    assert generate.run(task) == 0
    assert (task.directory / "answers.jsonl").read_bytes() == (undisturbed.directory / "answers.jsonl").read_bytes()


def test_a_manifest_counts_answers(undisturbed):
    facts = json.loads(undisturbed.output.read_text())
    lines = [json.loads(line) for line in (undisturbed.directory / "answers.jsonl").read_text().splitlines()]
    assert facts["rows_out"] == 39 and facts["tokens"] == sum(line["tokens"] for line in lines)
    assert facts["answers"]["cut"] == sum(not line["ended"] for line in lines) > 0


def test_an_answer_does_not_depend_on_what_is_beside_it(model_manifest):
    engine = Engine.load(model_folder(model_manifest), TEMPLATE, SAMPLING | {"max_new_tokens": 30}, False)
    requests = [request(f"{n}?", f"p{n} 0") for n in range(6)]
    together = engine.answers(requests)
    assert [engine.answers([request])[0] for request in requests] == together
    assert engine.answers([request("0?", "another 0")])[0] != together[0]


def test_greedy_answers_are_those_of_transformers(model_manifest):
    """Over several calls, from which ended rows are left out."""
    engine = Engine.load(model_folder(model_manifest), TEMPLATE, SAMPLING, False)
    ids = [engine.prompt_ids(request(f"{'and ' * (n % 4)}{n} and 1?", "").prompt) for n in range(12)]
    # Tokens that end some answers early, as a model's stop token would.
    pad = engine.tokenizer.pad_token_id
    plain = padded_generate(engine.model, ids, [pad], pad, 40)
    stop = [plain[0][3], plain[5][20], plain[9][30]]
    expected = padded_generate(engine.model, ids, stop, pad, 40)
    assert len({len(answer) for answer in expected}) > 2
    assert decode(engine.model, ids, stop, pad, [], None, 40) == expected
    # What the model's own configuration says of answers decides none of them.
    for name, value in {"repetition_penalty": 50.0, "num_return_sequences": 3, "suppress_tokens": plain[0]}.items():
        setattr(engine.model.generation_config, name, value)
    assert decode(engine.model, ids, stop, pad, [], None, 40) == expected
    assert padded_generate(engine.model, ids, stop, pad, 40) == expected
    assert engine.model.generation_config.repetition_penalty == 50


def test_draws_follow_the_filtered_distribution(model_manifest):
    engine = Engine.load(
        model_folder(model_manifest), TEMPLATE, SAMPLING | {"temperature": 0.7, "top_p": 0.8, "top_k": 6}, False
    )
    count = 20_000
    filters = engine.filters()
    scores = torch.randn(1, 12, generator=torch.Generator().manual_seed(0))
    for one in filters:
        scores = one(torch.zeros(1, 2, dtype=torch.long), scores)
    wanted = torch.softmax(scores, -1)[0].numpy()
    draws = np.stack([uniforms(0, f"p {n}", 1) for n in range(count)])
    tokens = draw(draws, 2, torch.zeros(count, 2, dtype=torch.long), scores.expand(count, -1)).argmax(-1).numpy()
    found = np.bincount(tokens, minlength=12) / count
    assert (found[wanted == 0] == 0).all() and (wanted == 0).any()
    assert np.abs(found - wanted).max() < 4 * np.sqrt(0.25 / count)


def test_a_prompt_that_leaves_no_room_is_counted(asked, model_manifest, tmp_path):
    task = generate_task(tmp_path / "long", asked, model_manifest, max_new_tokens=500)
    generate.run(task)
    assert json.loads(task.output.read_text())["dropped"] == {"prompt_too_long": 13}


def test_out_of_memory_halves_the_batch(model_manifest, monkeypatch, capsys):
    engine = Engine.load(model_folder(model_manifest), TEMPLATE, SAMPLING, False)
    requests = [request(f"{n}?", f"p{n} 0") for n in range(5)]
    expected, answer = engine.answers(requests), engine._answers

    def small(batch):
        if len(batch) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return answer(batch)

    monkeypatch.setattr(engine, "_answers", small)
    assert engine.answers(requests) == expected
    assert "5 rows at a time do not fit" in capsys.readouterr().out


def test_a_model_without_a_template_is_one_line(model_manifest, monkeypatch):
    monkeypatch.setattr(
        "post_training.on_policy.engine.load_tokenizer", lambda *_: type("T", (), {"chat_template": None})()
    )
    with pytest.raises(DataError, match=r"generate\.model: the tokenizer in .* has no chat template"):
        Engine.load(model_folder(model_manifest), None, SAMPLING, False)


def test_a_reward_model_that_cannot_be_used_is_one_line_before_any_answer(undisturbed, asked, model_manifest, tmp_path):
    inputs = {"prompts": asked, "answers 0": undisturbed.output, "reward_model": model_manifest}
    runtime = {"file": str(registry.reward_names([])["reward_model"].file), "arguments": {}}
    made = task("score_model", {"reward": "reward_model", "arguments": {}}, runtime, inputs, tmp_path / "score")
    with pytest.raises(DataError, match=r"its tokenizer has no chat template; use a reward model for conversations$"):
        score.run(made)
    assert not (made.directory / "scores.jsonl").exists()
