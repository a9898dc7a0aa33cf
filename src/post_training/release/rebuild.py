"""What an exported `config.yaml` needs of the user's own to make the same model again somewhere else.

Data and models stay where they are and are told by their hashes; code is small and comes along.
"""

import os
from pathlib import Path
from typing import Any

from post_training.config.deepspeed import overlaid
from post_training.config.load import load_file
from post_training.config.names import dataset_name, recorded_as
from post_training.core.fingerprint import write_atomically
from post_training.data.mix import EVAL
from post_training.data.registry import TransformSource
from post_training.data.transform import SOURCE

FOLDER = "provenance"
Tree = dict[str, Any]
Stages = dict[str, Tree]
Sections = list[tuple[Tree, Tree]]
Recorded = dict[str, list[list[str]]]


def sections(tree: Tree, lineage: Tree) -> Sections:
    """Each stage's section of a run's configuration, and its training, the last one first."""
    found: Sections = []
    name, key = tree["method"], lineage["root"]
    while name != "base":
        training = lineage["stages"][key]
        found.append((tree[name], training))
        name = tree[name]["init_from"]
        key = lineage["stages"][training["inputs"]["model"]]["inputs"].get("train")
    return found


def recorded_files(found: Sections, stages: Stages) -> Recorded:
    """`recorded_files` of the configuration: what all local paths held that the model was made from."""
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
                chain = _chain(stages, mixed.get(part))
                recorded |= _local(path, chain)
                for stage in (stage for stage in chain if stage["stage"] == "filter"):
                    recorded |= _looked_for(section, stage, stages)
        recorded |= _model(section["model"]["name_or_path"], section["model"], stages[training["inputs"]["model"]])
        if (other := section.get("ref_model_name_or_path")) is not None:
            inputs = training["inputs"]
            key = inputs.get("reference_model") or stages[inputs["reference"]]["inputs"]["model"]
            recorded |= _model(other, {}, stages[key])
    return dict(sorted(recorded.items()))


def _chain(stages: Stages, key: str | None) -> list[Tree]:
    """From a dataset's tokens back to its source."""
    found: list[Tree] = []
    while key is not None:
        found.append(stages[key])
        key = stages[key]["inputs"].get("rows") or stages[key]["inputs"].get("raw")
    return found


def _local(path: str, chain: list[Tree]) -> Recorded:
    """The files that a dataset was read from, where they are local."""
    return {path: _outside(chain[-1])} if chain and "sha256" in chain[-1].get("config", {}) else {}


def _looked_for(section: Tree, filtered: Tree, stages: Stages) -> Recorded:
    """The local files whose rows a filter has kept out of the training's."""
    against = section["data"]["hygiene"]["decontaminate_against"]
    recorded = {recorded_as(against): _outside(filtered)} if against else {}
    for entry in section["evaluation"]["datasets"]:
        chain = _chain(stages, filtered["inputs"].get(f"evaluation:{dataset_name(entry, 'evaluation.datasets')}"))
        recorded |= _local(recorded_as(entry["path"], entry["split"]), chain)
    return recorded


def _outside(stage: Tree) -> list[list[str]]:
    """Name and sha256 of a stage's files that are the user's own."""
    return [[Path(f["path"]).name, f["sha256"]] for f in stage["files"] if f["path"].startswith("/")]


def _model(path: str | None, section: Tree, stage: Tree) -> Recorded:
    """The local files of a starting model."""
    scratch = section.get("from_scratch")
    if scratch and stage["stage"] == "build_model":
        return {recorded_as(scratch["corpus"]): _outside(stage)}
    local = stage["stage"] == "download_model" and path and stage["config"].get("sha256")
    return {str(path): local} if local else {}


def keep_code(found: Sections, stages: Stages, folder: Path) -> None:
    """Copy the user's templates and transform modules below `folder`, and let the sections name them there.

    They are taken as they were used: a template from the tokens that were made with it, a module from the rows.
    A module that has made none of the rows, as of an evaluation, is taken as it is.
    """
    made = sorted((stage for stage in stages.values() if stage.get("module")), key=lambda stage: stage["finished"])
    used = {stage["module"]: Path(stage["directory"]) / SOURCE for stage in made}
    places: dict[str, str] = {}
    for section, training in found:
        data = section["data"]
        modules = [module for module in data["transform_modules"] if module.endswith(".py")]
        for module in (module for module in modules if module in used or Path(module).is_file()):
            copy = TransformSource("", used[module] / Path(module).name if module in used else Path(module))
            place = _place(places, module, Path(module).stem)
            for name, file in copy.files.items():
                write_atomically(folder / place / name, file.read_text(encoding="utf-8"))
            _replace(data["transform_modules"], module, f"{place}/{Path(module).name}")
        template = data["chat_template"]
        mixed = stages[training["inputs"]["data"]]["inputs"].values()
        texts = [text for key in mixed if (text := stages[key].get("config", {}).get("chat_template"))]
        if template.endswith(".jinja") and texts:
            data["chat_template"] = _place(places, template, Path(template).name)
            write_atomically(folder / data["chat_template"], texts[0])
        speed = section["deepspeed"]
        if speed["config_path"] is not None and Path(speed["config_path"]).is_file():
            speed["config"] = overlaid(load_file(speed["config_path"]), speed["config"])
            speed["config_path"] = None


def pin_revisions(found: Sections, stages: Stages) -> None:
    """Let the sections name datasets and models of the Hub by the commits that were fetched."""
    fetched = [stage for stage in stages.values() if stage.get("revision_sha")]
    hubs = [(stage["config"]["hub"], stage["revision_sha"]) for stage in fetched]
    commits = {(hub.get("path") or hub.get("name_or_path"), hub["revision"]): sha for hub, sha in hubs}
    for section, _ in found:
        for entry in [*section["data"]["datasets"], *section["evaluation"]["datasets"]]:
            entry["revision"] = commits.get((str(entry["path"]), entry["revision"]), entry["revision"])
        model = section["model"]
        model["revision"] = commits.get((model["name_or_path"], model["revision"] or "main"), model["revision"])


def leave_out_evaluation(found: Sections) -> None:
    """Take out of the sections what a model is only measured with: a rebuild needs none of it, nor has its files."""
    for section, _ in found:
        evaluation = section["evaluation"] | {"prompts": None, "lm_eval": {}}
        if not section["data"]["hygiene"]["decontaminate"]:
            evaluation["datasets"] = []
        section["evaluation"] = evaluation


def _place(places: dict[str, str], path: str, name: str) -> str:
    """Where a file of the user's goes, below the export: another folder for each of two that are called alike."""
    if path not in places:
        taken = sum(place.rpartition("/")[2] == name for place in places.values())
        places[path] = f"{FOLDER}/{taken + 1}/{name}" if taken else f"{FOLDER}/{name}"
    return places[path]


def _replace(values: list[str], old: str, new: str) -> None:
    values[values.index(old)] = new
