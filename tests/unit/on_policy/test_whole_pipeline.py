"""The recipe of config/on_policy.yaml at toy size: every stage of both rounds, in this process."""

import json
import shutil
from pathlib import Path

import pytest
from on_policy_parts import answers, prompts, task
from tiny import make_here

from post_training.config import load_file, resolve
from post_training.core import manifest
from post_training.data import registry
from post_training.data.view import open_rows
from post_training.inspection import collect
from post_training.models import folder as model_folder
from post_training.on_policy import score
from post_training.plan import make_plan
from post_training.report.collect import collect as collect_report

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The plan, all of it made: two steps a training, and a reward that a model which says nothing sensible can get."""
    folder = tmp_path_factory.mktemp("on_policy")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        shutil.copytree(ROOT / "config", folder / "config")
        config = load_file("config/on_policy.yaml")
        config["training"] |= {"max_steps": 2, "effective_batch_size": 4, "per_device_train_batch_size": 4}
        config["sft"]["training"] = {"max_steps": 2}
        config["logging"] = {"logging_steps": 1}
        config["sft"]["data"]["eval_fraction"] = 0.1
        config["sft"]["data"]["datasets"][0]["path"] = "config/demo/sft_heldout.jsonl"
        reward = [{"reward": "length", "unit": "characters", "at_most": 10}]
        for stage in ("dpo", "dpo2"):
            entry = config[stage]["data"]["datasets"][0]
            entry["prompts"] |= {"rows": 24}
            entry["generate"] |= {"n": 3, "max_new_tokens": 8, "shards": 2, "batch_size": 16}
            entry |= {"score": reward, "select": {"cut": "keep", "pairs": "all_ordered"}}
        pairs = {"name": "pairs", "path": "config/demo/preference_heldout.jsonl", "transform": "preference"}
        config["reward"] = {"max_seq_length": 128, "data": {"datasets": [pairs], "eval_fraction": 0.1}}
        second = config["dpo2"]["data"]["datasets"][0]
        second["score"] = [*reward, {"reward": "reward_model", "model": "reward"}]
        config["dpo2"]["data"]["datasets"][0]["prompts"] = {"dataset": "instructions", "rows": 24}
        config["evaluation"] |= {"max_new_tokens": 8}
        config["evaluation"]["datasets"][0] |= {
            "path": "config/demo/preference_heldout.jsonl",
            "split": "train[:8]",
            "score": reward,
        }
        plan = make_plan(resolve(config))
        make_here(
            plan,
            *plan.evaluated.values(),
            plan.report,
            *(one for place, one in plan.preflights.items() if place.startswith("local")),
        )
        yield plan


@pytest.mark.slow
def test_two_rounds_end_in_a_model_and_held_out_rewards(finished):
    for name in ("base", "sft", "dpo", "dpo2"):
        result = manifest.read(finished.base / finished.evaluated[name].manifest)["results"]["kindness"]
        assert result["kind"] == "reward" and result["rows"] == 8 and 0 <= result["reward"] <= 1
    assert model_folder(finished.base / finished.exported["dpo2"].manifest)
    for stage in finished.stages["select"].values():
        facts = manifest.read(finished.base / stage.manifest)
        assert facts["rows_in"] == 24 and facts["examples"] > 0 and facts["scores"]["0"] < facts["scores"]["100"]
    assert len(finished.stages["generate"]) == 4


@pytest.mark.slow
def test_prompts_of_a_dataset_are_none_that_its_stage_holds_out(finished):
    stage = finished.trained["dpo2"].inputs["data"].inputs["round2"].inputs["rows"].inputs["prompts"]
    asked = [json.loads(line) for line in (finished.base / stage.directory / "prompts.jsonl").read_text().splitlines()]
    facts = manifest.read(finished.base / stage.manifest)
    held = manifest.read(finished.base / finished.mixed["sft"].manifest)["held_out"]["rows"]
    assert facts["dropped"]["held_out"] >= held > 5 and facts["rows_out"] == len(asked) == 24
    assert facts["rows_in"] == 200 == len(asked) + facts["left_out"] + sum(facts["dropped"].values())
    assert all(line["prompt"][-1]["role"] == "user" and line["columns"]["answer"] for line in asked)


@pytest.mark.slow
def test_inspect_shows_all_candidates_of_a_pair(finished):
    every = collect.examples(finished, "dpo", 5, [], 0)
    assert every and all(len(example.raw["answers"]) == 3 for example in every)
    trained = next(example for example in every if not example.fate)
    pair = trained.raw["rows"][trained.part]
    texts = {one["sample"]: one["answer"] for one in trained.raw["answers"]}
    assert trained.transformed["chosen"][0]["content"] == texts[pair["chosen"]]


@pytest.mark.slow
def test_the_report_has_the_rounds(finished):
    found = collect_report(finished.report.task(finished.base))
    assert found["evaluations"]["kindness"].keys() == {"base", "sft", "dpo", "dpo2"}
    assert [stage["name"] for stage in found["stages"]] == ["sft", "dpo", "reward", "dpo2"]
    assert [[dataset["name"] for dataset in stage["generated"]] for stage in found["stages"]] == [
        [],
        ["round1"],
        [],
        ["round2"],
    ]
    (dataset,) = found["stages"][1]["generated"]
    assert dataset["prompts"] == 24 and dataset["mean_characters"].keys() == {"chosen", "rejected"}
    assert [len(one["answers"]) for one in dataset["candidates"]] == [3, 3, 3]
    assert {"chosen", "rejected"} <= {
        one["became"] for candidate in dataset["candidates"] for one in candidate["answers"]
    }
    assert [(rate["before"], rate["after"]) for rate in found["win_rates"]] == [
        ("base", "sft"),
        ("sft", "dpo"),
        ("dpo", "dpo2"),
    ]
    assert all(rate["wins"] + rate["ties"] + rate["losses"] == pytest.approx(1) for rate in found["win_rates"])
    page = (finished.base / finished.report.directory / "report.html").read_text()
    assert "round1: answers of a model" in page and "dpo2 against dpo" in page


@pytest.mark.slow
def test_the_reward_model_of_a_stage_is_evaluated_and_scores(finished):
    """Its accuracy and its scores against Transformers, one conversation at a time, on what the files hold."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = model_folder(finished.base / finished.exported["reward"].manifest)
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

    def score_of(messages):
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            return model.eval()(input_ids=ids).logits.item()

    select = finished.trained["dpo2"].inputs["data"].inputs["round2"].inputs["rows"]
    lines = (finished.base / select.directory / "candidates.jsonl").read_text().splitlines()
    for line in map(json.loads, lines[:6]):
        for one in line["answers"]:
            expected = score_of([*line["prompt"], {"role": "assistant", "content": one["answer"]}])
            assert one["scores"]["reward_model"] == pytest.approx(expected, abs=1e-5)
    result = manifest.read(finished.base / finished.evaluated["reward"].manifest)["results"]
    assert result.keys() == {"held-out reward"} and result["held-out reward"]["rows"] > 5
    other = manifest.read(finished.base / finished.evaluated["dpo2"].manifest)["results"]
    assert {"held-out reward", "held-out sft", "kindness"} == other.keys()
    assert finished.stages["score_model"] and "reward" not in finished.lm_evaluated
    held = open_rows(finished.base / finished.mixed["reward"].manifest, part="eval").distinct()
    sides = ("chosen_ids", "rejected_ids")
    ids = [[torch.tensor([[*row["prompt_ids"], *row[side]]]) for side in sides] for row in held]
    right = [
        model(input_ids=chosen).logits.item() > model(input_ids=rejected).logits.item() for chosen, rejected in ids
    ]
    assert result["held-out reward"]["accuracy"] == pytest.approx(sum(right) / len(right))


@pytest.mark.slow
def test_a_reward_model_scores_conversations_in_any_batch(finished, tmp_path):
    """Against Transformers, one conversation at a time without padding."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    source = model_folder(finished.base / finished.exported["sft"].manifest)
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(source)
    config = AutoConfig.from_pretrained(source, num_labels=1, pad_token_id=tokenizer.pad_token_id)
    model = AutoModelForSequenceClassification.from_config(config)
    model.save_pretrained(tmp_path / "rm")
    tokenizer.save_pretrained(tmp_path / "rm")
    (tmp_path / "rm_stage").mkdir()
    (tmp_path / "rm_stage" / "manifest.json").write_text(json.dumps({"folder": str(tmp_path / "rm"), "files": []}))
    texts = [["yes", "no, I would not say so"], ["a longer answer of many words", "b"]]
    inputs = {
        "prompts": prompts(tmp_path / "prompts", 2),
        "answers 0": answers(tmp_path / "answers", texts),
        "reward_model": tmp_path / "rm_stage" / "manifest.json",
    }
    runtime = {"file": str(registry.reward_names([])["reward_model"].file), "arguments": {"batch_size": 3}}
    made = task(
        "score_model", {"reward": "reward_model", "arguments": {"max_length": 60}}, runtime, inputs, tmp_path / "score"
    )
    assert score.run(made) == 0
    scores = [json.loads(line)["score"] for line in (tmp_path / "score" / "scores.jsonl").read_text().splitlines()]
    asked = [json.loads(line)["prompt"] for line in (tmp_path / "prompts" / "prompts.jsonl").read_text().splitlines()]
    for (prompt, sample), found in zip([(p, s) for p in range(2) for s in range(2)], scores, strict=True):
        messages = [*asked[prompt], {"role": "assistant", "content": texts[prompt][sample]}]
        ids = tokenizer(
            tokenizer.apply_chat_template(messages, tokenize=False), add_special_tokens=False, return_tensors="pt"
        )
        if ids["input_ids"].shape[1] > 60:
            assert found is None
        else:
            assert found == pytest.approx(model.eval()(**ids).logits.item(), abs=1e-5)
    assert sum(score is not None for score in scores) >= 3
