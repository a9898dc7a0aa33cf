"""Libraries that others import wherever they are installed, hidden from the processes that do not use them."""

import json
import sys

from post_training.core.task import Task


def hide_unused(task: Task) -> None:
    """Hide bitsandbytes from a process whose task holds no 4-bit weights and names no optimizer, and wandb from one that
    does not log to it.

    PEFT imports the first, with torch's compiler, and Transformers the second: together two seconds of every start.
    """
    settings = json.dumps([task.config, task.runtime], default=str)
    quantized = '"quantization": {' in settings or '"optim"' in settings or task.stage in ("generate", "score_model")
    for name, used in (("bitsandbytes", quantized), ("wandb", '"wandb"' in settings)):
        if not used:
            sys.modules.setdefault(name, None)  # type: ignore[arg-type]
