"""benchmarks/gpu.py from end to end at a tiny size: it must be right before there is a GPU to run it on."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.py"


def test_ours_and_a_plain_script_run_on_the_cpu(tmp_path):
    """What is left out differs by a key from what is here."""
    only = ["sft ours", "sft plain", "agreement dpo"]
    command = [
        sys.executable,
        str(BENCHMARK),
        "--tiny",
        "--peak-tflops",
        "0.1",
        "--output",
        str(tmp_path),
        "--only",
        *only,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = tmp_path.glob("gpu-*.json")
    results = json.loads(path.read_text())
    assert list(results["variants"]) == ["sft ours", "sft plain"]
    for name, figures in results["variants"].items():
        assert "failed" not in figures, (name, figures)
        assert 0 < figures["trained_tokens_per_second"] < figures["tokens_per_second"]
        assert 0 < figures["mfu_trained"] < figures["mfu"] and figures["start_seconds"] > 0
        assert len(figures["losses"]) == results["steps"]
    ours, plain = (results["variants"][f"sft {who}"]["losses"] for who in ("ours", "plain"))
    assert ours == pytest.approx(plain, rel=1e-4)
    assert all(found["agrees"] for found in results["cpu_agreement"].values())


def test_what_there_is_no_time_for_is_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARK.parent))
    results = runpy.run_path(str(BENCHMARK))["run"](quick=True, minutes=0, output=tmp_path)
    assert "dpo stored ours: left out, 0 minutes are over" in capsys.readouterr().out
    (path,) = tmp_path.glob("gpu-*.json")
    assert json.loads(path.read_text()) == results
    assert results["variants"] == {} and len(results["left_out"]) == 7
