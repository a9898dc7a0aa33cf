"""Models as folders on this machine."""

import logging
from pathlib import Path

from post_training.core import manifest
from post_training.core.errors import UserError

# PEFT imports bitsandbytes wherever it is installed, which then says that a kernel for inference in 4 bits on a CPU is missing.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def folder(manifest_path: Path | str) -> Path:
    """The model folder of a manifest.

    For `download_model`, `build_model` and `export`. A folder inside the stage's directory is recorded
    relative to the manifest, so that results can be moved; a local folder of the user's is absolute. Raises UserError
    when it is gone.
    """
    manifest_path = Path(manifest_path)
    recorded = manifest.read(manifest_path).get("folder")
    if recorded is None:
        raise UserError(f"{manifest_path}: has no model folder; delete it to run the stage again")
    found = manifest_path.parent / recorded  # an absolute one replaces the left side
    if not (found / "config.json").is_file():
        raise UserError(f"{found}: the model of {manifest_path} is gone; delete that manifest to make it again")
    return found
