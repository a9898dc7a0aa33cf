"""What computing without padding gains over TRL's own trainers on the same rows: steps, the reference stage, peak memory.

    python benchmarks/padding.py [--repeats 5] [--quick]

Ours and TRL's take turns in one process, a step each, as in training.py; lengths are those of real chats (corpus.py), up to 1,024
tokens (2,048 packed). Losses must be equal. Peak memory is of processes of their own, which take two steps. The whole is sized for
eight minutes of two cores that do nothing else.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import plain_trl
from prepared import as_arrow, model_folder, spread, training_task
from training import MEDIUM, SMALL, Child, Turns, launcher, losses, ours, plain_job

WARM_UP, OF_MEMORY = 1, 2
# Rows a device holds at a time, tokens of the longest row, and the ratio that is wanted.
STEPS = {
    "dpo, 4 pairs": ("dpo", 4, 1024, 2.0),
    "dpo, 2 pairs": ("dpo", 2, 1024, 1.5),
    "sft, 8 conversations": ("sft", 8, 1024, 1.5),
    "sft, packed": ("sft", 1, 2048, 1.3),
}


def task_and_job(folder: Path, name: str, steps: int, architecture: dict[str, Any], quick: bool) -> tuple[Any, Any]:
    """A run of ours, and the same one for plain_trl.py."""
    method, size, length, _ = STEPS[name]
    model = model_folder(folder / "model", **architecture)
    own = {"max_seq_length": 256 if quick else length} | (
        {"reference": "stored"} if method == "dpo" else {"packing": size == 1}
    )
    training = {"max_steps": steps, "effective_batch_size": size, "per_device_train_batch_size": size}
    home = folder / name.replace(" ", "-").replace(",", "")
    rows = (2 if size > 1 else 12) * size * steps  # some are too long; a packed row takes several
    task = training_task(home, model, method, rows, training=training, **{method: own})
    job = plain_job(task, as_arrow(task, home / "rows.arrow", rows=steps * size), home)
    if method == "dpo":
        job["arguments"] |= {"precompute_ref_log_probs": True, "precompute_ref_batch_size": size}
    (home / "job.json").write_text(json.dumps(job))
    return task, job


def step(task: Any, job: dict[str, Any]) -> dict[str, Any]:
    """Seconds of steps in turn."""
    turns, plain = Turns(["ours", "plain"]), []

    def run_plain() -> None:
        made = plain_trl.trainer(job)
        made.train()
        plain.extend(line["loss"] for line in made.state.log_history if "loss" in line)

    turns.run({"ours": ours(task), "plain": run_plain})
    found = losses(task.directory / "logs" / "metrics.jsonl")
    return {
        "ratios": turns.ratios("plain", "ours", skip=WARM_UP),
        "seconds_plain": float(np.median(turns.seconds["plain"][WARM_UP:])),
        "largest_loss_difference": max(abs(a - b) / abs(b) for a, b in zip(found, plain, strict=True)),
    }


def memory(folder: Path, name: str, architecture: dict[str, Any], quick: bool) -> dict[str, int]:
    """Peak bytes of a process each, of runs of OF_MEMORY steps."""
    task, _ = task_and_job(folder, name, OF_MEMORY, architecture, quick)
    job = folder / name.replace(" ", "-").replace(",", "") / "job.json"
    plain = Child([sys.executable, str(Path(__file__).with_name("plain_trl.py")), str(job)]).peak_bytes()
    return {"ours": Child(launcher(task)).peak_bytes(), "plain": plain}


def reference(task: Any, job: dict[str, Any], repeats: int) -> dict[str, Any]:
    """The reference stage's pass over some pairs against TRL's precomputation of them, in turn."""
    import torch
    from torch.utils.data import DataLoader

    from post_training import methods
    from post_training.config import batch, resolve
    from post_training.config.batch import BatchPlan
    from post_training.data.view import open_rows
    from post_training.models.packing_probe import padding_free
    from post_training.training.reference_rank import Scorer
    from post_training.training.run import arguments_of, load_model, load_tokenizer

    view = resolve(task.runtime["pipeline"]).last
    size, folder = view["training"]["per_device_train_batch_size"], Path(job["model"])
    plan = BatchPlan(batch.topology_from_environment(), size, 1, size, None)
    pairs = open_rows(task.inputs["data"])
    made = methods.trainer_class("dpo")(
        view, pairs, model=load_model(folder, view), args=arguments_of(task, view, plan, 1, report_to=["none"]),
        processing_class=load_tokenizer(folder, view), padding_free=padding_free(folder, view),
    )  # fmt: skip
    count = min(8, view["training"]["max_steps"] * size)
    scorer, rows = Scorer(made, size), [pairs[index] for index in range(count)]
    plain = plain_trl.trainer({**job, "arguments": job["arguments"] | {"precompute_ref_log_probs": False}})
    plain.model.eval()

    def theirs() -> Any:
        loader = DataLoader(plain.train_dataset.select(range(count)), batch_size=size, collate_fn=plain.data_collator)
        sides = [plain.compute_ref_log_probs(plain.model, inputs) for inputs in loader]
        return torch.stack([torch.cat(side) for side in zip(*sides, strict=True)], dim=1).numpy()

    ratios, different = [], 0.0
    for _ in range(1 + repeats):
        marks = [time.perf_counter()]
        found = scorer.score(rows)
        marks.append(time.perf_counter())
        expected = theirs()
        marks.append(time.perf_counter())
        ratios.append((marks[2] - marks[1]) / (marks[1] - marks[0]))
        different = float(np.abs(found / expected - 1).max())
    return {"ratios": ratios[1:], "largest_difference": different}


def layout(size: int) -> float:
    """Milliseconds to deal and lay out a step of 512 pairs, in micro-batches of so many; the best of 7."""
    from post_training.data.collate import PairsCollator
    from post_training.data.deal import Dealing, row_tokens

    random, names = np.random.default_rng(0), ("prompt_ids", "chosen_ids", "rejected_ids")
    draw = lambda: random.integers(5, 30_000, min(400, 4 + int(random.lognormal(5, 0.8)))).astype(np.int32)  # noqa: E731
    rows, dealing, collate, best = (
        [{name: draw() for name in names} for _ in range(512)],
        Dealing(1, 512 // size, size),
        PairsCollator(),
        [],
    )
    for _ in range(7):
        start = time.perf_counter()
        tokens = row_tokens({name: np.array([len(row[name]) for row in rows]) for name in names})
        collate.step([[rows[place] for place in part] for part in dealing.deal(tokens, 0)])
        best.append(1000 * (time.perf_counter() - start))
    return min(best)


def run(repeats: int, quick: bool) -> None:
    """Measure, and print a line each."""
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    steps, architecture = WARM_UP + repeats, SMALL if quick else MEDIUM
    folder = Path(tempfile.mkdtemp(prefix="bench-padding-"))
    show = partial(print, flush=True)
    show("padding: plain TRL's seconds / ours as median (smallest-largest) of pairs taken in turn")
    try:
        for name, (_, _, _, goal) in STEPS.items():
            task, job = task_and_job(folder, name, steps, architecture, quick)
            found = step(task, job)
            show(
                f"  {name}: {spread(found['ratios'])}   goal >= {goal}; {found['seconds_plain']:.2f} s a step of TRL's; "
                f"largest relative difference of losses {found['largest_loss_difference']:.1e}"
            )
            if name == "dpo, 4 pairs":
                scored = reference(task, job, repeats)
                show(
                    f"  reference, 4 pairs: {spread(scored['ratios'])}   goal >= 2.0; "
                    f"largest relative difference of log-probabilities {scored['largest_difference']:.1e}"
                )
            if name != "dpo, 2 pairs":
                peak = memory(folder / "memory", name, architecture, quick)
                shown = ", ".join(f"{kind} {size / 2**20:,.0f} MiB" for kind, size in peak.items())
                show(f"  {name}, peak memory, ours / TRL: {peak['ours'] / peak['plain']:.3f}   goal <= 1; {shown}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for size in (1, 4, 16):
        show(f"  a step of 512 pairs dealt and laid out, {size} a micro-batch: {layout(size):.1f} ms   goal <= 20")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run")
    parser.add_argument("--repeats", type=int, help="steps of each, after one that warms up; 5, or 1 with --quick")
    options = parser.parse_args()
    run(options.repeats or (1 if options.quick else 5), options.quick)
