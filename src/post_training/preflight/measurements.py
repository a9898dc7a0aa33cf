"""What earlier runs and probes have measured, for predictions of the same work."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from post_training.preflight.subject import Measurement, Subject


def measurements(base: Path) -> list[Measurement]:
    """All below the output base, newest first."""
    found = []
    for path in (*base.glob("*/preflight.json"), *base.glob("preflight_probe/*/preflight.json")):
        if path.parent.is_symlink():  # the same run by its name
            continue
        try:
            record, when = json.loads(path.read_text(encoding="utf-8")), path.stat().st_mtime
            measured = record.get("measured") or {}
        except (OSError, ValueError):
            continue
        if rate := measured.get("tokens_per_second"):
            sizes = (measured.get("peak_memory_bytes"), (record.get("predicted") or {}).get("peak_memory_bytes"))
            found.append((when, Measurement(path.parent.name, rate, measured["world_size"], *sizes, measured)))
    return [entry for _, entry in sorted(found, key=lambda pair: -pair[0])]


def same_work(measured: Measurement, wanted: Mapping[str, Any]) -> bool:
    """Whether it was measured on the same `work`, or with the same batch."""
    return all(measured.work.get(key) == value for key, value in wanted.items())


def work(subject: Subject) -> dict[str, Any]:
    """What decides the speed of a device: kept with each measurement."""
    return {
        "method": subject.method,
        "model_type": subject.shape.model_type,
        "parameters": subject.shape.parameters,
        "trainable_parameters": subject.trainable,
        "dtype": subject.view["model"]["dtype"],
        "max_seq_length": subject.own["max_seq_length"],
        "gradient_checkpointing": subject.training["gradient_checkpointing"],
        "device": subject.topology.device,
        "device_name": subject.device.name,
    }


def batch_of(view: dict[str, Any]) -> dict[str, Any]:
    """What memory depends on besides `work`."""
    return {
        "per_device_train_batch_size": view["training"]["per_device_train_batch_size"],
        "attn_implementation": view["model"]["attn_implementation"],
    }


def memory_correction(subject: Subject) -> tuple[float, str] | None:
    """Measured / predicted memory of the newest measurement with this batch, and its source; None without one."""
    for entry in subject.rates:
        measured, predicted = entry.peak_memory_bytes, entry.predicted_memory_bytes
        if measured and predicted and same_work(entry, batch_of(subject.view)):
            return measured / predicted, entry.source
    return None
