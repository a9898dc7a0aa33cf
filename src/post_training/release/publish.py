"""Uploads the exported model to the Hugging Face Hub. Runs where `snakemake` was typed; off by default.

The token comes from HF_TOKEN alone: a login that a machine remembers is not used, and no file names one.
"""

import os
from pathlib import Path

from post_training.core import code, manifest
from post_training.core.errors import ConfigError, UserError, brief
from post_training.core.task import Task
from post_training.lineage import collect, verify
from post_training.lineage.verify import CARD

TOKEN = "HF_TOKEN"  # noqa: S105
# They name a user, a machine and its folders; provenance.json has the rest.
_NOT_PUBLISHED = (manifest.NAME, code.DIFF)


def check_token() -> None:
    """Raise ConfigError when there is no token to publish with."""
    if not os.environ.get(TOKEN):
        raise ConfigError("publish.push_to_hub", f"true, but {TOKEN} is not set; export a token that may write")


def run(task: Task) -> None:
    """Body of the rule `push`. The manifest records the commit. Raises UserError when the Hub refuses it."""
    check_token()
    name, private = task.config["hub_model_id"], task.config["private"]
    folder = task.inputs["export"].parent
    files = to_publish(task.inputs["export"])
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from huggingface_hub import HfApi

    api = HfApi(token=os.environ[TOKEN])
    size = sum((folder / file).stat().st_size for file in files)
    print(f"push: {len(files)} files, {size:,} bytes to {name}", flush=True)
    try:
        api.create_repo(name, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=name,
            folder_path=folder,
            allow_patterns=files,
            commit_message=f"{Path(folder).resolve().parent.name}, fingerprint {task.spec['inputs']['export'][:12]}",
        )
    except Exception as error:  # the client raises a kind for each cause; all are the Hub's or the network's
        remedy = f"check publish.hub_model_id, that {TOKEN} may write there, and the network"
        raise UserError(f"{name}: cannot be published ({type(error).__name__}: {brief(error)}); {remedy}") from None
    print(f"push: {done.commit_url}", flush=True)
    task.finish(files=[], repository=name, private=private, revision_sha=done.oid, url=done.commit_url, published=files)


def to_publish(export: Path) -> list[str]:
    """Names of the files that go to the Hub. Raises UserError when the folder is not what was exported."""
    lineage = collect(export)
    own = lineage["stages"][lineage["root"]]
    own["expected"] = {}
    exported = {file["path"] for file in own["files"]}
    # The user may complete the card, and files that came later are not published.
    found = verify({"root": lineage["root"], "stages": {lineage["root"]: own}, "gpu_hours": 0}).problems
    problems = [problem for problem in found if problem["file"] in {*exported, *_NOT_PUBLISHED}]
    if problems:
        raise UserError(
            f"{export.parent / problems[0]['file']}: {problems[0]['problem']}; {len(problems)} files are not what was exported, "
            "so nothing is published; delete the manifest to export again"
        )
    files = sorted(exported | {CARD})
    return [file for file in files if file not in _NOT_PUBLISHED and (export.parent / file).is_file()]
