"""The configuration with which Snakemake was last started in this folder; `status` shows that run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from post_training.core.fingerprint import write_atomically

DEFAULT_CONFIG = "config/config.yaml"
_FILE = Path(".snakemake") / "last_call.json"


def note_call(config: Mapping[str, Any], command_line: Mapping[str, Any]) -> None:
    """Keep it, as `resolve_runs` takes it. Call this once it is known to be sound: it holds no secret then."""
    _FILE.parent.mkdir(exist_ok=True)
    write_atomically(_FILE, json.dumps({"config": config, "command_line": command_line}, default=str) + "\n")


def last_call() -> dict[str, Any] | None:
    """`config` and `command_line` of that call; None before the first one."""
    try:
        return dict(json.loads(_FILE.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None
