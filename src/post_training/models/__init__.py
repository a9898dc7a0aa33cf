"""Models as folders on this machine: where a stage's model is. Light."""

from pathlib import Path

from post_training.core import manifest
from post_training.core.errors import UserError


def folder(manifest_path: Path | str) -> Path:
    """The model folder that a manifest stands for.

    Of `download_model`, `build_model` and `export`. A folder inside the stage's directory is kept
    relative to the manifest, so that results can be moved; a local folder of the user's is absolute.
    """
    manifest_path = Path(manifest_path)
    told = manifest.read(manifest_path).get("folder")
    if told is None:
        raise UserError(f"{manifest_path}: has no model folder; delete it to run the stage again")
    found = manifest_path.parent / told  # an absolute `told` replaces the left side
    if not (found / "config.json").is_file():
        raise UserError(f"{found}: the model of {manifest_path} is gone; delete that manifest to make it again")
    return found
