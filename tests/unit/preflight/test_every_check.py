"""Every check there is fires on a configuration that deserves it, and says nothing of a sound one: the whole body, a stage at a time."""

import dataclasses
import json
import shutil
import subprocess
import sys

import pytest
from safetensors.torch import load_file, save_file
from test_preflight_gpu import NODE
from tiny import TEMPLATE, task

from post_training import preflight
from post_training.core import manifest
from post_training.core.devices import Device
from post_training.core.format import GIB
from post_training.models.parts import Parts
from post_training.preflight import libraries
from post_training.preflight.check import NAMES
from post_training.preflight.subject import Measurement
from post_training.slurm import check, cluster

SLOW = [Measurement("a test", 100.0, 8)]
NO_STOP = TEMPLATE.replace(
    "m.content + '<|im_end|>' }}{% endgeneration %}", "m.content }}{% endgeneration %}{{ '<|im_end|>' }}"
)
# Check -> what makes it fire: arguments of `checked`.
CASES = {
    "assets.rows": {"mix": {"files": [{"path": "gone.npy", "bytes": 1}]}},
    "assets.model": {"weights": False},
    "assets.kernel": {"kernel": "changed"},
    "model.weights": {"weights": False},
    "model.ids": {"vocabulary": 250},
    "model.adapters": {"model__lora": {"r": 8, "alpha": 16.0, "dropout": 0.0, "target_modules": ["q_porj"]}},
    "model.chat_tokens": {"model__lora": {}, "alike": True, "shape": {"vocabulary": 272, "hidden": 64, "parts": Parts(embedding="embed_tokens")}},
    "model.step": {"training__trainer_args": {"optim": "lomo"}},
    "template.markers": {"template": TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}", "")},
    "template.stop_token": {"template": NO_STOP},
    "template.same_text_always": {"template": "{{ range(9) | random }}" + TEMPLATE},
    "template.prefix_stable": {
        "template": TEMPLATE.replace("{% for m in messages %}", "{% for m in messages %}{% if not loop.last %}~{% endif %}")
    },
    "template.generation_prompt": {"template": TEMPLATE.replace("{% generation %}", "{{ 'Answer: ' }}{% generation %}")},
    "template.single_ids": {"template": TEMPLATE.replace("{% for", "{{ '<|begin_of_text|>' }}{% for", 1)},
    "template.beginning": {"bos": "<|endoftext|>", "template": "{{ bos_token }}" * 2 + TEMPLATE},
    "template.as_exported": {"made_with": TEMPLATE + "{# older #}"},
    "data.trained_share": {"mix": {"table": [{"name": "d", "tokens": 1000, "trained_tokens": 0, "rows_in": 1000}]}},
    "data.rows_without_trained_token": {"mix": {"dropped": {"no_trained_token": 30}}},
    "data.longest_row": {"mix": {"longest_document": 4097}},
    "data.dropped": {"mix": {"dropped": {"too_long": 90}}},
    "data.duplicates_of_held_out": {"mix": {"held_out": {"rows": 9, "duplicates": 20}}},
    "data.contradictory_pairs": {"method": "dpo", "mix": {"contradictory": {"rows": 40, "examples": []}}},
    "optimisation.batch": {"training__effective_batch_size": 30},
    "optimisation.epochs": {"training__num_train_epochs": 40},
    "optimisation.warmup": {"training__warmup_ratio": 0.0},
    "optimisation.learning_rate": {"training__learning_rate": 2.0},
    "optimisation.beta": {"method": "dpo", "dpo__beta": 5.0, "dpo__allow_implausible": True},
    "optimisation.schedule": {"training__lr_scheduler_kwargs": {"num_decay": 1}},
    "libraries.arguments": {"training__trainer_args": {"adam_beta3": 1}},
    "libraries.number_format": {"gpu": Device("v100-32", 32 * GIB, 1e14)},
    "libraries.attention": {"model__attn_implementation": "flash_attention_2"},
    "libraries.packing": {"model_type": "mamba"},
    "libraries.kernels": {"training__use_liger_kernel": True},
    "libraries.quantization": {"model__lora": {}, "model__quantization": {}, "no_bitsandbytes": True},
    "libraries.deepspeed": {"deepspeed__config": {"zero_optimization": {"stage": 5}}},
    "gpu.driver": {"node": {"driver_cuda": "12.4"}},
    "gpu.capability": {"gpu": Device("v100-32", 32 * GIB, 1e14)},
    "gpu.compiler": {"node": {"python_h": False}},
    "resources.memory": {"gpu": Device("l4", 24 * GIB, 1e12)},
    "resources.inference": {"gpu": Device("small", GIB // 4, 1e12)},
    "resources.time": {"gpu": Device("unknown GPU", None, None)},
    "resources.checkpoint_interval": {"rates": SLOW, "checkpointing__save_steps": 20},
    "resources.wall_time": {"rates": SLOW, "slurm__wall_time": "00:20:00"},
    "resources.disk": {"checkpointing__save_steps": 1, "checkpointing__save_total_limit": None, "training__max_steps": 10**7},
    "resources.slurm": {"refusal": "sbatch: error: invalid partition specified: gpu"},
}  # fmt: skip


class _Seen:
    """Stands for the templates that were checked already: all of them."""

    def __contains__(self, _):
        return True

    def add(self, _):
        """Nothing to remember."""


@pytest.fixture
def checked(subject_of, model_manifest, tmp_path, monkeypatch):
    """A stage with what is not sound about it -> everything that a preflight under Slurm finds."""
    monkeypatch.setattr(check, "_check_torch", lambda job: None)  # this build may have no support for GPUs
    monkeypatch.setattr(libraries, "installed", lambda package: package == "deepspeed")

    def run(
        method="sft",
        *,
        template=None,
        made_with=None,
        weights=True,
        refusal="",
        rates=(),
        mix=None,
        seen=None,
        model_type=None,
        vocabulary=None,
        bos=None,
        alike=False,
        no_bitsandbytes=False,
        kernel="sound",
        node=None,
        **changes,
    ):
        if no_bitsandbytes:
            monkeypatch.setitem(sys.modules, "bitsandbytes", None)
        monkeypatch.setattr(
            cluster, "run", lambda *words: subprocess.CompletedProcess(words, int(bool(refusal)), "", refusal)
        )
        text = tmp_path / "asked.jinja"
        text.write_text(template or TEMPLATE)
        tokens = tmp_path / "data" / "tokenized" / "d" / "manifest.json"
        tokens.parent.mkdir(parents=True, exist_ok=True)
        told = {"config": {"chat_template": made_with or text.read_text()}, "dropped": {}, "inputs": {}}
        tokens.write_text(json.dumps(told))
        model = model_manifest
        if not weights:
            model = shutil.copytree(model_manifest.parent, tmp_path / "bare") / model_manifest.name
            for file in model.parent.rglob("*.safetensors"):
                file.unlink()
        if vocabulary:
            model = shutil.copytree(model_manifest.parent, tmp_path / "smaller") / model_manifest.name
            config = json.loads((model.parent / "model" / "config.json").read_text())
            (model.parent / "model" / "config.json").write_text(json.dumps(config | {"vocab_size": vocabulary}))
        facts = {"inputs": {"d": {"path": str(tokens)}}, "contradictory": {"rows": 0, "examples": []}} | (mix or {})
        folder = model_manifest.parent / "model"
        if model_type:
            folder = shutil.copytree(folder, tmp_path / "other")
            (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
        if alike:
            folder = shutil.copytree(folder, tmp_path / "alike")
            tensors = load_file(folder / "model.safetensors")
            tensors["model.embed_tokens.weight"][[1, 2]] = tensors["model.embed_tokens.weight"][[5, 5]]
            save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        if bos:
            folder = shutil.copytree(folder, tmp_path / "with_bos")
            config = json.loads((folder / "tokenizer_config.json").read_text())
            (folder / "tokenizer_config.json").write_text(json.dumps(config | {"bos_token": bos}))
        subject = subject_of(method, mix=facts, folder=folder, data__chat_template=str(text), **changes)
        subject.rates = list(rates)
        subject.node = dataclasses.replace(NODE, **node) if node else None
        output = tmp_path / "outputs" / "preflight" / "p" / "manifest.json"
        own = tmp_path / "kernels" / "k" / "manifest.json"
        own.parent.mkdir(parents=True, exist_ok=True)
        own.with_name("a.py").write_text("sound")
        facts = {"files": manifest.describe(own.parent, [own.with_name("a.py")])}
        own.write_text(json.dumps({"repository": "org/k", "revision_sha": "a" * 40, **facts}))
        own.with_name("a.py").write_text(kernel)
        inputs = {f"{method} model": model, f"{method} data": subject.data, f"{method} kernel": own}
        asked = task("preflight", {}, {}, inputs, output)
        return preflight._checks_of(subject, seen or set(), True) + preflight._general_checks(asked, [subject], True)

    return run


def test_there_is_a_case_for_every_check():
    assert set(CASES) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_fires(checked, name):
    seen = None if name.startswith("template.") else _Seen()
    found = [one for one in checked(**CASES[name], seen=seen) if one.name == name]
    assert "ok" not in {one.verdict for one in found} and found, found
    assert all(one.remedy or ":" in one.value for one in found), found


def test_a_sound_run_lists_every_check_as_ok(checked):
    found = [*checked("sft"), *checked("dpo")]
    assert [one.line() for one in found if one.verdict != "ok"] == []
    assert {one.name for one in found} == set(NAMES)
