"""Steps, tokens, hours and GPU-hours, and whether the wall time holds them.

The rate is what an earlier run or a probe of the same model, method and kind of device has measured; where there is none it
follows from an assumption, which the table shows: `preflight.assumed_mfu` of the device's peak, over the hardware's operations
for a token (flops.py).
"""

import math
from dataclasses import dataclass

from post_training.preflight import flops, memory
from post_training.preflight.check import WARNING, Check, check
from post_training.preflight.subject import Subject
from post_training.slurm.placement import seconds as wall_seconds

START_SECONDS = {"GPU": 120.0, "CPU": 20.0}
"""From the start of a job to its first step: libraries, weights, kernels."""
_BYTES_A_SECOND = 1e9
"""At which a checkpoint is written."""
_MOST_LOST_SECONDS = 3600.0


@dataclass(frozen=True)
class Speed:
    """Predicted cost of a training, from its first step on; None where the device's speed is not known."""

    steps: int
    tokens: int
    """Without padding."""
    tokens_per_second: float | None
    """Of all ranks."""
    rate_from: str
    """Where the rate comes from."""
    step_seconds: float | None
    flops_per_token: int
    """Hardware FLOPs, for HFU."""
    model_flops_per_token: int
    """Model FLOPs, for MFU."""
    device_peak_flops: float | None
    """In the compute type; None on a CPU, and in float32, where utilisation by bfloat16's peak would say nothing."""
    hours: float | None
    gpu_hours: float | None


def predict(subject: Subject) -> Speed:
    """Cost of the whole training."""
    rate, source = tokens_per_second(subject)
    tokens, ranks = tokens_per_step(subject) * subject.steps, subject.topology.world_size
    training = tokens / (rate * ranks) if rate else None
    saves = subject.steps // max(subject.view["checkpointing"]["save_steps"], 1) + 1
    # Ranks write side by side.
    saving = saves * memory.checkpoint_bytes(subject) / _BYTES_A_SECOND / subject.topology.num_nodes
    hours = (training + saving) / 3600 if training is not None else None
    on_gpu, operations = subject.topology.device == "GPU", flops_per_token(subject)
    return Speed(
        steps=subject.steps,
        tokens=round(tokens),
        tokens_per_second=round(rate * ranks, 1) if rate else None,
        rate_from=source,
        step_seconds=training / subject.steps if training is not None else None,
        flops_per_token=round(operations.hardware),
        model_flops_per_token=round(operations.model),
        device_peak_flops=subject.device.peak_flops if on_gpu and subject.view["model"]["dtype"] != "float32" else None,
        hours=round(hours, 4) if hours is not None else None,
        gpu_hours=round(hours * ranks, 4) if hours is not None and on_gpu else None,
    )


def checks(subject: Subject) -> list[Check]:
    """What the training will take, and what a crash would lose."""
    cost = predict(subject)
    length = f"{cost.steps:,} steps, {cost.tokens:,} tokens"
    if cost.hours is None or cost.step_seconds is None:
        remedy = "name the GPUs with slurm.gpu_model, or run `snakemake preflight_probe`"
        return [Check("resources.time", f"{length}; unknown device", WARNING, remedy)]
    gpu_hours = f", {cost.gpu_hours:,.2f} GPU-hours" if cost.gpu_hours is not None else ""
    rate = f"{cost.tokens_per_second:,.0f} tokens/s ({cost.rate_from})"
    every = subject.view["checkpointing"]["save_steps"]
    lost = min(every, cost.steps) * cost.step_seconds
    fewer = max(1, int(_MOST_LOST_SECONDS / 2 / cost.step_seconds))
    interval = check(
        "resources.checkpoint_interval",
        f"{every:,} steps, {_hours(lost / 3600)}",
        warns=lost > _MOST_LOST_SECONDS,
        remedy=f"a crash loses so much: set checkpointing.save_steps to {fewer}",
    )
    return [Check("resources.time", f"{length}, {_hours(cost.hours)}{gpu_hours} at {rate}"), interval]


def wall_time(subject: Subject) -> Check:
    """Under Slurm: how many allocations the training will take. A run resumes in the next one by itself."""
    cost, slurm, name = predict(subject), subject.view["slurm"], "resources.wall_time"
    if cost.hours is None or cost.step_seconds is None:
        return Check(name, f"{slurm['wall_time']}; nothing to compare with")
    working = wall_seconds(slurm["wall_time"]) - slurm["signal_time_seconds"]
    # An allocation that is no longer than the start-up may still take some steps: the start-up is a guess.
    stepping = max(working - START_SECONDS[subject.topology.device], 0.1 * working)
    allocations = math.ceil(cost.hours * 3600 / stepping)
    too_short = working < 2 * cost.step_seconds
    return check(
        name,
        f"{slurm['wall_time']} for {_hours(cost.hours)}"
        + (f", {allocations:,} allocations" if allocations > 1 else ""),
        fails=too_short,
        warns=allocations > 1,
        remedy="an allocation ends before a step does: raise slurm.wall_time"
        if too_short
        else "the run is saved at each limit and resumes in the next allocation; to wait in the queue less often, raise "
        "slurm.wall_time or slurm.num_nodes",
    )


def tokens_per_step(subject: Subject) -> float:
    """Tokens without padding of an optimizer step, on average."""
    tokens = int(subject.mix["tokens"])
    if subject.mix["config"]["rows"] == "preference":  # the prompt is read with either answer
        tokens += tokens - int(subject.mix["trained_tokens"])
    return tokens / subject.mix["rows_out"] * subject.training["effective_batch_size"]


def tokens_per_second(subject: Subject) -> tuple[float | None, str]:
    """Of one device, and where the number comes from."""
    for measured in subject.rates:
        return measured.tokens_per_second / measured.world_size, f"measured in {measured.source}"
    share, peak = subject.view["preflight"]["assumed_mfu"], subject.device.peak_flops
    if peak is None:
        return None, "unknown device"
    return share * peak / flops_per_token(
        subject
    ).hardware, f"assumed: {share:.0%} of the peak of {subject.device.name}"


def flops_per_token(subject: Subject) -> flops.Flops:
    """Operations that training spends on a token."""
    lora, checkpointing = subject.view["model"]["lora"] is not None, bool(subject.training["gradient_checkpointing"])
    return flops.per_token(
        subject.shape, subject.context, lora=lora, checkpointing=checkpointing, reference=subject.reference
    )


def _hours(hours: float) -> str:
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{hours * 60:.0f} min" if hours * 60 >= 1 else f"{hours * 3600:.1f} s"
