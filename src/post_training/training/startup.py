"""Packages that this run does not use stay out of the process. Light: called before Transformers and TRL are imported.

They import what is installed, used or not: wandb, DeepSpeed and PEFT together take as long as torch. A job
pays that again after each requeue, on every rank, while the clock of its allocation runs.
"""

import functools
import importlib.metadata
import sys
from typing import Any

from post_training.config.deepspeed import deepspeed_config


def hide_unused(view: dict[str, Any]) -> None:
    """Make packages count as not installed, in this process, where the configuration has no use for them.

    `None` in `sys.modules` is Python's own mark for a module that cannot be imported.
    """
    unused = {
        "wandb": "wandb" not in view["logging"]["report_to"],
        "deepspeed": deepspeed_config(view) is None,
        "peft": not view["model"].get("lora"),
    }
    for name, hidden in unused.items():
        if hidden and name not in sys.modules:
            sys.modules[name] = None  # type: ignore[assignment]
    # Transformers and TRL both read the files of every installed package for it, a quarter of a second each.
    importlib.metadata.packages_distributions = functools.cache(importlib.metadata.packages_distributions)
