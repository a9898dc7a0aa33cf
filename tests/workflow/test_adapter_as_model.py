"""A folder of adapters as the starting model: a stage merges it, named by its files and its model's."""

import json

import pytest

from post_training.core.errors import ConfigError


@pytest.fixture
def adapters(project):
    """The project with adapters in `tuned`, for the model in `base`."""
    base, tuned = project.path / "base", project.path / "tuned"
    for folder in (base, tuned):
        folder.mkdir()
    (base / "config.json").write_text('{"model_type": "llama"}')
    (base / "tokenizer.json").write_text("{}")
    (base / "model.safetensors").write_bytes(b"0" * 64)
    settings = {"peft_type": "LORA", "base_model_name_or_path": str(base)}
    (tuned / "adapter_config.json").write_text(json.dumps(settings))
    (tuned / "adapter_model.safetensors").write_bytes(b"1" * 64)
    project.config["model"] = {"name_or_path": "tuned", "dtype": "float32"}
    project.write()
    return project


def merged(project):
    ((_, stage),) = project.plan().stages["merge_adapter"].items()
    return stage


def test_its_jobs(adapters):
    jobs = adapters.jobs("all")
    assert [names[0].partition("@")[0] for names in (jobs["download_model"], jobs["merge_adapter"])] == [
        "base",
        "tuned",
    ]
    plan = adapters.plan()
    start = plan.trained["sft"].inputs["model"]
    assert start.fingerprint == merged(adapters).fingerprint and start.inputs["base"].kind == "download_model"
    adapters.complete()
    assert adapters.jobs("all") == {}


@pytest.mark.parametrize(
    ("file", "again"),
    [("tuned/adapter_model.safetensors", True), ("tuned/adapter_config.json", True), ("base/model.safetensors", True), ("tuned/optimizer.pt", False)],
)  # fmt: skip
def test_what_decides_it(adapters, file, again):
    before = merged(adapters)
    path = adapters.path / file
    path.write_bytes((path.read_bytes() if path.exists() else b"") + b" ")
    after = merged(adapters)
    assert (after.fingerprint != before.fingerprint) == again
    assert after.config["tokenizer"] == before.config["tokenizer"]  # so that no row is tokenised again


def test_a_tokenizer_of_its_own_and_adapters_of_adapters(adapters):
    before = merged(adapters)
    (adapters.path / "tuned" / "tokenizer.json").write_text('{"other": 1}')
    assert merged(adapters).config["tokenizer"] != before.config["tokenizer"]
    more = adapters.path / "more"
    more.mkdir()
    (more / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(adapters.path / "tuned")}))  # fmt: skip
    (more / "adapter_model.safetensors").write_bytes(b"2")
    adapters.config["model"]["name_or_path"] = "more"
    start = adapters.plan().trained["sft"].inputs["model"]
    assert [start.label, start.inputs["base"].label, start.inputs["base"].inputs["base"].label] == [
        "more",
        "tuned",
        "base",
    ]
    (adapters.path / "tuned" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(more)}))  # fmt: skip
    with pytest.raises(ConfigError, match=r"model\.name_or_path: .*is its own model"):
        adapters.plan()


def test_a_model_of_the_hub(adapters):
    file = adapters.path / "tuned" / "adapter_config.json"
    file.write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "org/name", "revision": "v2"}))
    base = merged(adapters).inputs["base"]
    assert base.config["hub"] == {"name_or_path": "org/name", "revision": "v2"}
