"""Every file of config/recipes: it plans, its arithmetic is the published one, and at toy size the whole of it runs."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import conversation, losses_of, make_here

from post_training.config import batch, load_file, resolve
from post_training.core import manifest
from post_training.core.errors import ConfigError
from post_training.plan import make_plan

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "config" / "recipes").glob("*.yaml"))
NAMES = [file.stem for file in FILES]
HEADER = ("Source", "Hardware", "Steps", "Tokens", "GPU-hours", "Traps")
# Rows an epoch (packed rows where a row is packed), and the optimizer steps that the authors give or that follow from
# what they give; the header of each recipe names the source.
PUBLISHED = {
    ("tulu3-8b", "sft"): (939_344, 14_677),
    ("tulu3-8b", "dpo"): (270_080, 2_110),
    ("olmo2-1b", "sft"): (866_138, 13_534),
    ("olmo2-1b", "dpo"): (378_341, 2_956),
    ("olmo3-7b-instruct", "sft"): (1_723 * 32, 2 * 1_723),
    ("olmo3-7b-instruct", "dpo"): (260_000, 2_032),
    ("zephyr-7b", "sft"): (207_865 + 23_110 - 1_000, 1_797),
    ("zephyr-7b", "dpo"): (61_135 + 2_000 - 2_000, 478),
    ("smollm2-1.7b", "sft"): (1_043_917, 16_312),
    ("smollm2-1.7b", "dpo"): (61_135, 1_433),
    ("smollm3-3b", "sft"): (round(1.8e9 / 65_536), 1_073),
    ("smollm3-3b", "dpo"): (round(0.5 * 230_501) + round(0.25 * 216_385), 5_293),
    **{("llama3-8b-online", stage): (20_000, 313) for stage in ("dpo", "dpo2", "dpo3")},
}
WARMUP = {("tulu3-8b", "dpo"): 211}  # NeMo-RL's reproduction: 211 + 1,899 steps
WARMUP |= {("llama3-8b-online", stage): 0 for stage in ("dpo", "dpo2", "dpo3")}
STAGES = {name: [stage for recipe, stage in PUBLISHED if recipe == name] for name, _ in PUBLISHED}
LOSSES = {
    "tulu3-8b": ("sigmoid_norm", 5.0),
    "olmo2-1b": ("sigmoid_norm", 5.0),
    "olmo3-7b-instruct": ("sigmoid_norm", 5.0),
    "zephyr-7b": ("sigmoid", 0.01),
    "smollm2-1.7b": ("sigmoid", 0.5),
    "smollm3-3b": ("apo_zero", 0.05),
    "llama3-8b-online": ("sigmoid", 0.1),
}
TEMPLATES = {
    "tulu3-8b": "tulu3",
    "olmo2-1b": "olmo",
    "olmo3-7b-instruct": "chatml",
    "zephyr-7b": "zephyr",
    "smollm2-1.7b": "chatml",
    "smollm3-3b": "qwen3",
    "llama3-8b-online": "llama3",
}


def sources(file: dict) -> list[dict]:
    """What is read of each dataset: its rows, or the prompts that a model answers."""
    sections = [file[stage] for stage in STAGES[file["run_name"]]]
    return [entry.get("prompts", entry) for section in sections for entry in section["data"]["datasets"]]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """No asset is here: an empty working directory and an empty cache of the Hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.delenv("HUGGINGFACE_HUB_CACHE", raising=False)


def recipe(name: str) -> dict:
    return load_file(ROOT / "config" / "recipes" / f"{name}.yaml")


def header(name: str) -> dict[str, str]:
    lines = (ROOT / "config" / "recipes" / f"{name}.yaml").read_text().splitlines()
    text = " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))
    parts = re.split(rf"({'|'.join(HEADER)}):", text)
    return {key: value.strip() for key, value in zip(parts[1::2], parts[2::2], strict=True)}


def test_every_recipe_is_held_against_what_was_published():
    assert {name for name, _ in PUBLISHED} == set(LOSSES) == set(TEMPLATES) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_plans_complete_on_its_own(name):
    file = recipe(name)
    plan = make_plan(resolve(file))
    assert plan.pipeline.stages == STAGES[name] and file["run_name"] == name
    assert [key for key in HEADER if not header(name).get(key)] == []
    assert all(entry["revision"] for entry in [file["model"], *sources(file)]), "a revision a model and dataset"
    view = plan.pipeline.last
    assert (view["dpo"]["loss_type"], view["dpo"]["beta"]) == LOSSES[name]
    assert view["data"]["chat_template"] == TEMPLATES[name]
    assert "accumulation" not in json.dumps(file), "accumulation is derived"


@pytest.mark.parametrize("name", NAMES)
def test_the_arithmetic_is_the_published_one(name):
    told = {
        stage: int(number.replace(",", ""))
        for stage, number in re.findall(r"(sft|dpo\d?) ([\d,]+\d)", header(name)["Steps"])
    }
    for stage, view in resolve(recipe(name)).views.items():
        rows, published = PUBLISHED[name, stage]
        steps = batch.steps(view, view["method"], rows)
        assert abs(steps - published) <= 1, (steps, published)
        assert steps == told[stage], "the header says so"
        batches = batch.batch_plan(view, view["method"], batch.slurm_topology(view))
        assert batches.per_device * batches.accumulation * batches.topology.world_size == batches.rows
        warmup = math.ceil(steps * view["training"]["warmup_ratio"])
        assert warmup == WARMUP.get((name, stage), max(warmup, 11))


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_template_is_refused(name):
    file = recipe(name)
    file["data"]["chat_template"] = "olmo123"
    with pytest.raises(ConfigError, match=r"data\.chat_template: no template named 'olmo123'\. Did you mean 'olmo'\?"):
        make_plan(resolve(file))


@pytest.mark.parametrize("name", NAMES)
def test_offline_says_in_one_line_what_to_download(name):
    with pytest.raises(ConfigError) as caught:
        make_plan(resolve(recipe(name), {"offline": "true"}))
    line, file = str(caught.value), recipe(name)
    assert "\n" not in line and "--until download download_model --config offline=false" in line
    wanted = {entry["path"] for entry in sources(file)}
    assert f"model {file['model']['name_or_path']} (model.name_or_path)" in line
    assert all(f"dataset {path} (" in line for path in wanted)


@pytest.mark.slow
def test_that_line_and_its_command_in_snakemake():
    def snakemake(*words: str) -> subprocess.CompletedProcess:
        command = [str(Path(sys.executable).with_name("snakemake")), "-s", str(ROOT / "Snakefile"), "-n", "-c1"]
        configfile = ["--configfile", str(ROOT / "config" / "recipes" / "tulu3-8b.yaml")]
        return subprocess.run(
            [*command, *words[:-1], *configfile, "--config", words[-1]], capture_output=True, text=True
        )

    refused = snakemake("offline=true")
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert len([line for line in refused.stderr.splitlines() if "meta-llama/Llama-3.1-8B" in line]) == 1
    planned = snakemake("--until", "download", "download_model", "offline=false")
    assert planned.returncode == 0, planned.stderr[-2000:]
    assert set(re.findall(r"^(\w+) +\d+  ", planned.stdout, re.MULTILINE)) == {"download", "download_model"}


def toy(name: str, model: Path, folder: Path) -> dict:
    """The recipe with rows of the same shape, a model of 2 layers and one device; all else as it is."""
    file = recipe(name)
    file["model"] |= {"name_or_path": str(model), "revision": None, "attn_implementation": "sdpa", "dtype": "float32"}
    file |= {"deepspeed": {}, "slurm": {}, "accelerate": {"use_cpu": True}, "logging": {"report_to": ["none"]}}
    file["logging"]["logging_steps"] = 1
    file["evaluation"] = {"max_new_tokens": 4}
    file.setdefault("training", {})["gradient_checkpointing"] = False
    for stage in ("sft", "dpo"):
        file[stage].pop("slurm", None)
        file[stage]["max_seq_length"] = 192
        file[stage]["training"] |= {
            "effective_batch_size": 8,
            "per_device_train_batch_size": 4,
            "use_liger_kernel": False,
        }
        for number, entry in enumerate(file[stage]["data"]["datasets"]):
            path = folder / f"{stage}-{number}.jsonl"
            rows = [
                row_of(stage, 40 * number + row) for row in range(8 if len(file[stage]["data"]["datasets"]) > 9 else 24)
            ]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            entry |= {"path": str(path), "split": "train", "subset": None, "revision": None}
    file["training"].pop("use_liger_kernel", None)
    file["data"]["num_proc"] = 1
    return file


def row_of(stage: str, number: int) -> dict:
    """A row as the published sets have them: columns of their own beside those that are read."""
    question, answer = conversation(number)
    question = {"role": "user", "content": f"{question['content']} ({number})"}
    row = {"id": str(number), "source": "toy", "chat_template_kwargs": {"enable_thinking": False}}
    if stage == "sft":
        return {**row, "messages": [question, answer]}
    wrong = {"role": "assistant", "content": str(int(answer["content"]) + 1)}
    return {**row, "prompt": question["content"], "chosen": [question, answer], "rejected": [question, wrong]}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tulu3-8b", "smollm3-3b"])
def test_the_whole_of_it_runs_at_toy_size(name, model_manifest, tmp_path):
    plan = make_plan(resolve(toy(name, model_manifest.parent / "model", tmp_path)))
    make_here(plan, plan.report)
    for stage in ("sft", "dpo"):
        trained = manifest.read(plan.base / plan.trained[stage].manifest)
        assert trained["steps"] == batch.steps(
            plan.pipeline.views[stage], stage, manifest.read(plan.base / plan.mixed[stage].manifest)["rows_out"]
        )
        assert (plan.base / plan.exported[stage].directory / "model.safetensors").exists()
    start = {"sigmoid_norm": math.log(2), "apo_zero": 1.0}[LOSSES[name][0]]
    assert losses_of(plan.base / plan.trained["dpo"].directory)[0] == pytest.approx(start, abs=1e-4)
    assert (plan.base / plan.report.directory / "report.html").exists()
