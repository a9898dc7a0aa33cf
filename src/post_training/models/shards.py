"""Whole weights from the shards of a ZeRO checkpoint. Imports torch when called."""

import shutil
from pathlib import Path

from post_training.core.errors import UserError


def gather(checkpoint: Path, folder: Path) -> Path:
    """A folder that a model can be loaded from: the checkpoint's files of the model, and float32 weights from its shards.

    For checkpoints of ZeRO-3 that were saved without
    `stage3_gather_16bit_weights_on_model_save`. Takes memory for all weights in float32.

    Raises:
        UserError: when there are no shards either.
    """
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
    from safetensors.torch import save_file

    if not (checkpoint / "latest").is_file():
        raise UserError(f"{checkpoint}: holds neither weights nor DeepSpeed's shards of them")
    folder.mkdir(parents=True, exist_ok=True)
    for path in (*checkpoint.glob("*.json"), *checkpoint.glob("*.jinja"), *checkpoint.glob("*.model")):
        shutil.copyfile(path, folder / path.name)
    state = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint))
    # Tied weights are one tensor under two names, which the format does not allow.
    save_file(
        {name: tensor.clone().contiguous() for name, tensor in state.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    return folder
