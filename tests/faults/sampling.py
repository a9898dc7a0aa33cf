"""Kills generate, score and select at random moments, and checks that nothing was lost and nothing done is done again.

A pipeline of sampled data is made once without disturbance. Then it is made again and again while it is killed with SIGKILL at
random moments, and the same command is given again. In the end every file must have the same bytes; a stage that was complete
at a kill must be the very same file, and of an unfinished one at most one batch may be computed again.

`harness.py` has Snakemake make it, and kills its jobs, or all of it. The test starts processes that have everything loaded already, so
that a kill costs a second; they run the same bodies, one stage after the other.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tiny import LLAMA, TEMPLATE, conversation

PROMPTS, ANSWERS, SHARDS, BATCH = 48, 16, 2, 24
# Slow enough to be killed in; several batches of 256 answers.
REWARD = """
import os, time
from pathlib import Path
from post_training.rewards import answer_texts, register_reward

@register_reward("slow_length")
def slow_length(prompts, completions, **columns):
    '''Characters, the more the better.'''
    time.sleep(0.4)
    with open(Path(__file__).with_name("scored.txt"), "a") as file:
        file.write(f"{len(completions)}\\n")
    return [float(len(text)) for text in answer_texts(completions)]
"""


@dataclass
class Sampling:
    """The pipeline and its kills."""

    folder: Path
    random: random.Random
    by_snakemake: bool
    kills: int = 0
    interrupted: list[str] = field(default_factory=list)
    """What was at work when it was killed."""

    def prepare(self, name: str) -> Path:
        """A folder with its configuration."""
        folder = self.folder / name
        folder.mkdir(parents=True)
        rows = [json.dumps({"messages": conversation(n)}) for n in range(200)]
        (folder / "rows.jsonl").write_text("\n".join(rows) + "\n")
        prompts = [json.dumps({"prompt": conversation(n)[0]["content"]}) for n in range(PROMPTS)]
        (folder / "prompts.jsonl").write_text("\n".join(prompts) + "\n")
        (folder / "plain.jinja").write_text(TEMPLATE)
        (folder / "rewards.py").write_text(REWARD)
        dataset = {
            "name": "sampled",
            "prompts": {"path": "prompts.jsonl"},
            "generate": {"model": "base", "n": ANSWERS, "max_new_tokens": 12, "shards": SHARDS, "batch_size": BATCH},
            "score": [{"reward": "slow_length"}, {"reward": "contains", "texts": ["a", "e"], "weight": 0.5}],
            "select": {"pairs": "all_ordered", "cut": "keep"},
        }
        scratch = {"model_type": "llama", "config": LLAMA, "vocab_size": 300, "corpus": ["rows.jsonl"]}
        config = {
            "method": "dpo",
            "offline": True,
            "model": {"dtype": "float32", "from_scratch": scratch},
            "training": {"max_steps": 1, "effective_batch_size": 4},
            "data": {"chat_template": "plain.jinja", "num_proc": 1, "transform_modules": ["rewards.py"]},
            "dpo": {"init_from": "base", "max_seq_length": 128, "data": {"datasets": [dataset]}},
        }
        (folder / "config.yaml").write_text(json.dumps(config))
        return folder

    def start(self, folder: Path) -> int:
        """Process id of one that makes what is missing, the leader of a group."""
        if self.by_snakemake:
            command = [
                "snakemake",
                "--snakefile",
                str(Path(__file__).parents[2] / "Snakefile"),
                "--configfile",
                "config.yaml",
            ]
            profile = Path(__file__).parents[2] / "profiles/default"
            command += ["--workflow-profile", str(profile), "-c", "2", self.target(folder)]
            with (folder / "output.txt").open("a") as output:
                return subprocess.Popen(command, cwd=folder, start_new_session=True, stdout=output, stderr=output).pid
        if pid := os.fork():
            return pid
        status = 1
        try:
            os.setsid()
            log = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            _count_answers(folder)
            self.make(folder)
            status = 0
        finally:
            sys.stdout.flush()
            os._exit(status)

    def make(self, folder: Path) -> None:
        """What Snakemake has jobs do, in this process."""
        from post_training.plan.make import run_stage, upstream

        plan, select = self.plan(folder)
        for stage in [*upstream(select), select]:
            if not (plan.base / stage.manifest).is_file():
                run_stage(plan, stage)

    def plan(self, folder: Path):
        from post_training.config import load_file, resolve
        from post_training.plan import make_plan

        os.chdir(folder)
        plan = make_plan(resolve(load_file("config.yaml")))
        (select,) = plan.stages["select"].values()
        return plan, select

    def target(self, folder: Path) -> str:
        """Path of the manifest of the rows."""
        here = os.getcwd()
        plan, select = self.plan(folder)
        os.chdir(here)
        return str(plan.base / select.manifest)

    def run_to_end(self, folder: Path) -> float:
        """Seconds that it took. Exits where it does not end well."""
        begun = time.monotonic()
        _, status = os.waitpid(self.start(folder), 0)
        if status:
            raise SystemExit(f"{folder}: did not end well\n{(folder / 'output.txt').read_text()[-3000:]}")
        return time.monotonic() - begun

    def run_with_kills(self, folder: Path, kills: int, seconds: float) -> int:
        """At most so many kills, each after a random part of the time that an undisturbed run takes, then to the end.

        Returns how many there were: a run may come to its end first.
        """
        complete: dict[Path, tuple[int, int]] = {}
        killed = 0
        while killed < kills:
            pid = self.start(folder)
            time.sleep(self.random.uniform(0.05, 0.7 * seconds))
            if os.waitpid(pid, os.WNOHANG)[0]:
                break
            jobs = processes_of(pid)[1:]
            # A job under Snakemake, which then ends by itself, or everything.
            if jobs and self.random.random() < 0.5:
                os.kill(self.random.choice(jobs), signal.SIGKILL)
            else:
                os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            killed += 1
            started = folder.rglob("outputs/data/*/*/*.jsonl")
            self.interrupted += [p.parent.parent.name for p in started if not p.with_name("manifest.json").exists()]
            self.check(complete)
            complete = {path: _identity(path) for path in folder.rglob("outputs/**/manifest.json")}
        self.run_to_end(folder)
        self.check(complete)
        for name, batch in (("generated.txt", BATCH), ("scored.txt", 256)):
            if (folder / name).is_file():
                done = sum(map(int, (folder / name).read_text().split()))
                assert done <= PROMPTS * ANSWERS + killed * batch, f"{name}: {done} answers, after {killed} kills"
        self.kills += killed
        return killed

    def check(self, complete: dict[Path, tuple[int, int]]) -> None:
        """What was complete is still the same file."""
        for path, identity in complete.items():
            assert _identity(path) == identity, f"{path}: was made again"

    def without_answers(self, name: str, made: Path) -> Path:
        """A copy of a finished folder from which answers and what follows are taken away."""
        folder = self.folder / name
        kinds = ["generated", "scored", "selected", "*.txt", "tasks", "logs"]
        shutil.copytree(made, folder, ignore=shutil.ignore_patterns(*kinds))
        return folder


def _count_answers(folder: Path) -> None:
    from post_training.on_policy.engine import Engine

    answers = Engine.answers

    def counted(engine, requests):
        found = answers(engine, requests)
        with open(folder / "generated.txt", "a") as file:
            file.write(f"{len(found)}\n")
        return found

    Engine.answers = counted


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def processes_of(leader: int) -> list[int]:
    """Process ids of a session, the leader first."""
    found = [leader]
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and int(entry) != leader and fields[0] != "Z":
            found.append(int(entry))
    return found


def results(folder: Path) -> dict[str, bytes]:
    """Every file of rows, answers and scores by its path."""
    base = folder / "outputs" / "data"
    kinds = ("prompts", "generated", "scored", "selected")
    return {str(path.relative_to(base)): path.read_bytes() for kind in kinds for path in (base / kind).rglob("*.jsonl")}


def run(kills: int, seed: int, folder: Path, by_snakemake: bool = True, kills_per_run: int = 5) -> bool:
    """So many kills; whether every run ended with the bytes of the undisturbed one."""
    begun = time.monotonic()
    harness = Sampling(folder, random.Random(seed), by_snakemake)
    here = os.getcwd()
    try:
        made = harness.prepare("straight")
        if by_snakemake:
            harness.run_to_end(made)
        else:  # everything is loaded then
            harness.make(made)
        expected, identical, number = results(made), 0, 0
        assert len(expected) >= SHARDS + 4
        seconds = harness.run_to_end(harness.without_answers("again", made))
        assert results(folder / "again") == expected
        while harness.kills < kills:
            own = harness.without_answers(f"killed {number}", made)
            mine = harness.run_with_kills(own, min(kills_per_run, kills - harness.kills), seconds)
            if results(own) == expected:
                identical += mine
            else:
                print(f"sampling: DIFFERS from the undisturbed run; kept in {own}", flush=True)
            number += 1
    finally:
        os.chdir(here)
    counts = Counter(harness.interrupted)
    print(
        f"sampling: {harness.kills} kills, at which files were unfinished: {dict(counts)}; {time.monotonic() - begun:.0f} s"
    )
    print(f"sampling: identical: {identical}/{harness.kills}", flush=True)
    return identical == harness.kills
