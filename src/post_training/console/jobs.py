"""What is known of each job of a call, for lines that say more than a rule and a fingerprint."""

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path

from post_training.core.stages import STAGES
from post_training.run_dir import attempts

_LEFT = re.compile(r"(?P<time>\d+(?::\d\d)+) left")
_TAIL_BYTES = 4096


@dataclass(frozen=True)
class Job:
    """One job of the plan."""

    kind: str
    """As in core/stages.py."""
    label: str
    """Its dataset, stage or model, as `Graph.label_of` names it."""
    output: Path
    """Its manifest."""
    task_file: Path
    log: Path
    """Of a job on this machine."""
    preflight: Path | None = None
    """Of a training: the findings of its preflight, which predict its time."""

    @property
    def name(self) -> str:
        """`train sft-scratch-llama`."""
        return f"{self.kind} {self.label}"

    def said(self, slurm_job: str | None = None) -> str:
        """The last line of its output, without the kind or stage in front; empty where there is none."""
        path = self.log if slurm_job is None else attempts.folder_of(self.output.parent) / f"slurm-{slurm_job}.out"
        line = last_line(path)
        head, colon, rest = line.partition(": ")
        return rest if colon and head in (self.kind, *re.split(r"[-@ ]", self.label)) else line

    def predicted_seconds(self) -> float | None:
        """What preflight predicts of a training; None for other jobs, and where nothing is known."""
        try:
            assert self.preflight is not None
            own = json.loads(self.preflight.read_text(encoding="utf-8"))["trainings"][self.output.parent.name]
            return float(own["predicted"]["hours"]) * 3600
        except (AssertionError, OSError, ValueError, KeyError, TypeError):
            return None


PLANNED: dict[str, Job] = {}
"""Manifest of a job, as Snakemake names it -> the job; of this call."""

LABELS: dict[str, str] = {}
"""The same manifests -> labels of a dry run's jobs."""

TARGETS = ["all", "data", "preflight", "preflight_probe", "report"]
"""What can be asked for by name; of this call's workflow, once it is known."""


def last_line(path: Path) -> str:
    """The last line of a file that says something."""
    try:
        with open(path, "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(text.splitlines()) if re.search(r"\w", line)), "")


class Board:
    """Which jobs wait, run and are done, and about how long the rest takes. Times are in seconds."""

    def __init__(self, jobs: dict[str, Job]) -> None:
        self.jobs = jobs
        self.began = time.monotonic()
        self.running: dict[str, float] = {}
        """Output of a running job -> when it began."""
        self.slurm: dict[str, tuple[str, str]] = {}
        """Output of a job under Slurm -> its id there, and its state in words."""
        self.finished: set[str] = set()
        self._took: dict[str, list[float]] = {}
        self._predicted: dict[str, float] = {}

    def start(self, output: str) -> None:
        """A job begins."""
        self.running[output] = time.monotonic()

    def end(self, output: str, *, done: bool) -> float:
        """A job has ended; returns how long it took."""
        took = time.monotonic() - self.running.pop(output, time.monotonic())
        self.slurm.pop(output, None)
        if done:
            self.finished.add(output)
            if output in self.jobs:
                self._took.setdefault(self.jobs[output].kind, []).append(took)
        return took

    def seconds_left(self) -> float | None:
        """An estimate from jobs of the same kind, predictions and what trainings say themselves; None before there is any."""
        alone, beside = 0.0, 0.0
        for output, job in self.jobs.items():
            if output in self.finished:
                continue
            ran = time.monotonic() - self.running[output] if output in self.running else 0.0
            seconds = self._estimate(output, job, ran)
            if seconds is None:
                return None
            if STAGES[job.kind].place == "ranks":
                alone += seconds
            else:
                beside += seconds
        return alone + beside / max(1, len(self.running))

    def _estimate(self, output: str, job: Job, ran: float) -> float | None:
        if ran and (found := _LEFT.search(job.said(self.slurm.get(output, (None,))[0]))):
            return sum(int(part) * 60**power for power, part in enumerate(reversed(found["time"].split(":"))))
        if own := self._took.get(job.kind):
            return max(0.0, sum(own) / len(own) - ran)
        if STAGES[job.kind].place == "ranks":
            predicted = self._prediction(output, job)
            return None if predicted is None and job.kind == "train" else max(0.0, (predicted or 0.0) - ran)
        others = [took for kind, all_took in self._took.items() if kind != "train" for took in all_took]
        return max(0.0, sum(others) / len(others) - ran) if others else None

    def _prediction(self, output: str, job: Job) -> float | None:
        """Read once it is there: the console asks twice a second, for every training of a sweep."""
        if output not in self._predicted and (seconds := job.predicted_seconds()) is not None:
            self._predicted[output] = seconds
        return self._predicted.get(output)
