"""What an input is, its files decide, wherever it lies and however its path is written: one changed byte is another input."""

import copy
import os

import pytest

from post_training.core.errors import ConfigError

PLACES = {
    "plain": lambda base: (base / "plain", "plain"),
    "below the parent": lambda base: (base.parent / f"{base.name}-beside", f"../{base.name}-beside"),
    "in a hidden folder": lambda base: (base / ".cache" / "snapshots", ".cache/snapshots"),
    "behind a link": lambda base: (base / "target", "link"),
    "with a blank": lambda base: (base / "a folder", "a folder"),
    "not ASCII": lambda base: (base / "Größe-数据", "Größe-数据"),
    "absolute": lambda base: (base / "absolute", str(base / "absolute")),
    "dots within": lambda base: (base / "dots", "dots/../dots/."),
}


def _model(folder):
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"\0" * 64)


def _rows(folder, name="rows.jsonl"):
    (folder / name).write_text('{"messages": []}\n')


def _module(folder):
    (folder / "helper.py").write_text("X = 1\n")
    (folder / "lib").mkdir(exist_ok=True)
    (folder / "lib" / "__init__.py").write_text("Y = 1\n")
    text = "from post_training.data.transforms import register_transform\nimport helper\nfrom lib import Y\nZ = 1\n"
    (folder / "own.py").write_text(f"{text}@register_transform('own')\ndef own(row):\n    return row\n")


def _deepspeed(folder):
    (folder / "zero.yaml").write_text("zero_optimization: {stage: 2}\n")


# Kind of input -> (makes its files, how a configuration names them, the files of which each decides).
def _model_key(config, path):
    config["model"] = {"name_or_path": path, "dtype": "float32"}


def _reference_key(config, path):
    config["dpo"] |= {"ref_model_name_or_path": path, "reference": "stored"}


def _data_key(config, path):
    config["data"]["datasets"][0]["path"] = path


def _file_key(config, path):
    config["data"]["datasets"][0]["path"] = os.path.join(path, "rows.jsonl")


def _glob_key(config, path):
    config["data"]["datasets"][0]["path"] = os.path.join(path, "*.jsonl")


def _held_key(config, path):
    config["data"]["datasets"][0]["eval_split"] = os.path.join(path, "rows.jsonl")


def _corpus_key(config, path):
    config["model"]["from_scratch"]["corpus"] = [os.path.join(path, "rows.jsonl")]


def _against_key(config, path):
    against = [os.path.join(path, "rows.jsonl")]
    config["data"]["filters"] = {"decontaminate": True, "decontaminate_against": against}


def _module_key(config, path):
    config["data"]["transform_modules"].append(os.path.join(path, "own.py"))
    config["data"]["datasets"][0]["transform"] = "own"


def _deepspeed_key(config, path):
    config["deepspeed"] = {"config_path": os.path.join(path, "zero.yaml")}


KINDS = {
    "model": (_model, _model_key, ["config.json", "tokenizer.json", "model.safetensors"]),
    "reference model": (_model, _reference_key, ["config.json", "model.safetensors"]),
    "folder of data": (_rows, _data_key, ["rows.jsonl"]),
    "file of data": (_rows, _file_key, ["rows.jsonl"]),
    "glob": (_rows, _glob_key, ["rows.jsonl"]),
    "held-out file": (_rows, _held_key, ["rows.jsonl"]),
    "corpus": (_rows, _corpus_key, ["rows.jsonl"]),
    "decontamination": (_rows, _against_key, ["rows.jsonl"]),
    "module": (_module, _module_key, ["own.py", "helper.py", "lib/__init__.py"]),
    "DeepSpeed": (_deepspeed, _deepspeed_key, ["zero.yaml"]),
}


def _fingerprints(project) -> set[str]:
    return {stage.fingerprint for stages in project.graph().stages.values() for stage in stages.values()}


@pytest.mark.parametrize("kind", KINDS)
def test_one_byte_is_another_input_in_any_place(project, kind):
    make, name_in, files = KINDS[kind]
    before = copy.deepcopy(project.config)
    found = {}
    for place, where in PLACES.items():
        folder, path = where(project.path)
        folder.mkdir(parents=True)
        if place == "behind a link":
            (project.path / "link").symlink_to(folder)
        make(folder)
        for written in (path, f"{path}/") if kind in ("model", "reference model", "folder of data") else (path,):
            project.config = copy.deepcopy(before)
            name_in(project.config, written)
            whole = _fingerprints(project)
            found.setdefault(place, whole)
            for file in files:
                content = (folder / file).read_bytes()
                (folder / file).write_bytes(_changed(content))
                assert _fingerprints(project) != whole, (place, written, file)
                (folder / file).write_bytes(content)
                assert _fingerprints(project) == whole
    if kind not in ("DeepSpeed", "module"):  # and where it lies does not decide what it is
        project.config = before
        downloads = {place: len(one & found["plain"]) for place, one in found.items()}
        assert len(set(downloads.values())) <= 2, downloads  # the name of a folder is in labels, not in fingerprints


def _changed(content: bytes) -> bytes:
    for old, new in ((b"1", b"2"), (b"2", b"3"), (b"{}", b"[]"), (b"[]", b"{}"), (b"\0", b"\1"), (b"llama", b"qwen2")):
        if old in content:
            return content.replace(old, new, 1)
    raise AssertionError(content)


def test_an_input_without_a_file_is_an_error(project):
    empty = project.path / "weights"
    empty.mkdir()
    (empty / "config.json").symlink_to("config.json.missing")
    project.config["model"] = {"name_or_path": "weights", "dtype": "float32"}
    with pytest.raises(ConfigError, match=r"model\.name_or_path: weights"):
        project.graph()
