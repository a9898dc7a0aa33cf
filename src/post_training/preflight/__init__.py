"""Body of the rule `preflight_checks`: all checks that need no GPU, in seconds and on the CPU.

Reads manifests, the mix's index, configurations and templates; no tokens; of weights, up to 20 GiB, only whether they are
numbers. A failure ends the job with a line each, so that no GPU rule starts; `preflight.only_warn` turns one into a warning.
The findings, also of a preflight that failed, are in `preflight.json` beside the manifest:

    {"verdict": "ok" | "warning" | "failure",
     "place": "local" | "slurm",
     "checks": [{"name": "data.longest_row", "stage": "sft", "value": "...", "verdict": "ok", "remedy": "",
                 "runs": [names of the runs that it is about; empty for all]}, ...],
     "trainings": {"<run directory below the output base>":
                   {"stage": "sft", "runs": [names of its runs], "predicted": {...}, "work": {...}}, ...}}

Each run directory gets a `preflight.json` of its own when its training starts, completed when it ends, and so does each probe,
`<outputs>/preflight_probe/<name>/preflight.json`. `predicted` and `measured` have the same keys; a key that is not known is
left out, and either side may be null:

    {"stage": "sft", "checks": [...], "run": "...", "work": {what speed depends on: "method", "parameters", "dtype", ...},
     "predicted": {the fields of speed.Speed, "peak_memory_bytes" (of one device), "memory": {the parts of memory.Memory}, the
                   fields of disk.Files},
     "measured": {... the same without "memory", and "world_size", "hardware", and the keys of "work"}}

What a check needs is imported when it is called: the Snakefile imports this module.
"""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from post_training.core import manifest
from post_training.core.errors import UserError
from post_training.core.fingerprint import FileHashes, write_atomically
from post_training.core.task import Task
from post_training.preflight.check import FAILURE, OK, WARNING, Check, merge, only_warn, table
from post_training.run_dir.predictions import FILE

if TYPE_CHECKING:
    from post_training.preflight.subject import Subject


def run(task: Task) -> None:
    """Run all checks and print the table. Raises UserError with a line for each failure."""
    from post_training.models.loading import silence_progress_bars
    from post_training.preflight.measurements import batch_of, work
    from post_training.preflight.subjects import subjects_of

    silence_progress_bars()
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    subjects, on_slurm = subjects_of(task), task.config["place"] == "slurm"
    found: list[Check] = []
    trainings: dict[str, Any] = {}
    templates: set[tuple[str, Path]] = set()
    for subject in subjects:
        own = only_warn(_checks_of(subject, templates, on_slurm), subject.view["preflight"]["only_warn"])
        found += [replace(check, runs=subject.runs) if check.stage else check for check in own]
        trainings[subject.run.name] = {
            "stage": subject.name,
            "runs": subject.runs,
            "predicted": predicted(subject),
            "work": work(subject) | batch_of(subject.view),
        }
    # A check of all runs only warns where each of them lets it.
    by_all = set.intersection(*(set(subject.view["preflight"]["only_warn"]) for subject in subjects))
    found = merge(found) + only_warn(_general_checks(task, subjects, on_slurm), by_all)

    verdict = next((v for v in (FAILURE, WARNING) if any(check.verdict == v for check in found)), OK)
    checks = [check.as_json() for check in found]
    facts = {"verdict": verdict, "place": task.config["place"], "checks": checks, "trainings": trainings}
    write_atomically(task.directory / FILE, json.dumps(facts, indent=1) + "\n")
    print(table(found), flush=True)
    failures = [check for check in found if check.verdict == FAILURE]
    if failures:
        names = ",".join(sorted({check.name for check in failures}))
        allowed = f"preflight.only_warn='[{names}]' lets the run start all the same"
        last = f"preflight: {len(failures)} failed, and no GPU job starts; {allowed}"
        raise UserError("\n".join([*(check.line() for check in failures), last]))
    task.finish(**facts)


def _checks_of(subject: "Subject", templates: set[tuple[str, Path]], on_slurm: bool) -> list[Check]:
    """All checks of one training; a template that another stage has under the same tokenizer is checked once, for all."""
    from post_training.preflight import (
        assets,
        chat_tokens,
        data,
        gpu,
        libraries,
        optimisation,
        resources,
        speed,
        start_model,
        template,
        twin,
    )

    key = (subject.view["data"]["chat_template"], subject.folder)
    shared = [] if key in templates else template.checks(subject)
    templates.add(key)
    rows = assets.rows(subject)
    own = [
        *data.checks(subject),
        *optimisation.checks(subject),
        *libraries.checks(subject),
        *gpu.checks(subject),
        start_model.adapters(subject),
        chat_tokens.chat_tokens(subject),
    ]
    own.append(twin.check(subject, own))
    own += [resources.memory_check(subject), resources.inference_check(subject), *speed.checks(subject)]
    own += [speed.wall_time(subject)] if on_slurm else []
    return [replace(rows, stage=subject.name), *shared, *(replace(check, stage=subject.name) for check in own)]


def _general_checks(task: Task, subjects: "list[Subject]", on_slurm: bool) -> list[Check]:
    from post_training.preflight import assets, disk, resources, start_model

    base = resources.base_of(task.output)
    models = {path: name for name, path in reversed(task.inputs.items()) if not name.endswith((" data", " kernel"))}
    named, hashes = {name: path for path, name in models.items()}, FileHashes(base / ".file_hashes.json")
    found = assets.models(named, hashes) + start_model.models(named)
    found += assets.kernels({path for name, path in task.inputs.items() if name.endswith(" kernel")}, hashes)
    found.append(disk.check_disk([subject for subject in subjects if not subject.complete], base))
    return found + (resources.slurm(subjects) if on_slurm else [])


def predicted(subject: "Subject") -> dict[str, Any]:
    """The predictions for one stage, as in `preflight.json`."""
    from post_training.preflight import disk, memory, speed

    parts = asdict(memory.predict(subject))
    peak = {"peak_memory_bytes": parts.pop("peak"), "memory": parts}
    return {**asdict(speed.predict(subject)), **peak, **asdict(disk.predict(subject))}


def warnings(path: Path) -> list[str]:
    """Lines of the warnings of a preflight by its manifest; none where there is no manifest."""
    if not path.is_file():
        return []
    return [Check(**entry).line() for entry in manifest.read(path)["checks"] if entry["verdict"] == WARNING]
