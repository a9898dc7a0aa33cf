"""Body of the rule `preflight_checks`: everything that can be known before a GPU is asked for, in seconds and on the CPU.

Reads manifests, configurations and templates; no row of the data, and no weights. A failure ends the job with a line each, so that no
GPU rule starts; `preflight.only_warn` turns one into a warning. Beside the manifest stands what was found, also of a
preflight that failed, as `preflight.json`:

    {"verdict": "ok" | "warning" | "failure",
     "place": "local" | "slurm",
     "checks": [{"name": "data.longest_row", "stage": "sft", "value": "...", "verdict": "ok", "remedy": "",
                 "runs": [names of the runs that it is about; empty for all]}, ...],
     "trainings": {"<run directory below the output base>":
                   {"stage": "sft", "runs": [names of its runs], "predicted": {...}, "work": {...}}, ...}}

Each run directory gets a `preflight.json` of its own when its training starts, which is completed when that ends; so does
each probe, `<outputs>/preflight_probe/<name>/preflight.json`. There both sides have the same keys, and a key is left out where nothing
is known; any of the two may be null:

    {"stage": "sft", "checks": [...], "run": "...", "work": {what speed depends on: "method", "parameters", "dtype", ...},
     "predicted": {"steps", "tokens", "tokens_per_second", "step_seconds", "hours", "gpu_hours",
                   "peak_memory_bytes" (of one device), "checkpoint_bytes", "checkpoints_bytes", "export_bytes", ...
                   "memory": {"weights": bytes, "gradients", "optimizer", "reference", "activations", "head", "buffers"},
                   "rate_from": "where the speed comes from"},
     "measured": {... the same without "memory", "world_size", "hardware", and the keys of "work"}}

Light to import: what checks is loaded when it is called.
"""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from post_training.core import manifest
from post_training.core.errors import UserError
from post_training.core.fingerprint import FileHashes, write_atomically
from post_training.core.task import Task
from post_training.preflight.check import FAILURE, OK, WARNING, Check, only_warn, table, together
from post_training.run_dir.predictions import FILE


def run(task: Task) -> None:
    """Look at everything, print the table, and refuse what would fail. Raises UserError with a line for each failure."""
    from post_training.models.loading import silence_progress_bars
    from post_training.preflight import speed
    from post_training.preflight.subjects import subjects_of

    silence_progress_bars()
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    subjects = subjects_of(task)
    on_slurm = task.config["place"] == "slurm"
    found: list[Check] = []
    told: dict[str, Any] = {}
    templates: set[tuple[str, Path]] = set()
    for subject in subjects:
        own = only_warn(_checks_of(subject, templates, on_slurm), subject.view["preflight"]["only_warn"])
        found += [replace(check, runs=subject.runs) if check.stage else check for check in own]
        told[subject.run.name] = {
            "stage": subject.name,
            "runs": subject.runs,
            "predicted": predicted(subject),
            "work": speed.work(subject) | speed.batch_of(subject.view),
        }
    # What is about all runs only warns where each of them lets it.
    by_all = set.intersection(*(set(subject.view["preflight"]["only_warn"]) for subject in subjects))
    found = together(found) + only_warn(_general_checks(task, subjects, on_slurm), by_all)

    verdict = next((v for v in (FAILURE, WARNING) if any(check.verdict == v for check in found)), OK)
    facts = {
        "verdict": verdict,
        "place": task.config["place"],
        "checks": [c.as_json() for c in found],
        "trainings": told,
    }
    write_atomically(task.directory / FILE, json.dumps(facts, indent=1) + "\n")
    print(table(found), flush=True)
    failures = [check.line() for check in found if check.verdict == FAILURE]
    if failures:
        names = sorted({check.name for check in found if check.verdict == FAILURE})
        allowed = f"preflight.only_warn='[{','.join(names)}]' lets the run go on all the same"
        raise UserError("\n".join([*failures, f"preflight: {len(failures)} failed, and no GPU job starts; {allowed}"]))
    task.finish(**facts)


def _checks_of(subject: Any, templates: set[tuple[str, Path]], on_slurm: bool) -> list[Check]:
    """All checks of one training; a template that another stage has under the same tokenizer is looked at once."""
    from post_training.preflight import assets, data, libraries, optimisation, resources, speed, template

    found = [assets.rows(subject)]
    key = (subject.view["data"]["chat_template"], subject.folder)
    if key not in templates:
        templates.add(key)
        found += template.checks(subject)
    found += [*data.checks(subject), *optimisation.checks(subject), *libraries.checks(subject)]
    found += [resources.memory_check(subject), *speed.checks(subject)]
    return [*found, speed.wall_time(subject)] if on_slurm else found


def _general_checks(task: Task, subjects: list[Any], on_slurm: bool) -> list[Check]:
    from post_training.preflight import assets, disk, resources

    base = resources.base_of(task.output)
    models = {path: name for name, path in reversed(task.inputs.items()) if not name.endswith(" data")}
    found = assets.models({name: path for path, name in models.items()}, FileHashes(base / ".file_hashes.json"))
    found.append(disk.check([subject for subject in subjects if not subject.whole], base))
    return found + (resources.slurm(subjects) if on_slurm else [])


def predicted(subject: Any) -> dict[str, Any]:
    """Everything that is foretold of one stage."""
    from post_training.preflight import disk, memory, speed

    of_memory = memory.predict(subject)
    parts = {name: size for name, size in of_memory.as_json().items() if name != "peak"}
    return {**speed.predict(subject), "peak_memory_bytes": of_memory.peak, "memory": parts, **disk.predict(subject)}


def warnings(path: Path) -> list[str]:
    """Lines of the warnings of a preflight by its manifest; none where there is no manifest."""
    if not path.is_file():
        return []
    return [Check(**entry).line() for entry in manifest.read(path)["checks"] if entry["verdict"] == WARNING]
