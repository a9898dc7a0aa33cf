"""Each thing that an inference program trips over, on a copy of a real export that has it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from post_training.models.files import make_portable
from post_training.release import serving


@pytest.fixture
def folder(exported, tmp_path) -> Path:
    return Path(shutil.copytree(exported.parent, tmp_path / "model"))


@pytest.fixture
def stop(tokenizer) -> list[int]:
    return [tokenizer.eos_token_id]


def change(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_an_export_has_nothing_wrong(folder, stop):
    assert serving.problems(folder, stop) == []


@pytest.mark.parametrize(
    "file,changes,problem",
    [
        ("config.json", {"architectures": None}, "architectures is None"),
        ("config.json", {"dtype": "bfloat16", "torch_dtype": "bfloat16"}, "dtype is 'bfloat16', the weights are F32"),
        ("config.json", {"torch_dtype": None}, "torch_dtype, which Transformers before 4.56 reads, is None"),
        ("config.json", {"rope_theta": 5.0}, "rope_theta, which Transformers 4 reads, is 5.0 and not 10000.0"),
        ("config.json", {"vocab_size": 270}, "vocab_size is 270, but model.embed_tokens.weight has 272 rows"),
        ("config.json", {"vocab_size": 270}, "tokenizer.json: has the id 271, config.json's vocab_size is 270"),
        ("tokenizer_config.json", {"tokenizer_class": "TokenizersBackend"}, "tokenizer_class is 'TokenizersBackend'"),
        ("tokenizer_config.json", {"extra_special_tokens": ["<a>"]}, "extra_special_tokens is a list"),
        ("tokenizer.json", {"pre_tokenizer": None}, "a BPE without pre_tokenizer"),
        ("generation_config.json", {"eos_token_id": 0}, "eos_token_id is 0, without the stop token"),
    ],
)
def test_a_wrong_value(folder, stop, file, changes, problem):
    change(folder / file, **changes)
    found = serving.problems(folder, stop)
    assert any(problem in line for line in found), found
    assert all("\n" not in line and str(folder) in line for line in found)


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja", "model.safetensors.index.json"])
def test_a_missing_file(folder, stop, name):
    (folder / name).unlink()
    (found,) = serving.problems(folder, stop)
    assert name in found


def test_weights_that_are_cut_off_misnamed_or_wrapped(folder, stop):
    first = sorted(folder.glob("*.safetensors"))[0]
    whole = first.read_bytes()
    first.write_bytes(whole[:-10])
    assert any("is cut off" in line for line in serving.problems(folder, stop))
    save_file({f"module.{name}": tensor for name, tensor in load_file_of(whole, first).items()}, first)
    found = serving.problems(folder, stop)
    assert any("does not list the tensors" in line for line in found) and any("wrapper" in line for line in found)
    first.rename(folder / "weights.safetensors")
    assert any(
        "weights are" in line and "expected model.safetensors" in line for line in serving.problems(folder, stop)
    )


def load_file_of(content: bytes, path: Path) -> dict:
    path.write_bytes(content)
    return {name: tensor.clone() for name, tensor in load_file(path).items()}


def test_what_version_5_writes_is_given_version_4s_names(tmp_path):
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0}
    (tmp_path / "config.json").write_text(json.dumps({"dtype": "bfloat16", "rope_parameters": rope}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"extra_special_tokens": ["<a>"]}))
    make_portable(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["torch_dtype"], config["rope_theta"]) == ("bfloat16", 5e5)
    assert config["rope_scaling"] == {"rope_type": "llama3", "factor": 8.0} and config["rope_parameters"] == rope
    assert json.loads((tmp_path / "tokenizer_config.json").read_text()) == {"additional_special_tokens": ["<a>"]}


def test_version_5_reads_either_the_same(tmp_path):
    from transformers import AutoConfig, LlamaConfig

    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope["original_max_position_embeddings"] = 8192
    LlamaConfig(dtype="bfloat16", rope_parameters=rope, architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path)
    before = AutoConfig.from_pretrained(tmp_path).to_dict()
    make_portable(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).to_dict() == before


TRANSFORMERS_4 = os.environ.get("POST_TRAINING_TRANSFORMERS_4", "")


@pytest.mark.slow
@pytest.mark.skipif(not TRANSFORMERS_4, reason="POST_TRAINING_TRANSFORMERS_4 names no folder with transformers 4 in it")
def test_transformers_4_computes_the_same(exported):
    """pip install --target FOLDER --no-deps transformers==4.57.6 huggingface_hub==0.36.0 tokenizers==0.22.1"""
    code = (
        "import sys, json, torch, transformers\n"
        "model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "ids = tokenizer.apply_chat_template([{'role': 'user', 'content': '1 and 2?'}], add_generation_prompt=True)\n"
        "ids = ids if isinstance(ids, list) else ids['input_ids']\n"
        "logits = model(torch.tensor([ids])).logits[0, -1].tolist()\n"
        "stop = model.generation_config.eos_token_id\n"
        "print(json.dumps([transformers.__version__, str(model.dtype), ids, logits, stop]))\n"
    )
    found = []
    for path in (TRANSFORMERS_4, ""):
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [path, os.environ.get("PYTHONPATH")]))}
        done = subprocess.run(
            [sys.executable, "-c", code, str(exported.parent)], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr[-2000:]
        found.append(json.loads(done.stdout.splitlines()[-1]))
    old, new = found
    assert old[0].startswith("4.") and new[0].startswith("5.")
    assert (old[1:3], old[4]) == (new[1:3], new[4])
    assert old[3] == pytest.approx(new[3], abs=1e-5)


def test_parts_that_the_architecture_keeps_in_float32_stay_so(tmp_path, tokenizer, stop):
    import torch
    from tiny import TEMPLATE
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    from post_training.models.loading import load_for_inference
    from post_training.models.packing_probe import two_layers
    from post_training.release.export import write_model

    config = two_layers(CONFIG_MAPPING["deepseek_v3"]())
    config.vocab_size = 512
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path / "start")
    model = load_for_inference(tmp_path / "start", "bfloat16")
    tokenizer.chat_template = TEMPLATE
    write_model(model, tokenizer, tmp_path / "model", "1GB")
    make_portable(tmp_path / "model")
    kinds = {part["dtype"] for part in serving.read_header(tmp_path / "model" / "model.safetensors").values()}
    assert kinds == {"BF16", "F32"}
    assert [line for line in serving.problems(tmp_path / "model", stop) if "dtype" in line] == []


def test_files_beside_the_weights_are_carried_over(tmp_path):
    from post_training.models.files import carry_over

    start, target = tmp_path / "start", tmp_path / "model"
    for folder in (start, target):
        folder.mkdir()
        (folder / "preprocessor_config.json").write_text(folder.name)
    for name in ("processor_config.json", "LICENSE.txt", "modeling_own.py", "optimizer.pt", "README.md", "vocab.json"):
        (start / name).write_text("x")
    assert carry_over(start, target, False) == ["LICENSE.txt", "processor_config.json"]
    assert carry_over(start, target, True) == ["modeling_own.py"]
    assert (target / "preprocessor_config.json").read_text() == "model"
