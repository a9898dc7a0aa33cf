"""Speed, use of the GPU, memory and start of training on one GPU, beside plain TRL on the same batches.

    python benchmarks/gpu.py [--tiny] [--minutes M] [--only NAME ...] [--steps N] [--peak-tflops X] [--output FOLDER]

A 0.75B Llama of random weights in bfloat16 (float32 master weights, as training/arguments.py has it): SFT on packed rows
of 4,096 tokens and DPO with a stored and an online reference, each beside plain TRL; then the attentions and kernels that
are installed. Each variant is a process of its own, the most important first; what M minutes do not suffice for is left out,
and said. The first losses of a few short documents are compared with those of the CPU in float32.

MFU is by model FLOPs as in preflight/flops.py, with attention inside documents. `mfu_trained` counts tokens in the loss only,
without attention. Recomputed activations, padding, and an online reference's forward pass are work that counts for nothing.

Without a GPU, or with `--tiny`, everything runs at a tiny size: that shows that it works, and no speed.
Results go to `benchmarks/results/gpu-<device>.json`, after every variant.
"""

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import plain_trl
from prepared import as_arrow, model_folder, training_task
from training import plain_job

from post_training.core import devices
from post_training.preflight import flops
from post_training.preflight.shape import ModelShape

LARGE = {
    "hidden_size": 1536, "intermediate_size": 6144, "num_hidden_layers": 16, "num_attention_heads": 12,
    "num_key_value_heads": 4, "max_position_embeddings": 8192, "tie_word_embeddings": True,
}  # fmt: skip
TINY = {"entries": 1000, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
WARM_UP = 3


def variants(gpu: bool) -> dict[str, dict[str, Any]]:
    """Name -> who trains, method, and what is changed, most important first; kernels that are not there are left out, and said."""
    found: dict[str, dict[str, Any]] = {
        "sft ours": {"who": "ours", "method": "sft"},
        "sft plain": {"who": "plain", "method": "sft", "model": {"attn_implementation": "sdpa"}},
        "dpo stored ours": {"who": "ours", "method": "dpo", "dpo": {"reference": "stored"}},
        "dpo online plain": {"who": "plain", "method": "dpo", "dpo": {"reference": "online"}, "model": {"attn_implementation": "sdpa"}},
        "dpo online ours": {"who": "ours", "method": "dpo", "dpo": {"reference": "online"}},
    }  # fmt: skip
    if not gpu:
        return found
    missing = [name for name in ("flash_attn", "liger_kernel") if not importlib.util.find_spec(name)]
    kernels = {
        "flash_attn": ("flash", {"model": {"attn_implementation": "flash_attention_2"}}),
        "liger_kernel": ("liger", {"training": {"use_liger_kernel": True}}),
    }
    for package, (name, changed) in kernels.items():
        for who in ("ours", "plain") if package not in missing else ():
            base = found[f"sft {who}"]
            found[f"sft {name} {who}"] = base | changed
    if missing:
        print(f"gpu: not installed, and left out: {', '.join(missing)}", flush=True)
    return found


def make_model(folder: Path, tiny: bool) -> Path:
    """Made by the first variant there is time for."""
    return model_folder(folder / "model", **(TINY if tiny else LARGE))


def make_task(folder: Path, model: Path, variant: dict[str, Any], size: dict[str, Any], steps: int, dtype: str) -> Any:
    """The task of a variant; stages that it shares with others are there already."""
    method = variant["method"]
    training = {
        "max_steps": steps,
        "effective_batch_size": size["batch"],
        "per_device_train_batch_size": size["per_device"],
        "gradient_checkpointing": size["checkpointing"],
        "learning_rate": 1e-5,
        **variant.get("training", {}),
    }
    return training_task(
        folder, model, method, size["rows"][method], training=training,
        model={"dtype": dtype, **variant.get("model", {})},
        **{method: {"init_from": "base", "max_seq_length": size["length"][method], **variant.get(method, {})}},
    )  # fmt: skip


def child(job_file: Path) -> None:
    """Train one variant in this process; write what was seen to the job's `result`."""
    job = json.loads(job_file.read_text())
    if job["who"] == "ours":  # as a rank does it
        from post_training.core.task import Task

        task = Task.read(Path(job["task"]))
    import torch
    from transformers import TrainerCallback
    from transformers import trainer as transformers_trainer

    cuda = torch.cuda.is_available()
    ends: list[float] = []
    losses: list[float] = []

    class Watch(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if cuda:
                torch.cuda.synchronize()
            ends.append(time.time())

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" in logs:
                losses.append(logs["loss"])

    transformers_trainer.DEFAULT_CALLBACKS.append(Watch)
    if job["who"] == "ours":
        from training import ours

        ours(task)()
    else:
        plain_trl.trainer(job["plain"]).train()
    result = {
        "start_seconds": ends[0] - float(os.environ["STARTED"]),
        "step_seconds": np.diff(ends).tolist(),
        "losses": losses,
        "peak_bytes": torch.cuda.max_memory_allocated() if cuda else None,
        "reserved_bytes": torch.cuda.max_memory_reserved() if cuda else None,
    }
    Path(job["result"]).write_text(json.dumps(result))


def train(
    folder: Path, name: str, variant: dict[str, Any], task: Any, gpu: bool, seconds: float | None = None
) -> dict[str, Any]:
    """Run a variant in a process of its own, for so long at most."""
    home = folder / re.sub(r"\W+", "-", name)
    home.mkdir(parents=True, exist_ok=True)
    job: dict[str, Any] = {"who": variant["who"], "result": str(home / "result.json")}
    if variant["who"] == "ours":
        written = task.saved()  # its own folder is emptied when it starts
        job["task"] = str(shutil.copy(written, home / "task.json"))
    else:
        job["plain"] = plain_job(task, as_arrow(task, home / "rows.arrow"), home)
    (home / "job.json").write_text(json.dumps(job))
    environment = {**os.environ, "STARTED": str(time.time()), "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    if not gpu:
        environment |= {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, __file__, "--child", str(home / "job.json")]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"failed": [f"ended after {seconds:.0f} s"]}
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1:]}
    return json.loads((home / "result.json").read_text())


def work(task: Any, steps: int, batch: int) -> dict[str, float]:
    """Of the batches of all steps but the warm-up: tokens, tokens in the loss, and the squares of document lengths."""
    from post_training.data.view import open_rows

    rows = open_rows(task.inputs["data"])
    totals = {"tokens": 0.0, "trained_tokens": 0.0, "squares": 0.0}
    for index in range(WARM_UP * batch, steps * batch):
        row = rows[index % len(rows)]
        if "input_ids" in row:
            lengths = [int(length) for length in row["seq_lengths"]]
            totals["trained_tokens"] += int((row["labels"] != -100).sum())
        else:
            lengths = [len(row["prompt_ids"]) + len(row[side]) for side in ("chosen_ids", "rejected_ids")]
            totals["trained_tokens"] += len(row["chosen_ids"]) + len(row["rejected_ids"])
        totals["tokens"] += sum(lengths)
        totals["squares"] += sum(length * length for length in lengths)
    return totals


def figures(seen: dict[str, Any], totals: dict[str, float], model: Path, peak: float | None) -> dict[str, Any]:
    """Rates from the steps after the warm-up."""
    seconds = sum(seen["step_seconds"][WARM_UP - 1 :])
    shape = ModelShape.of(model)
    parameters, context = flops.multiplied(shape), totals["squares"] / totals["tokens"]
    useful = flops.per_token(shape, context).model * totals["tokens"]
    return {
        "tokens_per_second": totals["tokens"] / seconds,
        "trained_tokens_per_second": totals["trained_tokens"] / seconds,
        "mfu": useful / seconds / peak if peak else None,
        "mfu_trained": 6 * parameters * totals["trained_tokens"] / seconds / peak if peak else None,
        "step_seconds": seconds / len(seen["step_seconds"][WARM_UP - 1 :]),
        "start_seconds": seen["start_seconds"],
        "peak_bytes": seen["peak_bytes"],
        "reserved_bytes": seen["reserved_bytes"],
        "losses": seen["losses"],
    }


def run(
    quick: bool = False,
    steps: int | None = None,
    peak_tflops: float | None = None,
    output: Path | None = None,
    minutes: float = 8.0,
    only: list[str] | None = None,
) -> dict[str, Any]:
    """Measure, print a table, write the results file as it goes, and return its content."""
    import torch

    deadline = time.monotonic() + 60 * minutes
    gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name(0) if gpu else "cpu"
    tiny = quick or not gpu
    peak = peak_tflops * 1e12 if peak_tflops else devices.here("GPU").peak_flops
    steps = steps or (WARM_UP + 1 if tiny else 20)
    size = (
        {"batch": 1, "per_device": 1, "checkpointing": False, "rows": {"sft": 60, "dpo": 40}, "length": {"sft": 128, "dpo": 256}}
        if tiny
        else {"batch": 8, "per_device": 2, "checkpointing": True, "rows": {"sft": 4000, "dpo": 400}, "length": {"sft": 4096, "dpo": 4096}}
    )  # fmt: skip
    results: dict[str, Any] = {
        "device": device, "tiny": tiny, "steps": steps, "size": size, "peak_flops": peak, "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"), "variants": {}, "cpu_agreement": {}, "left_out": [],
    }  # fmt: skip
    found: dict[str, Any] = results["variants"]
    path = (
        output or Path(__file__).parent / "results"
    ) / f"gpu-{re.sub(r'[^a-z0-9]+', '-', device.lower()).strip('-')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="bench-gpu-"))
    # After the first two, because figures are worth nothing where losses differ.
    chosen = variants(gpu)
    order = list(chosen)
    order[2:2] = ["agreement sft", "agreement dpo"]
    if unknown := set(only or ()) - set(order):
        raise SystemExit(f"gpu: --only: no variant {', '.join(sorted(unknown))}; there are: {', '.join(order)}")
    order = [name for name in order if only is None or name in only]
    try:
        for name in order:
            left = deadline - time.monotonic()
            if left <= 0:
                results["left_out"].append(name)
                print(f"gpu: {name}: left out, {minutes:g} minutes are over", flush=True)
            elif name.startswith("agreement"):
                method, model = name.split()[1], make_model(folder, tiny)
                results["cpu_agreement"][method] = compare_with_cpu(folder, model, method, size, left)
            else:
                model = make_model(folder, tiny)
                variant = chosen[name]
                task = make_task(folder, model, variant, size, steps, "bfloat16")
                seen = train(folder, name, variant, task, gpu, left)
                found[name] = seen if "failed" in seen else figures(seen, work(task, steps, size["batch"]), model, peak)
                print(line(name, found[name]), flush=True)
            path.write_text(json.dumps(results, indent=1) + "\n")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"gpu: {path}")
    return results


def compare_with_cpu(folder: Path, model: Path, method: str, size: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The first two losses in bfloat16 on the GPU and in float32 on the CPU, which may differ by 2 %; one short row a step."""
    import torch

    size = {**size, "batch": 1, "per_device": 1, "length": {name: min(n, 512) for name, n in size["length"].items()}}
    variant = {"who": "ours", "method": method}
    losses = {}
    for device, dtype in (("gpu", "bfloat16"), ("cpu", "float32")):
        task = make_task(folder, model, variant, size, 2, dtype)
        on_gpu = device == "gpu" and torch.cuda.is_available()
        seen = train(folder, f"{method} agreement {device}", variant, task, on_gpu, seconds / 2)
        if "failed" in seen:
            return seen
        losses[device] = seen["losses"]
    pairs = list(zip(losses["gpu"], losses["cpu"], strict=True))
    difference = max(abs(ours - cpu) / max(abs(cpu), 1e-6) for ours, cpu in pairs)
    agrees = difference < 0.02
    print(
        f"gpu: {method}: first losses {pairs}, relative difference {difference:.2e} ({'agrees' if agrees else 'DIFFERS'})",
        flush=True,
    )
    return {"pairs": pairs, "relative_difference": difference, "agrees": agrees}


def line(name: str, figure: dict[str, Any]) -> str:
    """One row of the table."""
    if "failed" in figure:
        return f"gpu: {name:32} failed: {' '.join(figure['failed'])}"
    mfu = f"MFU {figure['mfu']:.1%} (trained {figure['mfu_trained']:.1%}), " if figure["mfu"] is not None else ""
    memory = f"{figure['peak_bytes'] / 2**30:.1f} GiB, " if figure["peak_bytes"] is not None else ""
    return (
        f"gpu: {name:32} {figure['tokens_per_second']:>9,.0f} tokens/s ({figure['trained_tokens_per_second']:,.0f} trained), "
        f"{mfu}{memory}{figure['step_seconds']:.3f} s a step, start {figure['start_seconds']:.1f} s"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: does it run")
    parser.add_argument("--steps", type=int)
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="no variant begins later; the first ones matter most"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="variants, or `agreement sft`, `agreement dpo`")
    parser.add_argument("--peak-tflops", type=float, help="of a GPU that is not in the table")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child)
    else:
        run(options.tiny, options.steps, options.peak_tflops, options.output, options.minutes, options.only)
