"""A result with its lineage as an RO-Crate, the form that WorkflowHub, Zenodo and others read (profile Workflow Run Crate)."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from post_training.core.errors import UserError
from post_training.lineage.collect import Lineage, Stage
from post_training.lineage.show import facts, sources

_PROFILES = (
    "https://w3id.org/ro/wfrun/process/0.5", "https://w3id.org/ro/wfrun/workflow/0.5", "https://w3id.org/workflowhub/workflow-ro-crate/1.0",
)  # fmt: skip
_WORKFLOW = "workflow/Snakefile"


def write_crate(lineage: Lineage, folder: Path) -> None:
    """Copy the files of a result to `folder`, with `ro-crate-metadata.json`: the workflow, its run, and an action for each stage.

    Raises UserError without the package `rocrate`, for a folder that is not empty, and for a result that is not on this machine.
    """
    root = lineage["stages"][lineage["root"]]
    if find_spec("rocrate") is None:
        raise UserError("--ro-crate: rocrate is not installed here; pip install rocrate")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: is not empty; give a new folder")
    if root["directory"] is None:
        raise UserError(f"{lineage['root']}: is not on this machine, so there are no files to put into a crate")
    from rocrate.model.contextentity import ContextEntity
    from rocrate.rocrate import ROCrate

    crate: Any = ROCrate()
    title = Path(lineage["root"]).parent.name if root["stage"] == "export" else lineage["root"]
    crate.name = title
    crate.description = f"{root['stage']} {lineage['root']} and everything that it was made from"
    if licence := next((stage["license"] for stage in lineage["stages"].values() if stage.get("license")), None):
        crate.license = licence
    profiles = [
        crate.add(ContextEntity(crate, url, {"@type": "CreativeWork", "name": url.rsplit("/", 2)[1]}))
        for url in _PROFILES
    ]
    crate.root_dataset["conformsTo"] = profiles
    workflow = crate.add_workflow(_snakefile(), _WORKFLOW, main=True, lang="snakemake")
    workflow["name"] = "post-training"
    if git := root.get("git"):
        workflow["version"] = git["commit"]
    made = [
        _add_file(crate, Path(root["directory"]), path)
        for path in sorted(Path(root["directory"]).rglob("*"))
        if path.is_file()
    ]
    used = _sources(crate, lineage)
    for key, stage in lineage["stages"].items():
        action = _action(crate, workflow, key, stage)
        action["object"] = [used[key]] if key in used else [{"@id": f"#{other}"} for other in stage["inputs"].values()]
    run = _action(crate, workflow, "run", root)
    run["name"], run["object"], run["result"] = f"the run that made {title}", list(used.values()), made
    crate.root_dataset["mentions"] = [run]
    crate.write(folder)


def _snakefile() -> Path:
    """The workflow's file, where this package is in its checkout; else the package's own front door stands for it."""
    found = Path(__file__).resolve().parents[3] / _WORKFLOW
    return found if found.is_file() else Path(__file__).resolve().parents[1] / "__main__.py"


def _add_file(crate: Any, directory: Path, path: Path) -> Any:
    return crate.add_file(
        path, dest_path=f"result/{path.relative_to(directory)}", properties={"contentSize": str(path.stat().st_size)}
    )


def _sources(crate: Any, lineage: Lineage) -> dict[str, Any]:
    """Key of each stage that reads from outside -> the source as an entity: a repository at its commit, or files by their digests."""
    from rocrate.model.contextentity import ContextEntity

    found = {}
    for key, stage in lineage["stages"].items():
        if lines := sources(stage):
            repository = stage.get("repository")
            kind = {"download": "datasets/", "download_kernel": "kernels/"}.get(stage["stage"], "")
            identifier = (
                f"https://huggingface.co/{kind}{repository}/tree/{stage.get('revision_sha')}"
                if repository
                else f"#source-{key}"
            )
            properties: dict[str, Any] = {
                "@type": "Dataset" if repository else "CreativeWork",
                "name": repository or key,
                "description": "; ".join(lines),
            }
            if stage.get("license"):
                properties["license"] = stage["license"]
            found[key] = crate.add(ContextEntity(crate, identifier, properties))
    return found


def _action(crate: Any, workflow: Any, key: str, stage: Stage) -> Any:
    """What a stage did: when, and its main facts."""
    properties: dict[str, Any] = {
        "@type": "CreateAction",
        "name": f"{stage.get('stage', 'stage')} {key}",
        "description": " · ".join(facts(stage)),
    }
    if finished := stage.get("finished"):
        properties["endTime"] = finished
    return crate.add_action(workflow, identifier=f"#{key}", properties=properties)
