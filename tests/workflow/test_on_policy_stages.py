"""Datasets that a model of the pipeline writes: what each key reruns, and what cannot be planned."""

import copy
import re

import pytest
from test_staleness import changed, kinds

from post_training.core.errors import ConfigError

REWARDS = """
from post_training.rewards import register_reward


@register_reward("mine")
def mine(prompts, completions, *, scale=1.0):
    return [scale for _ in completions]


@register_reward("theirs", place="gpu")
def theirs(prompts, completions, *, model, batch_size=4):
    return [0.0 for _ in completions]
"""
ROUND = {
    "name": "round1",
    "prompts": {"path": "p.jsonl"},
    "generate": {"model": "sft", "n": 2, "shards": 2},
    "score": [{"reward": "mine"}, {"reward": "exact_match", "weight": 0.5}],
}
DPO = {"train": ["dpo"], "export": ["dpo"], "evaluate": ["dpo"]}
SELECTED = {"select": ["round1"], "tokenize": ["round1"], "mix": ["dpo"], "reference": ["dpo"], **DPO}
SCORED = {"score": ["round1", "round1"], **SELECTED}
GENERATED = {"generate": ["round1", "round1"], **SCORED}


@pytest.fixture
def generated(project):
    """SFT, then DPO on what the SFT model answers: finished."""
    (project.path / "rewards.py").write_text(REWARDS)
    project.config["data"]["transform_modules"].append("rewards.py")
    project.config["dpo"]["data"] = {"datasets": [copy.deepcopy(ROUND)]}
    project.write()
    project.complete()
    assert project.jobs() == {}
    return project


def dataset(config) -> dict:
    return config["dpo"]["data"]["datasets"][0]


@pytest.mark.parametrize(
    ("part", "values", "expected"),
    [
        ("generate", {"temperature": 0.7}, GENERATED),
        ("generate", {"n": 3}, GENERATED),
        ("generate", {"top_p": 0.9}, GENERATED),
        ("generate", {"top_k": 5}, GENERATED),
        ("generate", {"max_new_tokens": 7}, GENERATED),
        ("generate", {"seed": 1}, GENERATED),
        ("generate", {"model": "base"}, GENERATED),
        ("generate", {"shards": 5}, {}),
        ("generate", {"batch_size": 3}, {}),
        ("prompts", {"rows": 1}, {"prompts": ["round1"], **GENERATED}),
        ("prompts", {"seed": 1}, {"prompts": ["round1"], **GENERATED}),
        ("select", {"min_margin": 0.5}, SELECTED),
        ("select", {"pairs": "all_ordered"}, SELECTED),
        ("select", {"cut": "keep"}, SELECTED),
        ("select", {"pairs": "best_random"}, SELECTED),
        ("select", {"pairs": "best_random", "seed": 1}, SELECTED),
    ],
)
def test_a_key_reruns_what_it_decides(generated, part, values, expected):
    def edit(config):
        dataset(config).setdefault(part, {}).update(values)

    assert changed(generated, edit) == expected


def test_a_reward_s_weight_reruns_select_alone_and_its_arguments_its_scores(generated):
    def weight(config):
        dataset(config)["score"][1]["weight"] = 2.0

    def argument(config):
        dataset(config)["score"][0]["scale"] = 2.0

    def another(config):
        dataset(config)["score"].append({"reward": "length"})

    def limit(config):
        dataset(config)["score"][0]["limit_seconds"] = 5

    assert changed(generated, limit) == {}
    assert changed(generated, weight) == SELECTED
    assert changed(generated, argument) == {"score": ["round1"], **SELECTED}
    assert changed(generated, another) == {"score": ["round1"], **SELECTED}
    limit(generated.config)
    assert {one.runtime["limit_seconds"] for one in generated.plan().stages["score"].values()} == {5, 60.0}


def test_a_reward_model_of_the_pipeline_is_trained_and_scores_again_and_answers_stay(generated):
    generated.config["reward"] = {"data": {"datasets": [{"path": "p.jsonl", "transform": "preference"}]}}
    dataset(generated.config)["score"] = [{"reward": "reward_model", "model": "reward"}]
    generated.write()
    trained = {"train": ["reward", "dpo"], "export": ["reward", "dpo"]}
    found = kinds(generated.jobs())
    assert {name: found[name] for name in trained} == {name: sorted(own) for name, own in trained.items()}
    assert found["score_model"] == ["round1"] and "generate" not in found
    generated.complete()

    def rate(config):
        config["reward"]["training"] = {"learning_rate": 1.0e-6}

    again = changed(generated, rate)
    assert "generate" not in again and "mix" in again and again["score_model"] == ["round1"]
    assert again["train"] == sorted(trained["train"])
    dataset(generated.config)["generate"]["model"] = "reward"
    with pytest.raises(ConfigError, match=r"generate\.model: found reward, expected a model that answers"):
        generated.plan()
    dataset(generated.config)["generate"]["model"] = "sft"
    dataset(generated.config)["score"][0]["model"] = "sft"
    with pytest.raises(ConfigError, match=r"model: found sft, expected a stage with method reward"):
        generated.plan()
    dataset(generated.config)["score"][0]["model"] = "reward"
    generated.config["dpo"]["init_from"] = "reward"
    with pytest.raises(ConfigError, match=r"dpo\.init_from: found reward, a reward model"):
        generated.plan()


def test_another_engine_asks_again_and_where_its_server_is_decides_nothing(generated):
    server = {"command": "vllm serve {model} --port {port}"}
    dataset(generated.config)["generate"]["server"] = server
    generated.write()
    assert kinds(generated.jobs()) == GENERATED
    generated.complete()
    server |= {"command": "/opt/vllm serve {model} --port {port} -tp 4", "concurrency": 9, "startup_seconds": 5}
    generated.write()
    assert generated.jobs() == {}
    del server["command"]  # then it is that of slurm.generate
    generated.write()
    assert generated.jobs() == {}
    commands = {one.runtime["server"]["command"] for one in generated.plan().stages["generate"].values()}
    assert commands == {".venv-vllm/bin/vllm serve {model} --port {port}"}
    generated.config["slurm"] = {"generate": {"server_command": "vllm serve {model}"}}
    with pytest.raises(ConfigError, match=r"slurm\.generate\.server_command: .*expected \{port\} in it"):
        generated.plan()
    del generated.config["slurm"]
    dataset(generated.config)["generate"] |= {"model": "their-model", "server": {"url": "https://host/v1"}}
    generated.write()
    assert kinds(generated.jobs()) == GENERATED
    generated.complete()
    dataset(generated.config)["generate"]["server"]["url"] = "https://another/v1"
    generated.write()
    assert generated.jobs() == {}
    dataset(generated.config)["generate"]["model"] = "another-model"
    generated.write()
    assert kinds(generated.jobs()) == GENERATED


def test_a_reward_s_source_and_the_methods_keys(generated):
    def beta(config):
        config["dpo"]["beta"] = 0.3

    assert changed(generated, beta) == DPO
    path = generated.path / "rewards.py"
    path.write_text("# a comment\n" + REWARDS)
    assert generated.jobs() == {}
    path.write_text(REWARDS.replace("[0.0 for", "[1.0 for"))
    assert generated.jobs() == {}, "another reward of the module"
    path.write_text(REWARDS.replace("return [scale for", "return [2 * scale for"))
    assert kinds(generated.jobs()) == {"score": ["round1"], **SELECTED}


def test_weights_prompts_and_template_rerun_the_answers(generated):
    def sft(config):
        config["sft"]["training"] = {"learning_rate": 1e-3}

    after = {"train": ["dpo", "sft"], "export": ["dpo", "sft"], "evaluate": ["dpo", "sft"]}
    assert changed(generated, sft) == {**GENERATED, **after}
    (generated.path / "p.jsonl").write_text('{"prompt": "another"}\n')
    jobs = kinds(generated.jobs())
    assert {"download", "transform", "prompts", "generate", "score", "select"} <= set(jobs) and jobs["train"] == ["dpo"]


def test_a_preflight_of_generated_data_waits_for_them(project, generated):
    project.config["training"]["max_steps"] = 11  # nothing trained is there
    project.write()
    assert len(project.jobs()["preflight_checks"]) == 2
    assert set(project.jobs("preflight")) == {"preflight_checks"}
    plan = project.plan()
    assert [*plan.preflights["local"].inputs] == ["sft model", "sft data"]
    assert [*plan.preflights["local dpo"].inputs] == ["dpo model", "dpo data"]
    assert [*plan.probes] == ["sft"]


def test_rounds_are_a_chain_and_share_their_start(generated):
    second = copy.deepcopy(ROUND) | {"name": "round2"}
    second["generate"]["model"] = "dpo"
    generated.config["dpo2"] = {
        "method": "dpo",
        "init_from": "dpo",
        "ref_model_name_or_path": "sft",
        "data": {"datasets": [second, copy.deepcopy(ROUND)]},
    }
    generated.config["method"] = "dpo2"
    generated.write()
    plan = generated.plan()
    assert plan.trained["dpo2"].inputs["reference"].inputs["model"] is plan.exported["sft"]
    jobs = kinds(generated.jobs())
    assert jobs["generate"] == jobs["score"] == ["round2"] * 2, "round 1's answers are there"
    assert (jobs["select"], jobs["train"]) == (["round2"], ["dpo"])


def test_what_is_read_and_how_it_is_asked_decide_the_answers_and_what_is_taken_select_alone(project):
    """Keys beside those whose jobs are planned above, by the names of the stages."""
    best = copy.deepcopy(ROUND) | {"score": [{"reward": "exact_match"}], "select": {"best": 2}}
    labels = copy.deepcopy(best) | {"name": "labels", "select": {"threshold": 0.5}}
    project.config["sft2"] = {"method": "sft", "init_from": "sft", "data": {"datasets": [best]}}
    project.config["kto"] = {"init_from": "sft2", "data": {"datasets": [labels]}}
    project.config |= {
        "method": "kto",
        "training": {"max_steps": 10, "effective_batch_size": 4, "per_device_train_batch_size": 2},
    }
    (project.path / "other.jinja").write_text((project.path / "template.jinja").read_text() + "\n")

    def names() -> dict[str, set[str]]:
        stages = project.plan().stages
        return {kind: set(stages[kind]) for kind in ("prompts", "generate", "score", "select")}

    def of(stage: str) -> dict:
        return project.config[stage]["data"]["datasets"][0]

    before = names()
    every = {"prompts", "generate", "score", "select"}
    for place, values, expected in (
        (lambda: of("sft2")["select"], {"best": 1}, {"select"}),
        (lambda: of("sft2")["select"], {"threshold": 0.1}, {"select"}),
        (lambda: of("kto")["select"], {"threshold": 0.6}, {"select"}),
        (lambda: of("kto")["prompts"], {"transform": {"name": "prompt", "system": "Be brief."}}, every),
        (lambda: of("kto")["prompts"], {"path": "h.jsonl"}, every),
        (lambda: of("kto")["prompts"], {"split": "train[:1]"}, every),
        (lambda: project.config["data"], {"chat_template": "other.jinja"}, every - {"prompts"}),
        (lambda: project.config["kto"].setdefault("training", {}), {"learning_rate": 1e-5}, set()),
        (lambda: of("kto")["score"][0], {"limit_seconds": None}, set()),
        (lambda: of("kto")["generate"], {"shards": 2, "batch_size": 1}, set()),
    ):
        was = copy.deepcopy(project.config)
        place().update(values)
        changed_kinds = {kind for kind, own in names().items() if own != before[kind]}
        assert changed_kinds == expected, values
        project.config = was


def test_a_margin_is_select_s_alone_and_without_one_all_is_as_it_was(project):
    project.config["reward"] = {"init_from": "sft", "data": {"datasets": [copy.deepcopy(ROUND)]}}
    project.config["reward"]["data"]["datasets"][0]["score"] = [{"reward": "exact_match"}]
    project.config |= {"method": "reward", "training": {"max_steps": 10, "effective_batch_size": 4}}
    found = []
    for keys in (None, {"margin": False}, {"margin": True}):
        project.config["reward"]["data"]["datasets"][0]["select"] = keys
        found.append(project.plan().stages)
    names = [{kind: set(stages[kind]) for kind in ("generate", "score", "select")} for stages in found]
    assert names[0] == names[1] and names[0]["score"] == names[2]["score"] and names[0]["select"] != names[2]["select"]
    assert ["margin" in stage.config for stages in found for stage in stages["select"].values()] == [False, False, True]


def test_rejection_sampling_for_sft_and_labels_for_kto(project):
    row = copy.deepcopy(ROUND) | {"score": [{"reward": "exact_match"}]}
    project.config["sft2"] = {
        "method": "sft",
        "init_from": "sft",
        "data": {"datasets": [row | {"select": {"best": 2}}]},
    }
    project.config["kto"] = {"init_from": "sft2", "data": {"datasets": [row | {"select": {"threshold": 0.5}}]}}
    project.config |= {
        "method": "kto",
        "training": {"max_steps": 10, "effective_batch_size": 4, "per_device_train_batch_size": 2},
    }
    plan = project.plan
    assert [stage.config["rows"] for stage in plan().stages["select"].values()] == ["messages", "unpaired"]
    assert len(plan().stages["generate"]) == len(plan().stages["score"]) + 1 == 2
    project.config["kto"]["data"]["datasets"][0]["select"] = {}
    with pytest.raises(ConfigError, match=r"kto\.data\.datasets\[0\]\.select\.threshold: is missing"):
        plan()


def test_a_reward_model_is_a_stage_s_or_anybody_s(generated):
    dataset(generated.config)["score"] = [{"reward": "theirs", "model": "sft", "batch_size": 2}]
    generated.write()
    plan = generated.plan()
    (stage,) = plan.stages["score_model"].values()
    assert stage.inputs["reward_model"] is plan.exported["sft"] and stage.config["arguments"] == {}
    assert stage.runtime["limit_seconds"] is None
    assert kinds(generated.jobs()) == {"score_model": ["round1"], **SELECTED}


def test_prompts_of_a_dataset_leave_out_what_is_held_out(project):
    project.config["data"]["eval_fraction"] = 0.5
    project.config["dpo"]["data"] = {
        "datasets": [copy.deepcopy(ROUND) | {"prompts": {"dataset": "a"}, "score": [{"reward": "exact_match"}]}]
    }
    plan = project.plan()
    (stage,) = plan.stages["prompts"].values()
    assert stage.inputs["rows"] is plan.mixed["sft"].inputs["a"].inputs["rows"]
    assert stage.inputs["held_out"] is plan.mixed["sft"]
    dataset(project.config)["prompts"]["dataset"] = "c"
    with pytest.raises(
        ConfigError, match=r"prompts\.dataset: found 'c', expected a dataset of an earlier stage\. On offer: a, b"
    ):
        project.plan()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"name": ""}, "name: is missing"),
        ({"generate": {"model": "sft", "n": 1}}, "generate.n: found 1, expected 2 or more: a pair takes two answers"),
        ({"generate": None}, "generate: is missing"),
        ({"prompts": None}, "prompts: is missing"),
        ({"path": "p.jsonl"}, "path: is of rows in files"),
        ({"eval_split": "h.jsonl"}, "eval_split: is of rows in files"),
        ({"score": []}, "score: no reward"),
        ({"score": ["mine"]}, "score[0]: found 'mine', expected {reward: NAME"),
        ({"score": [{"reward": "exact"}]}, "score[0].reward: no reward named 'exact'. Did you mean 'exact_match'"),
        ({"score": [{"reward": "exact_match", "refrence": "x"}]}, "score[0].refrence: unknown argument of exact_match. Did you mean 'reference'"),
        ({"score": [{"reward": "format"}]}, "score[0]: format needs pattern"),
        ({"score": [{"reward": "mine", "weight": "x"}]}, "score[0].weight: found 'x', expected a number"),
        ({"score": [{"reward": "mine", "limit_seconds": 0}]}, "score[0].limit_seconds: found 0, expected seconds above 0"),
        ({"select": {"best": 2}}, "select.best: is not of this method, whose rows are preference"),
        ({"select": {"pairs": "worst"}}, "select.pairs: found 'worst'"),
        ({"select": {"min_margin": -1.0}}, "select.min_margin: found -1.0"),
        ({"select": {"margin": True}}, "select.margin: is read by reward models alone; dpo has none"),
        ({"generate": {"model": "sft", "n": 0}}, "generate.n: found 0, expected 1 to 10000"),
        ({"generate": {"model": "sft", "n": 2, "temperature": 1e-5}}, "generate.temperature: found 1e-05, expected 0 (greedy) or 0.001 to 1000"),
        ({"score": [{"reward": "../mine"}]}, "score[0].reward: found '../mine', which is no name for a folder"),
        ({"generate": {"model": "sft", "n": 2, "temperature": 0.0}}, "generate.temperature: found 0, which gives the same answer 2 times"),
        ({"generate": {"model": "dpo"}}, "generate.model: dpo cannot start from itself"),
        ({"generate": {"model": ""}}, "generate.model: found ''"),
        ({"generate": {"modle": "sft"}}, "generate.modle: unknown key. Did you mean 'model'"),
        ({"generate": {"model": "sft", "server": {"command": "vllm serve {model}"}}}, "generate.server.command: found 'vllm serve {model}', expected {port}"),
        ({"generate": {"model": "sft", "server": {"command": "a '{model} {port}"}}}, "generate.server.command: found"),
        ({"generate": {"model": "sft", "server": {"command": "a {model} {port}", "url": "http://x"}}}, "generate.server.command: found command and url"),
        ({"generate": {"model": "m", "server": {"url": "localhost:1"}}}, "generate.server.url: found 'localhost:1'"),
        ({"generate": {"model": "m", "server": {"url": "http://x", "concurrency": 0}}}, "generate.server.concurrency: found 0"),
        ({"generate": {"model": "m", "server": {"url": "http://x", "concurrency": 5000}}}, "generate.server.concurrency: found 5000, expected at most"),
        ({"prompts": {}}, "prompts.path: is empty"),
        ({"prompts": {"path": "nowhere.jsonl"}}, "prompts.path: nowhere.jsonl: no such file"),
        ({"prompts": {"path": "p.jsonl", "rows": 0}}, "prompts.rows: found 0"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_one_line(generated, edit, message):
    dataset(generated.config).update(edit)
    with pytest.raises(ConfigError, match=r"dpo\.data\.datasets\[0\]\." + re.escape(message)) as error:
        generated.plan()
    assert "\n" not in str(error.value)


def test_an_evaluation_by_a_reward(generated):
    def edit(config):
        config["evaluation"]["datasets"].append(
            {"name": "r", "path": "h.jsonl", "transform": "prompt", "score": [{"reward": "mine"}]}
        )

    jobs = changed(generated, edit)
    assert jobs["evaluate"] == ["base", "dpo", "sft"] and "train" not in jobs
    generated.config["evaluation"]["datasets"][0]["score"] = [{"reward": "theirs", "model": "sft"}]
    with pytest.raises(
        ConfigError, match=r"evaluation\.datasets\[0\]\.score\[0\]\.reward: theirs needs a model of its own"
    ):
        generated.plan()


def test_where_a_judge_is_asked_decides_nothing_and_whom_does(generated):
    entry = {"reward": "judge", "url": "http://one/v1", "model_name": "m"}
    dataset(generated.config)["score"] = [entry]
    generated.write()
    generated.complete()
    assert generated.jobs() == {}
    entry |= {"url": "http://another/v1", "concurrency": 3, "request_seconds": 9}
    generated.write()
    assert generated.jobs() == {}
    entry["model_name"] = "another"
    generated.write()
    assert kinds(generated.jobs()) == {"score": ["round1"], **SELECTED}
