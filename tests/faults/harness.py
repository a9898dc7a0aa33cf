"""Kills training at random moments and checks that nothing was lost: `make test-faults N=200`.

Each setup is trained once without disturbance. Then it is trained again and again while one of its
processes is killed with SIGKILL: a rank, all ranks, the launcher, or the Snakemake above it; while it
starts, between two steps, or inside a save. After every kill the same command is given again. In the
end the weights must be the same bit for bit, the losses and the rows of every step too.

Prints a line a kill and, at last, `identical: N/N`. All is drawn from `--seed`.
"""

import argparse
import contextlib
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import sampling
from tiny import (
    TEMPLATE,
    build_task,
    conversation,
    launcher_command,
    metrics_of,
    ranks_of,
    tokenised,
    train_task,
    write_mix,
)

from post_training.run_dir.parent import SNAKEMAKE

STEPS, SAVE_STEPS = 24, 3
# Name -> what it sets, and kills of a run of it: a start of several ranks takes as long as so many of one.
ALONE = "1 process"
SETUPS: dict[str, tuple[dict, int]] = {
    ALONE: ({}, 14),
    "DDP": ({}, 2),
    "ZeRO-2": ({"deepspeed__config_path": "zero2"}, 2),
    "ZeRO-3": ({"deepspeed__config_path": "zero3"}, 2),
}
TARGETS = ("rank 0", "the last rank", "all ranks", "the launcher", "snakemake")
MOMENTS = ("start", "step", "save", "save")
# Stands above the launcher as Snakemake does, and is taken for it.
STANDS_ABOVE = "import os, subprocess, sys\nsys.exit(subprocess.run(['bash', '-c', os.environ['JOB']]).returncode)\n"
DEADLINE_SECONDS = 600.0


@dataclass
class Kill:
    """One kill, and what became of the run."""

    setup: str
    target: str
    moment: str
    step: int
    """Last step that was taken before it."""
    starts: int
    """How many starts had come to training by then."""
    resumed: int = -1
    """Step from which the next start went on."""

    @property
    def lost(self) -> int:
        """Steps that had to be taken again."""
        return max(0, self.step - self.resumed)


@dataclass
class Harness:
    """A model, its rows, and runs on them."""

    folder: Path
    random: random.Random
    ranks: int
    """Of every setup but the first."""
    kills: list[Kill] = field(default_factory=list)
    identical: int = 0

    def prepare(self) -> None:
        """A model with dropout, so that a lost random state shows; rows; a Snakemake of two lines."""
        from transformers import AutoTokenizer

        from post_training.models import build

        corpus = self.folder / "corpus.jsonl"
        corpus.write_text("".join(json.dumps({"messages": conversation(n)}) + "\n" for n in range(200)))
        self.model = self.folder / "model" / "manifest.json"
        task = build_task(self.model, corpus)
        task.config["weights"]["config"] = {**task.config["weights"]["config"], "attention_dropout": 0.2}
        build.run(task)
        tokenizer = AutoTokenizer.from_pretrained(self.folder / "model" / "model")
        documents = [tokenised(tokenizer, conversation(n)) for n in range(4 * STEPS)]
        (self.folder / "rows").mkdir()
        rows = [{"input_ids": ids, "labels": labels, "seq_lengths": [len(ids)]} for ids, labels in documents]
        self.rows = write_mix(self.folder / "rows", rows, packing=True)
        self.template = self.folder / "plain.jinja"
        self.template.write_text(TEMPLATE)
        (self.folder / "snakemake").write_text(STANDS_ABOVE)

    def task(self, setup: str, name: str):
        """A run of one setup: 4 rows a step, in one micro-batch of 1 after the other."""
        settings = {
            "training__max_steps": STEPS,
            "training__per_device_train_batch_size": 1,
            "checkpointing__save_steps": SAVE_STEPS,
            "accelerate__num_processes": 1 if setup == ALONE else self.ranks,
            **SETUPS[setup][0],
        }
        return train_task(self.folder / name, self.model, self.rows, self.template, **settings)

    def start(self, task) -> subprocess.Popen:
        """The job as Snakemake starts it, in a session of its own; output goes to the run's `output.txt`."""
        job = f"set -o pipefail; export {SNAKEMAKE}=$PPID; {shlex.join(launcher_command(task))} 2>&1 | tee -ai {shlex.quote(str(self.output(task)))} > /dev/null"
        task.directory.mkdir(exist_ok=True)
        command = [sys.executable, str(self.folder / "snakemake")]
        return subprocess.Popen(
            command, env={**os.environ, "JOB": job}, start_new_session=True, stderr=subprocess.DEVNULL
        )

    def output(self, task) -> Path:
        return task.directory / "output.txt"

    def finish(self, task) -> None:
        process = self.start(task)
        if process.wait(DEADLINE_SECONDS) != 0 or not task.output.exists():
            raise SystemExit(f"{task.directory}: the run did not end well\n{self.output(task).read_text()[-3000:]}")

    def test(self, setup: str, kills: int, number: int) -> None:
        """One run with so many kills, compared with the undisturbed one of its setup."""
        straight = self.task(setup, f"{setup} straight")
        if not straight.output.exists():
            self.finish(straight)
        task = self.task(setup, f"{setup} {number}")
        mine = []
        for place in range(kills):
            kill = self.kill(task, setup, place, kills)
            if kill is None:
                break  # it came to its end first
            mine.append(kill)
        self.finish(task)
        resumes = resumes_of(self.output(task))
        for kill in mine:
            # A run that had come to its end when it was killed has nothing left to resume.
            kill.resumed = resumes[kill.starts] if kill.starts < len(resumes) else STEPS
            print(
                f"{setup}: SIGKILL of {kill.target} in a {kill.moment}, after step {kill.step}; "
                f"went on from step {kill.resumed}, {kill.lost} steps lost",
                flush=True,
            )
        self.kills += mine
        different = differences(straight.directory, task.directory)
        if different:
            print(f"{setup}: DIFFERS from the undisturbed run: {different}; kept in {task.directory}", flush=True)
        else:
            self.identical += len(mine)

    def kill(self, task, setup: str, place: int, kills: int) -> Kill | None:
        """Start, wait for a moment, kill one thing, wait until nothing of it is left."""
        target, moment = self.random.choice(TARGETS), self.random.choice(MOMENTS)
        # Moments are spread over the run, so that it gets on.
        step = max(last_step(task.directory) + 1, (place * STEPS) // kills + self.random.randint(1, STEPS // kills))
        before = len(resumes_of(self.output(task))) if self.output(task).exists() else 0
        process = self.start(task)
        if moment == "start":
            time.sleep(self.random.uniform(0.2, 8.0))
        else:
            reached = wait_for(process, lambda: last_step(task.directory) >= min(step, STEPS - 1))
            if reached and moment == "save":
                saved = {path.name for path in saves(task.directory)}
                wait_for(process, lambda: {path.name for path in saves(task.directory)} - saved)
                time.sleep(self.random.uniform(0.0, 0.25))
        wait_for(process, lambda: launcher_of(process.pid))
        launcher = launcher_of(process.pid)
        if launcher is None:
            process.wait()
            return None
        ranks = ranks_of(launcher)
        pids = {
            "rank 0": ranks[:1], "the last rank": ranks[-1:], "all ranks": ranks, "the launcher": [launcher], "snakemake": [process.pid],
        }[target]  # fmt: skip
        if not pids:
            target, pids = "the launcher", [launcher]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
                os.kill(pid, signal.SIGKILL)
        step = last_step(task.directory)
        process.wait()
        if target != "snakemake":  # after that the next start has to cope with a launcher that is still there
            while alive(launcher):
                time.sleep(0.02)
        # A start that was killed before it resumed has lost nothing that the one before had not.
        starts = len(resumes_of(self.output(task)))
        return Kill(setup, target, moment, step if starts > before else 0, starts)


def wait_for(process: subprocess.Popen, condition) -> bool:
    """Whether it came true before the process ended."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if condition():
            return True
        time.sleep(0.002)
    return False


def last_step(run: Path) -> int:
    """The last step in `logs/metrics.jsonl`."""
    path = run / "logs" / "metrics.jsonl"
    if not path.exists():
        return 0
    lines = [line for line in path.read_text().splitlines() if line.endswith("}")]
    return json.loads(lines[-1])["step"] if lines else 0


def saves(run: Path) -> list[Path]:
    return list((run / "checkpoints").glob("checkpoint-*"))


def launcher_of(snakemake: int) -> int | None:
    """Process id of the launcher below the process that stands for Snakemake."""
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
            session = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[3])
        except OSError:
            continue
        # As `tiny.launcher_command` starts it.
        if session == snakemake and words[1:4] == [b"-m", b"post_training", b"stage"]:
            return int(entry)
    return None


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def resumes_of(output: Path) -> list[int]:
    """The steps from which the starts went on, one a start that came so far."""
    found = []
    for line in output.read_text().splitlines():
        if "starting at step 0" in line:
            found.append(0)
        elif "resuming from checkpoint-" in line:
            found.append(int(line.split("checkpoint-")[1].split(";")[0].split(",")[0]))
    return found


def differences(one: Path, other: Path) -> list[str]:
    """What of two finished runs is not the same: weights, losses, rows."""
    found = []
    weights = f"checkpoints/checkpoint-{STEPS}/model.safetensors"
    if (one / weights).read_bytes() != (other / weights).read_bytes():
        found.append("weights")
    for key in ("step", "loss", "grad_norm", "learning_rate", "tokens"):
        if [line[key] for line in metrics_of(one)] != [line[key] for line in metrics_of(other)]:
            found.append(key)
    if (one / "logs/samples.jsonl").read_text() != (other / "logs/samples.jsonl").read_text():
        found.append("rows")
    return found


def run(kills: int, seed: int, folder: Path, ranks: int) -> bool:
    """So many kills over all setups; whether every run ended as if there had been none."""
    begun = time.monotonic()
    harness = Harness(folder, random.Random(seed), ranks)
    harness.prepare()
    print(f"faults: {kills} kills, seed {seed}, {ranks} ranks or 1, in {folder}", flush=True)
    number = 0
    while len(harness.kills) < kills:
        before = len(harness.kills)
        for setup, (_, kills_per_run) in SETUPS.items():
            left = kills - len(harness.kills)
            if left > 0:
                harness.test(setup, min(left, kills_per_run), number)
        if len(harness.kills) == before:
            raise SystemExit("no run could be killed: the harness does not find the processes that it should kill")
        number += 1
    lost = [kill.lost for kill in harness.kills]
    print(
        f"{len(lost)} kills, {len(lost)} resumes, {sum(lost)} steps taken again, at most {max(lost)} after one kill "
        f"(a save every {SAVE_STEPS} steps); {time.monotonic() - begun:.0f} s"
    )
    print(f"identical: {harness.identical}/{len(harness.kills)}", flush=True)
    return harness.identical == len(harness.kills)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    # With two ranks a sum has one order; from three on it depends on how gradients are put into buckets.
    parser.add_argument("--ranks", type=int, default=4, help="of DDP, ZeRO-2 and ZeRO-3")
    parser.add_argument("--keep", action="store_true", help="keep the runs")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    good = run(options.kills, options.seed, folder, options.ranks)
    good = sampling.run(options.kills, options.seed, folder / "sampling") and good
    if good and not options.keep:
        shutil.rmtree(folder)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
