import hashlib
import json
import re
import stat
from pathlib import Path

import pytest
from tiny import build_task, task

from post_training import models
from post_training.core.errors import ConfigError, DataError, UserError
from post_training.core.fingerprint import file_sha256
from post_training.data import registry
from post_training.models import build, download
from post_training.models.files import cast_weights, stop_tokens
from post_training.plan.models import new_tokens


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_equal_configuration_gives_equal_bytes_and_a_seed_other_weights(tmp_path, corpus, model_manifest):
    again = tmp_path / "again" / "manifest.json"
    build.run(build_task(again, corpus))
    first = digests(models.folder(model_manifest))
    assert digests(models.folder(again)) == first
    other = tmp_path / "other" / "manifest.json"
    build.run(build_task(other, corpus, seed=1))
    changed = {name for name, sha in digests(models.folder(other)).items() if sha != first[name]}
    assert changed == {"model.safetensors"}


def test_the_tokenizer_has_its_control_tokens_and_loses_nothing(tokenizer, model_manifest):
    assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token) == ("<|endoftext|>", "<|im_end|>", None)
    text = "12 naïve 世界\n\t<|im_start|>x"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer("2026", add_special_tokens=False)["input_ids"]) == 4
    saved = json.loads((models.folder(model_manifest) / "tokenizer_config.json").read_text())
    assert saved["tokenizer_class"] == "PreTrainedTokenizerFast"  # Transformers 4 knows no TokenizersBackend
    assert stop_tokens(tokenizer, "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}") == [
        tokenizer.eos_token_id
    ]
    assert stop_tokens(tokenizer, "{% for m in messages %}{{ m.content }} <|endoftext|>{% endfor %}") == [2, 0]


def test_files_are_readable_by_the_group(model_manifest):
    for path in models.folder(model_manifest).iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_moved_tree_still_has_its_model(tmp_path, corpus):
    output = tmp_path / "here" / "manifest.json"
    build.run(build_task(output, corpus))
    (tmp_path / "here").rename(tmp_path / "there")
    moved = tmp_path / "there" / "manifest.json"
    assert (models.folder(moved) / "config.json").is_file()
    (models.folder(moved) / "config.json").unlink()
    with pytest.raises(UserError, match="is gone; delete that manifest"):
        models.folder(moved)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            {"config": {"hiden_size": 64}},
            "model.from_scratch.config.hiden_size: unknown for llama. Did you mean 'hidden_size'?",
        ),
        ({"config": {"hidden_size": "big"}}, "model.from_scratch.config.hidden_size: "),
        (
            {"config": {"hidden_size": 65, "num_attention_heads": 2}},
            "model.from_scratch.config: ValueError: The hidden size (65)",
        ),
        ({"config": {"vocab_size": 9}}, "model.from_scratch.config.vocab_size: give model.from_scratch.vocab_size"),
        ({"model_type": "lama"}, "model.from_scratch.model_type: found 'lama'. Did you mean 'llama'?"),
    ],
)
def test_impossible_architectures_are_one_line(tmp_path, corpus, weights, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        build.run(build_task(tmp_path / "m" / "manifest.json", corpus, **weights))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "m" / "manifest.json").exists()


def test_a_vocabulary_below_the_bytes_is_refused(tmp_path, corpus):
    wrong = build_task(tmp_path / "m" / "manifest.json", corpus)
    wrong.config["vocab_size"] = 100
    with pytest.raises(ConfigError, match=r"vocab_size: found 100, expected 259 or more"):
        build.run(wrong)


def local_task(tmp_path: Path, folder: Path) -> download.Task:
    names = sorted(path.name for path in folder.iterdir())
    config = {"sha256": [[name, file_sha256(folder / name)] for name in names]}
    runtime = {"folder": str(folder), "offline": True, "trust_remote_code": False}
    return task("download_model", config, runtime, {}, tmp_path / "models" / "m" / "manifest.json")


def test_a_local_folder_is_used_where_it_is(tmp_path, model_manifest):
    folder = models.folder(model_manifest)
    planned = local_task(tmp_path, folder)
    download.run(planned)
    assert models.folder(planned.output) == folder.resolve()
    told = json.loads(planned.output.read_text())
    assert {Path(entry["path"]).name for entry in told["files"]} >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }


def test_a_folder_that_changed_since_planning_is_refused(tmp_path, corpus):
    output = tmp_path / "m" / "manifest.json"
    build.run(build_task(output, corpus))
    planned = local_task(tmp_path, models.folder(output))
    (models.folder(output) / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"config\.json: changed since the run was planned"):
        download.run(planned)


@pytest.mark.parametrize(
    ("gone", "message"), [("tokenizer.json", "AutoTokenizer"), ("model.safetensors", "has no weights")]
)
def test_an_unusable_folder_is_refused_with_the_remedy(tmp_path, corpus, gone, message):
    output = tmp_path / "m" / "manifest.json"
    build.run(build_task(output, corpus))
    (models.folder(output) / gone).unlink()
    with pytest.raises(UserError, match=message):
        download.run(local_task(tmp_path, models.folder(output)))


def test_what_is_fetched_of_a_repository():
    files = [
        "config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json",
        "pytorch_model.bin", "pytorch_model.bin.index.json", "tokenizer.json", "modeling_x.py", "onnx/model.onnx", "README.md",
        "flax_model.msgpack", "LICENSE", "original/consolidated.00.pth", "original/params.json", "merges.txt", "training_args.bin",
    ]  # fmt: skip
    wanted = [
        "LICENSE", "README.md", "config.json", "merges.txt", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
        "model.safetensors.index.json", "tokenizer.json",
    ]  # fmt: skip
    assert download.wanted_files(files, trust_remote_code=False) == wanted
    assert "modeling_x.py" in download.wanted_files(files, trust_remote_code=True)
    old = ["config.json", "pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json", "training_args.bin"]
    assert download.wanted_files(old, trust_remote_code=False) == old[:3]


def hub_task(tmp_path: Path, **runtime) -> download.Task:
    config = {"hub": {"name_or_path": "org/tiny", "revision": "main"}}
    told = {"offline": True, "trust_remote_code": False} | runtime
    return task("download_model", config, told, {}, tmp_path / "models" / "org--tiny" / "manifest.json")


def test_offline_a_hub_model_comes_from_the_cache(tmp_path, model_manifest, monkeypatch):
    import huggingface_hub

    sha = "a" * 40
    cached = tmp_path / "cache" / "snapshots" / sha
    cached.mkdir(parents=True)
    for path in models.folder(model_manifest).iterdir():
        (cached / path.name).symlink_to(path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(cached))
    planned = hub_task(tmp_path)
    download.run(planned)
    told = json.loads(planned.output.read_text())
    assert (told["revision_sha"], told["folder"]) == (sha, "snapshot")
    assert digests(models.folder(planned.output)) == digests(models.folder(model_manifest))


@pytest.mark.parametrize(
    "error, message",
    [
        (OSError("no route\nto host"), r"org/tiny@main: cannot be fetched .*no route to host.*give a local folder"),
        ("GatedRepoError", "org/tiny@main: is gated; ask for access on its page and set HF_TOKEN"),
        ("RepositoryNotFoundError", "org/tiny@main: not found .*; check model.name_or_path, or set HF_TOKEN"),
        ("RevisionNotFoundError", "org/tiny@main: has no revision 'main'; name a branch"),
    ],
)
def test_a_failed_download_is_one_line(tmp_path, monkeypatch, error, message):
    import huggingface_hub
    from huggingface_hub import errors

    if isinstance(error, str):
        kind = getattr(errors, error)
        error = kind.__new__(kind, "401 Client Error")

    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(UserError, match=message):
        download.run(hub_task(tmp_path))
    (tmp_path / "adapter_config.json").touch()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    remedy = r"`hf download org/tiny --local-dir tiny`, and name \./tiny: they are merged into their model"
    with pytest.raises(UserError, match=rf"org/tiny: holds adapters and no model; fetch them with {remedy}"):
        download.run(hub_task(tmp_path))


def test_weights_are_cast(tmp_path, corpus):
    from safetensors.torch import load_file

    output = tmp_path / "m" / "manifest.json"
    build.run(build_task(output, corpus))
    cast_weights(models.folder(output), "bfloat16")
    tensors = load_file(models.folder(output) / "model.safetensors")
    assert {str(tensor.dtype) for tensor in tensors.values()} == {"torch.bfloat16"}
    assert json.loads((models.folder(output) / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("name", registry.chat_template_names())
def test_a_new_tokenizer_has_the_tokens_of_its_template(tmp_path, corpus, name):
    """Each shipped template works with a model from scratch: it ends an answer with one token, which stops generation."""
    from transformers import AutoTokenizer

    from post_training.data.tokens.blocks import Settings, Tokenization, check_template

    tokens = new_tokens(name)
    tokenizer = build.train_tokenizer([corpus], 300, tokens)
    tokenizer.save_pretrained(tmp_path)
    text = registry.chat_template_text(name)
    last = check_template(Tokenization(tmp_path, Settings(text, "messages")))
    assert last == tokenizer.eos_token_id and tokenizer.pad_token_id == 0 != last
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert stop_tokens(loaded, text) == [last]
    for token in registry.template_tokens(text).needed:
        assert len(loaded(token, add_special_tokens=False)["input_ids"]) == 1


def test_a_template_that_the_tokenizer_does_not_fit(tmp_path, corpus):
    from post_training.data.tokens.blocks import Settings, Tokenization, check_template

    build.train_tokenizer([corpus], 300, new_tokens("chatml")).save_pretrained(tmp_path)
    with pytest.raises(
        DataError, match=r"has no <\|start_header_id\|>, .*<\|eot_id\|>, which the template writes; choose"
    ):
        check_template(Tokenization(tmp_path, Settings(registry.chat_template_text("llama3"), "messages")))
    with pytest.raises(ConfigError, match=r"data\.chat_template: found 'tokenizer', but .*from_scratch"):
        new_tokens("tokenizer")
