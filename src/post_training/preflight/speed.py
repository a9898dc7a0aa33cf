"""Steps, tokens, hours and GPU-hours, and whether the wall time holds them.

The rate is what an earlier run or a probe of the same model, method and kind of device has measured; where there is none it
follows from an assumption, which the table shows: `preflight.assumed_mfu` of the device's peak, over the operations of a token.
A token costs 2 operations a parameter that it meets forward and 4 backward (Kaplan et al. 2020, arXiv:2001.08361, section 2.1),
forward once more with gradient checkpointing, and 12 x layers x q x length for attention, halved by its causal mask.
"""

import json
import math
from pathlib import Path
from typing import Any

from post_training.preflight import memory
from post_training.preflight.check import Check, judged
from post_training.preflight.subject import Subject
from post_training.slurm.placement import seconds as wall_seconds

START_SECONDS = {"GPU": 120.0, "CPU": 20.0}
"""From the start of a job to its first step: libraries, weights, kernels."""
_BYTES_A_SECOND = 1e9
"""At which a checkpoint is written."""
_MOST_LOST_SECONDS = 3600.0


def predict(subject: Subject) -> dict[str, Any]:
    """Steps, tokens, rate and its source, seconds a step, hours, and GPU-hours of the training, from its first step on."""
    rate, source = tokens_per_second(subject)
    tokens = tokens_per_step(subject) * subject.steps
    ranks = subject.topology.world_size
    training = tokens / (rate * ranks) if rate else None
    saves = subject.steps // max(subject.view["checkpointing"]["save_steps"], 1) + 1
    # Ranks write side by side.
    saving = saves * checkpoint_bytes(subject) / _BYTES_A_SECOND / subject.topology.num_nodes
    hours = (training + saving) / 3600 if training is not None else None
    return {
        "steps": subject.steps,
        "tokens": round(tokens),
        "tokens_per_second": round(rate * ranks, 1) if rate else None,
        "rate_from": source,
        "step_seconds": training / subject.steps if training is not None else None,
        "flops_per_token": round(flops_per_token(subject)),
        # A CPU's is measured beside whatever else it does, and utilisation by it would say nothing.
        "device_peak_flops": subject.device.peak_flops if subject.topology.device == "GPU" else None,
        "hours": round(hours, 4) if hours is not None else None,
        "gpu_hours": round(hours * ranks, 4) if hours is not None and subject.topology.device == "GPU" else None,
    }


def checks(subject: Subject) -> list[Check]:
    """What the training will take, and whether its allocations hold it."""
    told = predict(subject)
    hours, step = told["hours"], told["step_seconds"]
    name, length = subject.name, f"{told['steps']:,} steps, {told['tokens']:,} tokens"
    if hours is None:
        remedy = "name the GPUs with slurm.gpu_model, or run `snakemake preflight_probe`"
        return [Check("resources.time", f"{length}; unknown device", "warning", remedy, name)]
    cost = f", {told['gpu_hours']:,.2f} GPU-hours" if told["gpu_hours"] is not None else ""
    speed = f"{told['tokens_per_second']:,.0f} tokens/s ({told['rate_from']})"
    found = [Check("resources.time", f"{length}, {_hours(hours)}{cost} at {speed}", stage=name)]
    every = subject.view["checkpointing"]["save_steps"]
    lost = min(every, told["steps"]) * step
    found.append(
        judged(
            "resources.checkpoint_interval",
            f"{every:,} steps, {_hours(lost / 3600)}",
            warns=lost > _MOST_LOST_SECONDS,
            remedy=f"a crash loses so much: set checkpointing.save_steps to {max(1, int(_MOST_LOST_SECONDS / 2 / step))}",
            stage=name,
        )
    )
    return found


def wall_time(subject: Subject) -> Check:
    """Under Slurm: how many allocations the training will take. A run goes on in the next one by itself."""
    told, slurm = predict(subject), subject.view["slurm"]
    name, stage = "resources.wall_time", subject.name
    if told["hours"] is None:
        return Check(name, f"{slurm['wall_time']}; nothing to compare with", stage=stage)
    working = wall_seconds(slurm["wall_time"]) - slurm["signal_time_seconds"]
    needed = told["hours"] * 3600
    # An allocation that is no longer than the start-up may still take some steps: the start-up is a guess.
    allocations = math.ceil(needed / max(working - START_SECONDS[subject.topology.device], 0.1 * working))
    never = working < 2 * told["step_seconds"]
    return judged(
        name,
        f"{slurm['wall_time']} for {_hours(told['hours'])}"
        + (f", {allocations:,} allocations" if allocations > 1 else ""),
        fails=never,
        warns=allocations > 1,
        remedy="an allocation ends before a step does: raise slurm.wall_time"
        if never
        else "the run is saved at each limit and goes on in the next allocation; raise slurm.wall_time or slurm.num_nodes if you do not "
        "want to wait in the queue again",
        stage=stage,
    )


def tokens_per_step(subject: Subject) -> float:
    """Tokens without padding of an optimizer step, on the average."""
    tokens = int(subject.mix["tokens"])
    if subject.mix["config"]["rows"] == "preference":  # the prompt is read with either answer
        tokens += tokens - int(subject.mix["trained_tokens"])
    return tokens / subject.mix["rows_out"] * subject.training["effective_batch_size"]


def tokens_per_second(subject: Subject) -> tuple[float | None, str]:
    """Of one device, and where the number comes from."""
    for measured in subject.rates:
        return measured["tokens_per_second"] / measured["world_size"], f"measured in {measured['source']}"
    share = subject.view["preflight"]["assumed_mfu"]
    if subject.device.peak_flops is None:
        return None, "unknown device"
    return share * subject.device.peak_flops / flops_per_token(
        subject
    ), f"assumed: {share:.0%} of the peak of {subject.device.name}"


def flops_per_token(subject: Subject) -> float:
    """Operations that training spends on a token."""
    shape, view = subject.shape, subject.view
    length = (
        memory.longest_batch(subject)[1]
        if not subject.mix["config"]["packing"]
        else subject.mix.get("longest_document", 0)
    )
    # The input embedding is looked up; tied to the output it is multiplied by once.
    used = shape.parameters - shape.idle_parameters - (0 if shape.tied else shape.embedding)
    attention = 2 * shape.layers * shape.heads * shape.head_size * length
    forward = 2.0 * used + attention
    passes = (
        1.0
        + (1.0 if view["model"]["lora"] is not None else 2.0)
        + (1.0 if view["training"]["gradient_checkpointing"] else 0.0)
    )
    reference = 2.0 * subject.reference.parameters if subject.reference is not None else 0.0
    return forward * passes + reference


def checkpoint_bytes(subject: Subject) -> int:
    """One full checkpoint: weights as the trainer holds them, and the optimizer's states."""
    weights, _, _, _ = memory.states(subject)
    trained = memory.trainable(subject)
    if subject.deepspeed is None:
        return 12 * trained
    whole = 2 * subject.shape.parameters if subject.view["model"]["dtype"] != "float32" else weights
    return whole + 12 * trained


def measurements(base: Path) -> list[dict[str, Any]]:
    """What runs and probes below the output base have measured, newest first."""
    found = []
    for path in (*base.glob("*/preflight.json"), *base.glob("preflight_probe/*/preflight.json")):
        if path.parent.is_symlink():  # the same run by its name
            continue
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            measured, when = told.get("measured"), path.stat().st_mtime
        except (OSError, ValueError):
            continue
        if measured and measured.get("tokens_per_second"):
            foretold = (told.get("predicted") or {}).get("peak_memory_bytes")
            found.append((when, {**measured, "source": path.parent.name, "foretold_memory_bytes": foretold}))
    return [entry for _, entry in sorted(found, key=lambda pair: -pair[0])]


def measured_rates(found: list[dict[str, Any]], subject: Subject) -> list[dict[str, Any]]:
    """Those of the same work on the same kind of device."""
    wanted = work(subject)
    return [entry for entry in found if _same_work(entry, wanted)]


def memory_correction(subject: Subject) -> tuple[float, str] | None:
    """Measured over foretold memory of the newest measurement with this batch, and where it was; None without one."""
    batch_keys = batch_of(subject.view)
    for measured in subject.rates:
        foretold, found = measured["foretold_memory_bytes"], measured.get("peak_memory_bytes")
        if foretold and found and _same_work(measured, batch_keys):
            return found / foretold, measured["source"]
    return None


def batch_of(view: dict[str, Any]) -> dict[str, Any]:
    """What memory depends on besides."""
    training = view["training"]
    return {
        "per_device_train_batch_size": training["per_device_train_batch_size"],
        "attn_implementation": view["model"]["attn_implementation"],
    }


def work(subject: Subject) -> dict[str, Any]:
    """What decides the speed of a device: kept with each measurement."""
    return {
        "method": subject.method,
        "model_type": subject.shape.model_type,
        "parameters": subject.shape.parameters,
        "trainable_parameters": memory.trainable(subject),
        "dtype": subject.view["model"]["dtype"],
        "max_seq_length": subject.own["max_seq_length"],
        "gradient_checkpointing": subject.view["training"]["gradient_checkpointing"],
        "device": subject.topology.device,
        "device_name": subject.device.name,
    }


def _same_work(measured: dict[str, Any], expected: dict[str, Any]) -> bool:
    return all(measured.get(key) == value for key, value in expected.items())


def _hours(hours: float) -> str:
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{hours * 60:.0f} min" if hours * 60 >= 1 else f"{hours * 3600:.1f} s"
