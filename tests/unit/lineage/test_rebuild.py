"""`recorded_files`: what an export says of local data and models, of every way in which a path names them."""

import json
import shutil
from pathlib import Path

import pytest
from tiny import TEMPLATE, conversation, make_here

from post_training.config import read_config, resolve
from post_training.core.errors import ConfigError
from post_training.core.fingerprint import write_atomically
from post_training.plan import make_plan
from post_training.release.provenance import write_config
from post_training.release.rebuild import leave_out_evaluation, pin_revisions


def write(path: Path, *numbers: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"messages": conversation(n)}) + "\n" for n in numbers))


@pytest.fixture
def config(tmp_path, monkeypatch, model_manifest) -> dict:
    """A list of paths, a folder, a saved DatasetDict whose other split is held out, and a model's folder."""
    from datasets import Dataset, DatasetDict

    monkeypatch.chdir(tmp_path)
    shutil.copytree(model_manifest.parent / "model", "own-model")
    for name in ("own-model", "x", "y"):
        Path(name).mkdir(exist_ok=True)
    write(Path("x/train.jsonl"), 1, 2, 3)
    write(Path("y/train.jsonl"), 4, 5, 6)
    write(Path("folder/part-1.jsonl"), 7, 8)
    rows = {split: Dataset.from_list([{"messages": conversation(n)}]) for split, n in (("train", 11), ("test", 12))}
    DatasetDict(rows).save_to_disk("saved")
    Path("one.jinja").write_text(TEMPLATE)
    write(Path("asked.jsonl"), 21)
    write(Path("against.jsonl"), 22)
    Path("prompts.jsonl").write_text('{"prompt": "1 and 2?"}\n')
    Path("tasks").mkdir()
    Path("tasks/own.yaml").write_text("task: own\n")
    Path("zero.yaml").write_text("zero_optimization: {stage: 2, overlap_comm: true}\n")
    return {
        "method": "sft",
        "model": {"name_or_path": "own-model", "dtype": "float32"},
        "training": {"max_steps": 1, "effective_batch_size": 1},
        "data": {
            "chat_template": "one.jinja",
            "filters": {"decontaminate": True, "decontaminate_against": ["against.jsonl"]},
            "datasets": [
                {"name": "list", "path": ["x/train.jsonl", "y/train.jsonl"]},
                {"name": "folder", "path": "folder"},
                {"name": "saved", "path": "saved", "eval_split": "test"},
            ],
        },
        "deepspeed": {"config_path": "zero.yaml", "config": {"zero_optimization": {"overlap_comm": False}}},
        "sft": {"max_seq_length": 64},
        "evaluation": {
            "datasets": [{"name": "asked", "path": "asked.jsonl"}],
            "prompts": "prompts.jsonl",
            "lm_eval": {"tasks": ["own"], "include_path": "tasks"},
        },
    }


@pytest.fixture
def exported(config) -> dict:
    """The configuration that an export would write, after a training that has done nothing."""
    plan = make_plan(resolve(config))
    train = plan.trained["sft"]
    make_here(plan, *train.inputs.values())
    train.task(plan.base).finish(files=[])
    write_atomically(plan.base / train.directory / "config.yaml", json.dumps(plan.pipeline.frozen("sft")))
    write_config(plan.exported["sft"].task(plan.base), Path("model"))
    return read_config(Path("model/config.yaml"))


def test_what_an_export_says_is_what_a_plan_asks_for(exported, config):
    recorded = exported["recorded_files"]
    data = ["folder", "saved", "saved (test)", "x/train.jsonl, y/train.jsonl"]
    assert list(recorded) == sorted([*data, "own-model", "against.jsonl", "asked.jsonl"])
    assert [name for name, _ in recorded["x/train.jsonl, y/train.jsonl"]] == ["train.jsonl", "train.jsonl"]
    assert "model.safetensors" in dict(recorded["own-model"])
    make_plan(resolve(config | {"recorded_files": recorded}))
    for path, expected in (
        ("y/train.jsonl", "sft.data.datasets[0].path: x/train.jsonl, y/train.jsonl: train.jsonl has other content"),
        ("folder/part-1.jsonl", "sft.data.datasets[1].path: folder: part-1.jsonl has other content"),
        ("against.jsonl", "filters.decontaminate_against: against.jsonl: against.jsonl has other content"),
        ("asked.jsonl", "evaluation.datasets[0].path: asked.jsonl: asked.jsonl has other content"),
        ("own-model/config.json", "model.name_or_path: own-model: config.json has other content"),
    ):
        whole = Path(path).read_bytes()
        Path(path).write_bytes(whole + b"\n")
        with pytest.raises(ConfigError) as error:
            make_plan(resolve(config | {"recorded_files": recorded}))
        assert expected in str(error.value) and "\n" not in str(error.value)
        Path(path).write_bytes(whole)
    shard = next(Path("saved/test").glob("*.arrow"))
    shard.write_bytes(shard.read_bytes() + b"x")
    with pytest.raises(ConfigError, match=r"saved \(test\): .* has other content than recorded"):
        make_plan(resolve(config | {"recorded_files": recorded}))


def test_a_path_that_is_replaced_is_not_looked_at(exported, config):
    write(Path("folder/part-1.jsonl"), 9)
    shutil.copytree("folder", "elsewhere")
    config["data"]["datasets"][1]["path"] = "elsewhere"
    make_plan(resolve(config | {"recorded_files": exported["recorded_files"]}))


def test_code_comes_along_as_it_was_used(exported):
    section = exported["sft"]
    assert section["data"]["chat_template"].endswith("provenance/one.jinja")
    assert Path("model/provenance/one.jinja").read_text() == TEMPLATE
    assert section["deepspeed"]["config_path"] is None
    assert section["deepspeed"]["config"] == {"zero_optimization": {"stage": 2, "overlap_comm": False}}


def test_nothing_is_needed_that_only_measures(exported):
    Path("prompts.jsonl").unlink()
    shutil.rmtree("tasks")
    plan = make_plan(resolve(exported))
    assert not plan.lm_evaluated
    (stage,) = [stage for stage in plan.stages["transform"].values() if stage.label == "asked"]
    assert all(stage in filtered.inputs.values() for filtered in plan.stages["filter"].values()), (
        "what decides rows stays"
    )
    exported["sft"]["data"]["filters"]["decontaminate"] = False
    leave_out_evaluation([(exported["sft"], {})])
    assert exported["sft"]["evaluation"]["datasets"] == []


def test_revisions_are_commits():
    """Of an evaluation's datasets, too: they have decided which rows were trained on."""
    entries = [
        {"path": f"org/{name}", "revision": revision} for name, revision in (("a", None), ("b", "v1"), ("c", None))
    ]
    hubs = [{"path": "org/a", "revision": None}, {"path": "org/b", "revision": "v1"}]
    hubs.append({"name_or_path": "org/model", "revision": "main"})
    stages = {str(n): {"config": {"hub": hub}, "revision_sha": f"{n}" * 40} for n, hub in enumerate(hubs)}
    section = {"data": {"datasets": entries[:1]}, "evaluation": {"datasets": entries[1:]}}
    section["model"] = {"name_or_path": "org/model", "revision": None, "attn_implementation": "sdpa"}
    pin_revisions([(section, {})], stages)
    found = [entry["revision"] for entry in (*entries, section["model"])]
    assert found == ["0" * 40, "1" * 40, None, "2" * 40]
