"""What training through this project costs beside a plain script with TRL's trainer: step, start, and DPO's reference.

    python benchmarks/training.py [--quick]

- Step: our trainer and a plain TRL trainer in one process take turns, a step each, on the same rows. So both see the
  same machine, and the ratio of each pair of steps tells differences of a few percent. Losses must be equal.
- Start: seconds from the start of a process to the end of its first optimizer step, of our launcher, of a plain TRL
  script and of a bare torch script, in turn, at two sizes of the data.
- DPO: a stored and an online reference take turns in the same way; peak memory is of processes of their own.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import plain_trl
from prepared import as_arrow, model_folder, spread, training_task

from post_training.core.devices import count_gpus

HERE = Path(__file__).parent
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
# Large enough that a step is work, and that a second model shows in the peak memory.
MEDIUM = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 8}


class Turns:
    """Threads that take turns, one training step each; collects seconds from step end to step end."""

    def __init__(self, names: list[str]) -> None:
        self.names, self.seconds = names, {name: [] for name in names}
        self.turn = {name: threading.Semaphore(0) for name in names}
        self.alive = set(names)
        self._began: dict[str, float] = {}
        self.turn[names[0]].release()
        # Transformers' arguments reset what trainers share in a process: one is made at a time, and all before any trains.
        self.making, self.made = threading.Lock(), threading.Barrier(len(names))

    def callback(self) -> type:
        from transformers import TrainerCallback

        turns = self

        class TakeTurns(TrainerCallback):
            def on_train_begin(self, *_: Any, **__: Any) -> None:
                turns.making.release()
                turns.made.wait()
                turns.wait()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                turns.hand_over()
                turns.wait()

        return TakeTurns

    def wait(self) -> None:
        name = threading.current_thread().name
        self.turn[name].acquire()
        self._began[name] = time.perf_counter()

    def hand_over(self) -> None:
        name = threading.current_thread().name
        self.seconds[name].append(time.perf_counter() - self._began[name])
        self.next(name)

    def next(self, name: str) -> None:
        order = [*self.names[self.names.index(name) + 1 :], *self.names[: self.names.index(name) + 1]]
        self.turn[next(other for other in order if other in self.alive or other == name)].release()

    def run(self, bodies: dict[str, Any]) -> None:
        from transformers import trainer as transformers_trainer

        failed: list[BaseException] = []

        def guarded(name: str) -> None:
            self.making.acquire()
            try:
                bodies[name]()
            except BaseException as error:
                failed.append(error)
                if self.making.locked() and not self._began.get(name):
                    self.made.abort()
                    self.making.release()
            finally:
                self.alive.discard(name)
                self.next(name)

        callback = self.callback()
        transformers_trainer.DEFAULT_CALLBACKS.append(callback)
        try:
            threads = [threading.Thread(target=guarded, args=(name,), name=name) for name in self.names]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            transformers_trainer.DEFAULT_CALLBACKS.remove(callback)
        if failed:
            raise failed[0]

    def ratios(self, one: str, other: str, skip: int = 2) -> list[float]:
        """Of each pair of steps, without the first ones."""
        pairs = list(zip(self.seconds[one], self.seconds[other], strict=False))[skip:]
        return [a / b for a, b in pairs]


def ours(task: Any) -> Any:
    """A rank of our training, in this process."""
    from post_training.launch.launcher import prepare_directory
    from post_training.training.run import train_rank

    shutil.rmtree(task.directory, ignore_errors=True)
    prepare_directory(task)
    return lambda: train_rank(task)


def plain_job(task: Any, rows: Path, folder: Path) -> dict[str, Any]:
    """The same run for plain_trl.py: the arguments that our configuration stands for."""
    from post_training.config import batch, resolve
    from post_training.training.arguments import load_dtype, trainer_arguments

    view = resolve(task.runtime["pipeline"]).last
    method = view["method"]
    plan = batch.batch_plan(view, method, batch.topology_from_environment())
    steps = view["training"]["max_steps"]
    arguments = trainer_arguments(view, method, folder / "plain", plan, steps)
    arguments |= {"save_strategy": "no", "logging_nan_inf_filter": True}
    if method == "dpo":
        arguments["precompute_ref_log_probs"] = False
    return {
        "method": method,
        "model": view["model"]["name_or_path"],
        "dtype": load_dtype(view),
        "attention": "sdpa",  # what Transformers takes when nothing is said
        "rows": str(rows),
        "arguments": arguments,
        "log": str(folder / "plain.jsonl"),
    }


def losses(path: Path) -> list[float]:
    return [line["loss"] for line in map(json.loads, path.read_text().splitlines()) if "loss" in line]


def step_cost(folder: Path, method: str, rows: int, steps: int, size: dict[str, Any]) -> dict[str, Any]:
    """Ours against plain TRL, a step each in turn."""
    model = model_folder(folder / "model", **size["architecture"])
    sections = {
        "training": {"max_steps": steps, "effective_batch_size": 1},
        method: {"init_from": "base", "max_seq_length": size["length"]},
    }
    if method == "dpo":
        sections["dpo"]["reference"] = "online"
    sections["training"] |= {"gradient_checkpointing": False, "learning_rate": 1e-4}
    task = training_task(folder, model, method, rows, **sections)
    job = plain_job(task, as_arrow(task, folder / f"{method}-step.arrow", rows=steps), folder)
    turns, found = Turns(["ours", "plain"]), {}

    def plain() -> None:
        made = plain_trl.trainer(job)
        made.train()
        found["plain"] = [line["loss"] for line in made.state.log_history if "loss" in line]

    turns.run({"ours": ours(task), "plain": plain})
    found["ours"] = losses(task.directory / "logs" / "metrics.jsonl")
    ratios = turns.ratios("ours", "plain")
    return {
        "ratio": float(np.median(ratios)),
        "ratios": ratios,
        "seconds_plain": float(np.median(turns.seconds["plain"][2:])),
        "largest_loss_difference": max(abs(a - b) for a, b in zip(found["ours"], found["plain"], strict=True)),
        "losses": len(found["ours"]),
    }


def reference_cost(folder: Path, rows: int, steps: int, size: dict[str, Any]) -> dict[str, Any]:
    """DPO with a stored against an online reference: steps in turn, then peak memory of a process each."""
    model = model_folder(folder / "model", **size["architecture"])
    tasks = {
        kind: training_task(
            folder, model, "dpo", rows,
            training={"max_steps": steps, "effective_batch_size": 1, "gradient_checkpointing": False, "learning_rate": 1e-4},
            dpo={"init_from": "base", "max_seq_length": size["length"], "reference": kind, "reference_batch_size": 1},
        )
        for kind in ("stored", "online")
    }  # fmt: skip
    turns = Turns(["stored", "online"])
    turns.run({kind: ours(task) for kind, task in tasks.items()})
    found = {kind: losses(task.directory / "logs" / "metrics.jsonl") for kind, task in tasks.items()}
    speedups = turns.ratios("online", "stored")
    peak = {}
    for kind, task in tasks.items():
        shutil.rmtree(task.directory)
        peak[kind] = Child(launcher(task)).peak_bytes()
    return {
        "steps_per_second_ratio": float(np.median(speedups)),
        "ratios": speedups,
        "peak_bytes": peak,
        "peak_ratio": peak["stored"] / peak["online"],
        "largest_loss_difference": max(abs(a - b) for a, b in zip(found["stored"], found["online"], strict=True)),
    }


def launcher(task: Any) -> list[str]:
    """The command of the rule `train`."""
    return [sys.executable, "-m", "post_training", "stage", str(task.saved())]


class Child:
    """A process whose memory is asked for when it has ended."""

    def __init__(self, command: list[str]) -> None:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        if not count_gpus():
            environment |= {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.started = time.time()
        self.command, self.usage = command, None
        self.pid = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=self.errors).pid

    def ended(self, wait: bool = False) -> bool:
        """Whether it has ended. Raises RuntimeError with what it said when it failed."""
        if self.usage is None:
            pid, status, usage = os.wait4(self.pid, 0 if wait else os.WNOHANG)
            if not pid:
                return False
            self.usage = usage
            if status:
                self.errors.seek(0)
                raise RuntimeError(f"{' '.join(self.command[:4])}: status {status}\n{self.errors.read()[-3000:]}")
        return True

    def peak_bytes(self) -> int:
        """The largest resident set of it, or of a process that it waited for."""
        self.ended(wait=True)
        return self.usage.ru_maxrss * 1024


def start_seconds(command: list[str], log: Path) -> float:
    """From the start of a process to the line that it writes after its first step."""
    log.unlink(missing_ok=True)
    child = Child(command)
    while not (log.is_file() and log.stat().st_size) and not child.ended():
        time.sleep(0.002)
    seconds = log.stat().st_mtime - child.started
    child.ended(wait=True)
    return seconds


def start_cost(folder: Path, sizes: tuple[int, int], repeats: int, warm_up: int = 1) -> dict[str, Any]:
    """Our launcher, plain TRL and bare torch in turn, at two sizes of the data; `warm_up` rounds do not count."""
    model = model_folder(folder / "small", **SMALL)
    commands: dict[str, tuple[list[str], Path]] = {}
    tasks = []
    for size in sizes:
        task = training_task(
            folder,
            model,
            "sft",
            size,
            training={"max_steps": 1, "gradient_checkpointing": False},
            sft={"max_seq_length": 512},
        )
        home = folder / f"start-{size}"
        home.mkdir(exist_ok=True)
        job = plain_job(task, as_arrow(task, home / "rows.arrow"), home)
        (home / "job.json").write_text(json.dumps(job))
        commands[f"ours {size:,}"] = (launcher(task), task.directory / "logs" / "metrics.jsonl")
        commands[f"plain {size:,}"] = (
            [sys.executable, str(HERE / "plain_trl.py"), str(home / "job.json")],
            Path(job["log"]),
        )
        tasks.append(task)
    log = folder / "bare.jsonl"
    commands["bare"] = ([sys.executable, str(HERE / "bare_torch.py"), str(model), "512", str(log)], log)
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for repeat in range(warm_up + repeats):
        for name, (command, path) in commands.items():
            for task in tasks:
                shutil.rmtree(task.directory, ignore_errors=True)
            found = start_seconds(command, path)
            if repeat >= warm_up:  # the first round reads the files into memory
                seconds[name].append(found)
    few, many = (f"{size:,}" for size in sizes)

    def ratio(one: str, other: str) -> list[float]:
        return [a / b for a, b in zip(seconds[one], seconds[other], strict=True)]

    return {
        "seconds": {name: float(np.median(values)) for name, values in seconds.items()},
        "ours_to_plain": ratio(f"ours {many}", f"plain {many}"),
        "ours_to_bare": ratio(f"ours {many}", "bare"),
        "many_to_few": ratio(f"ours {many}", f"ours {few}"),
        "sizes": list(sizes),
    }


def run(quick: bool, only: str | None = None) -> dict[str, Any]:
    """Measure, print a table, and return the figures; `only`: `start`, `step` or `reference`."""
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    steps, repeats = (5, 1) if quick else (24, 5)
    size = {"architecture": SMALL, "length": 256} if quick else {"architecture": MEDIUM, "length": 512}
    sizes = (100, 1_000) if quick else (5_000, 100_000)
    folder = Path(tempfile.mkdtemp(prefix="bench-training-"))
    try:
        parts: dict[str, Any] = {}
        if only in (None, "start"):
            parts["start"] = lambda: start_cost(folder, sizes, repeats, warm_up=0 if quick else 1)
        for method in ("sft", "dpo") if only in (None, "step") else ():
            parts[f"step_{method}"] = partial(step_cost, folder, method, rows=6 * steps, steps=steps, size=size)
        if only in (None, "reference"):
            parts["reference"] = lambda: reference_cost(folder, rows=5 * steps, steps=steps, size=size)
        results = {}
        for name, part in parts.items():
            results[name] = part()
            print(table({name: results[name]}), flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return results


def table(results: dict[str, Any]) -> str:
    """The figures, goals beside them."""
    lines = ["training: ratios as median (smallest-largest) of pairs taken in turn"]
    for method in [method for method in ("sft", "dpo") if f"step_{method}" in results]:
        step = results[f"step_{method}"]
        lines.append(
            f"  step, {method}: ours / plain TRL        {spread(step['ratios'])}   goal <= 1.02; "
            f"{step['seconds_plain']:.2f} s a step; largest difference of {step['losses']} losses {step['largest_loss_difference']:.1e}"
        )
    if "start" in results:
        start = results["start"]
        few, many = (f"{size:,}" for size in start["sizes"])
        lines += [
            f"  start at {many}: ours / plain TRL   {spread(start['ours_to_plain'])}   goal <= 1",
            f"  start at {many}: ours / bare torch  {spread(start['ours_to_bare'])}   goal <= 1.5",
            f"  start, ours: {many} / {few} rows    {spread(start['many_to_few'])}   goal <= 1.1",
            "  seconds to the end of step 1: "
            + ", ".join(f"{name} {value:.1f}" for name, value in start["seconds"].items()),
        ]
    if "reference" in results:
        reference = results["reference"]
        lines += [
            f"  dpo, steps/s: stored / online reference {spread(reference['ratios'])}   goal >= 1.3; "
            f"largest difference of losses {reference['largest_loss_difference']:.1e}",
            f"  dpo, peak memory: stored / online     {reference['peak_ratio']:.3f}   "
            + ", ".join(f"{kind} {value / 2**20:,.0f} MiB" for kind, value in reference["peak_bytes"].items()),
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run")
    parser.add_argument("--only", choices=("start", "step", "reference"), help="one part")
    options = parser.parse_args()
    run(options.quick, options.only)
