"""The changes that make a run's `config.yaml` rebuild the same model from its export.

Data and models stay where they are and are recorded by their hashes; code is small and is copied.
"""

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from post_training.config.deepspeed import merged_config
from post_training.config.names import dataset_name, recorded_as
from post_training.core.fingerprint import write_atomically
from post_training.data.mix import EVAL
from post_training.data.registry import KEPT, TransformSource
from post_training.lineage.collect import Lineage, Stage, Stages, to_source, trainings
from post_training.models.hub_kernel import parse

FOLDER = "provenance"
Tree = dict[str, Any]
Sections = list[tuple[Tree, Stage]]
Recorded = dict[str, list[list[str]]]


def sections(tree: Tree, lineage: Lineage) -> Sections:
    """Each stage's section of a run's configuration, and its training, the last one first."""
    found: Sections = []
    name = tree["method"]
    for training in trainings(lineage):
        found.append((tree[name], training))
        name = tree[name]["init_from"]
    return found


def recorded_files(found: Sections, stages: Stages) -> Recorded:
    """`recorded_files` of the configuration: the contents of all local paths that the model was made from."""
    recorded: Recorded = {}
    for section, training in found:
        mixed = stages[training["inputs"]["data"]]["inputs"]
        for entry in section["data"]["datasets"]:
            name, held = dataset_name(entry, "data.datasets"), entry["eval_split"]
            parts = {name: recorded_as(entry["path"], entry["split"])}
            if held is not None:
                is_path = bool(set(held) & set("/*?~")) or os.path.exists(held)
                parts[EVAL + name] = recorded_as(*((held, entry["split"]) if is_path else (entry["path"], held)))
            for part, path in parts.items():
                chain = to_source(stages, mixed.get(part))
                recorded |= _local(path, chain)
                for stage in (stage for stage in chain if stage["stage"] == "filter"):
                    recorded |= _compared(section, stage, stages)
        recorded |= _model(section["model"]["name_or_path"], section["model"], stages[training["inputs"]["model"]])
        if (other := section.get("ref_model_name_or_path")) is not None:
            inputs = training["inputs"]
            key = inputs.get("reference_model") or stages[inputs["reference"]]["inputs"]["model"]
            recorded |= _model(other, {}, stages[key])
    return dict(sorted(recorded.items()))


def _local(path: str, chain: list[Stage]) -> Recorded:
    """The files that a dataset was read from, where they are local."""
    return {path: _outside(chain[-1])} if chain and "sha256" in chain[-1].get("config", {}) else {}


def _compared(section: Tree, filtered: Stage, stages: Stages) -> Recorded:
    """The local files that training rows were decontaminated against."""
    against = section["data"]["filters"]["decontaminate_against"]
    recorded = {recorded_as(against): _outside(filtered)} if against else {}
    for entry in section["evaluation"]["datasets"]:
        chain = to_source(stages, filtered["inputs"].get(f"evaluation:{dataset_name(entry, 'evaluation.datasets')}"))
        recorded |= _local(recorded_as(entry["path"], entry["split"]), chain)
    return recorded


def _outside(stage: Stage) -> list[list[str]]:
    """Name and sha256 of a stage's files that are the user's own."""
    return [[Path(f["path"]).name, f["sha256"]] for f in stage["files"] if f["path"].startswith("/")]


def _model(path: str | None, section: Tree, stage: Stage) -> Recorded:
    """The local files of a starting model."""
    scratch = section.get("from_scratch")
    if scratch and stage["stage"] == "build_model":
        return {recorded_as(scratch["corpus"]): _outside(stage)}
    local = stage["stage"] in ("download_model", "merge_adapter") and path and stage["config"].get("sha256")
    return {str(path): local} if local else {}


def keep_code(found: Sections, stages: Stages, folder: Path) -> None:
    """Copy the user's templates and transform modules below `folder`, and name the copies in the sections.

    The copies are those that were used: a template from the tokens that were made with it, a module from the rows.
    A module that made none of the rows, such as an evaluation's, is copied as it is now.
    """
    made = sorted((stage for stage in stages.values() if stage.get("module")), key=lambda stage: stage["finished"])
    used = {stage["module"]: Path(str(stage["directory"])) / KEPT for stage in made}
    copies: dict[str, str] = {}
    for section, training in found:
        data, modules = section["data"], section["data"]["transform_modules"]
        for number, module in enumerate(modules):
            if module.endswith(".py") and (module in used or Path(module).is_file()):
                file = Path(module)
                copied = TransformSource("", used[module] / file.name if module in used else file)
                place = _copy_of(copies, module, file.stem)
                for name, path in copied.files.items():
                    write_atomically(folder / place / name, path.read_text(encoding="utf-8"))
                modules[number] = f"{place}/{file.name}"
        template = data["chat_template"]
        mixed = stages[training["inputs"]["data"]]["inputs"].values()
        texts = [text for key in mixed if (text := stages[key].get("config", {}).get("chat_template"))]
        if template.endswith(".jinja") and texts:
            data["chat_template"] = _copy_of(copies, template, Path(template).name)
            write_atomically(folder / data["chat_template"], texts[0])
        speed = section["deepspeed"]
        if speed["config_path"] is not None and Path(speed["config_path"]).is_file():
            speed |= {"config": merged_config(speed), "config_path": None}


def pin_revisions(found: Sections, stages: Stages) -> None:
    """Replace the revisions of datasets, models and kernels of the Hub by the commits that were fetched."""
    fetched = [stage for stage in stages.values() if stage.get("revision_sha")]
    hubs = [(stage["config"]["hub"], stage["revision_sha"]) for stage in fetched]
    commits = {(hub.get("path") or hub.get("name_or_path"), hub["revision"]): sha for hub, sha in hubs}
    for section, _ in found:
        for entry in [*section["data"]["datasets"], *section["evaluation"]["datasets"]]:
            entry["revision"] = commits.get((str(entry["path"]), entry["revision"]), entry["revision"])
        model = section["model"]
        model["revision"] = commits.get((model["name_or_path"], model["revision"] or "main"), model["revision"])
        kernel = parse(model["attn_implementation"])
        if kernel and (commit := commits.get((kernel.repository, kernel.revision))):
            model["attn_implementation"] = str(replace(kernel, revision=commit))


def leave_out_evaluation(found: Iterable[tuple[Tree, Any]]) -> None:
    """Take everything that only measures a model out of the sections: a rebuild needs neither it nor its files."""
    for section, _ in found:
        evaluation = section["evaluation"] | {"prompts": None, "lm_eval": {}}
        if not section["data"]["filters"]["decontaminate"]:
            evaluation["datasets"] = []
        section["evaluation"] = evaluation


def _copy_of(copies: dict[str, str], path: str, name: str) -> str:
    """Where a file of the user's is copied to, below the export: two files of one name get different folders."""
    if path not in copies:
        taken = sum(copy.rpartition("/")[2] == name for copy in copies.values())
        copies[path] = f"{FOLDER}/{taken + 1}/{name}" if taken else f"{FOLDER}/{name}"
    return copies[path]
