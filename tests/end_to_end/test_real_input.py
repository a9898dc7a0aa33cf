"""The main job on published data: two sources for SFT, one for DPO, exported and loaded."""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = REPOSITORY.parent / "shared" / "data"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SHARED.is_dir(), reason=f"no real data: {SHARED} is absent"),
]


def snakemake(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """A real process, as a person starts it, with the repository's workflow and its profile."""
    command = [str(Path(sys.executable).with_name("snakemake")), "-s", str(REPOSITORY / "Snakefile")]
    profile = ["--workflow-profile", str(REPOSITORY / "profiles" / "default")]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([*command, *profile, *arguments], capture_output=True, text=True, cwd=folder, env=environment)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    text = (Path(__file__).with_name("real_input.yaml")).read_text().replace("{shared}", str(SHARED))
    (folder / "real.yaml").write_text(text)
    done = snakemake(folder, "--configfile", "real.yaml", "--config", "method=dpo")
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return folder


def metrics(run: Path, stage: str) -> list[dict]:
    lines = (run / "outputs" / f"real-{stage}" / "logs" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def manifest(run: Path, path: str) -> dict:
    return json.loads((run / "outputs" / path / "manifest.json").read_text())


def test_the_loss_falls(run):
    losses = [row["loss"] for row in metrics(run, "sft") if "loss" in row]
    assert statistics.mean(losses[-3:]) < losses[0] - 1.0, losses
    losses = [row["loss"] for row in metrics(run, "dpo") if "loss" in row]
    assert losses[-1] < losses[0], losses


def test_every_row_is_accounted_for(run):
    for dataset, rows in (("gsm8k", 3500), ("roleplay", 2608), ("ultrafeedback", 1000)):
        (folder,) = (run / "outputs" / "data" / "transformed").glob(f"{dataset}-*")
        found = json.loads((folder / "manifest.json").read_text())
        assert found["rows_in"] == rows
        assert found["rows_in"] == found["rows_out"] + sum(found["dropped"].values())
        (folder,) = (run / "outputs" / "data" / "tokenized").glob(f"{dataset}-*")
        tokenized = json.loads((folder / "manifest.json").read_text())
        assert tokenized["rows_in"] == found["examples"]
        assert tokenized["rows_in"] == tokenized["rows_out"] + sum(tokenized["dropped"].values())
    (folder,) = (run / "outputs" / "data" / "mixed").glob("sft-*")
    table = {row["name"]: row for row in json.loads((folder / "manifest.json").read_text())["table"]}
    assert table["gsm8k"]["weight"] == 1.0 and table["roleplay"]["weight"] == 0.5


def test_the_run_directory_has_its_fixed_names(run):
    for link in ("real", "real-sft", "real-dpo"):
        for name in (
            "config.yaml",
            "manifest.json",
            "checkpoints",
            "inference_checkpoints",
            "logs/metrics.jsonl",
            "model",
        ):
            if link != "real-sft" and name == "inference_checkpoints":
                continue  # DPO is shorter than inference_checkpoint_steps
            assert (run / "outputs" / link / name).exists(), (link, name)
    assert [p.name for p in (run / "outputs" / "real-sft" / "inference_checkpoints").iterdir()] == ["step-40"]
    found = manifest(run, "real-dpo")
    for key in ("stage", "fingerprint", "inputs", "config", "seconds", "versions", "git", "tokens"):
        assert key in found, key
    exported = manifest(run, "real-sft/model")
    assert found["inputs"]["model"]["fingerprint"] == exported["fingerprint"]


def test_the_export_loads_as_people_load_it(run):
    from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

    for stage in ("real-sft", "real"):
        folder = run / "outputs" / stage / "model"
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert model.config.use_cache is True
        tokenizer = AutoTokenizer.from_pretrained(folder)
        stops = model.generation_config.eos_token_id
        assert tokenizer.convert_tokens_to_ids("<|im_end|>") in (stops if isinstance(stops, list) else [stops])
        answer = pipeline("text-generation", model=str(folder))(
            [{"role": "user", "content": "Hello"}], max_new_tokens=8
        )
        assert answer[0]["generated_text"][-1]["role"] == "assistant"
        assert all(path.stat().st_mode & 0o040 for path in folder.rglob("*") if path.is_file())


def test_a_finished_run_has_nothing_to_do(run):
    done = snakemake(run, "-n", "--configfile", "real.yaml", "--config", "method=dpo")
    assert "Nothing to be done" in done.stdout + done.stderr


def test_the_frozen_configuration_is_the_same_pipeline(run):
    """outputs/real/config.yaml alone, with defaults written out, plans exactly what is there."""
    done = snakemake(run, "-n", "--configfile", "outputs/real/config.yaml")
    assert "Nothing to be done" in done.stdout + done.stderr, done.stdout + done.stderr
