"""Memory of the devices, and what Slurm says of the jobs."""

import shutil
from pathlib import Path

from post_training.core.devices import USABLE
from post_training.core.errors import UserError
from post_training.core.format import gib
from post_training.models.weights import BYTES, gpus_needed, inference_bytes
from post_training.preflight import memory
from post_training.preflight.check import Check, check, failed
from post_training.preflight.measurements import memory_correction
from post_training.preflight.subject import Subject


def memory_check(subject: Subject) -> Check:
    """Predicted memory a device against what it has; on the CPU all ranks of the machine share it."""
    predicted, device, name = memory.predict(subject), subject.device, "resources.memory"
    factor, source = memory_correction(subject) or (1.0, None)
    value = predicted.describe() + (f", times {factor:.2f} as measured by {source}" if source else "")
    needed = memory.needed_bytes(subject, predicted.peak * factor)
    if device.memory_bytes is None:
        remedy = "name the GPUs with slurm.gpu_model"
        return Check(name, f"{value}; unknown device", "warning", remedy)
    usable = device.memory_bytes * USABLE
    return check(
        name,
        f"{value} of {gib(device.memory_bytes)} ({device.name})",
        fails=needed > 1.15 * usable,
        warns=needed > 0.9 * usable,
        remedy=relief(subject),
    )


def inference_check(subject: Subject) -> Check:
    """What export, evaluation and `generate` hold of the model, and on how many devices."""
    name, device = "resources.inference", subject.device
    size = subject.shape.parameters * BYTES[subject.view["model"]["dtype"]]
    if subject.topology.device == "CPU":
        have = device.memory_bytes
        return check(
            name,
            f"{gib(size)} of weights" + (f" in {gib(have)}" if have else ""),
            warns=have and size > 0.9 * have,
            remedy="export and evaluation need a machine with more memory",
        )
    needed = inference_bytes(size)
    if device.memory_bytes is None:
        return Check(name, f"{gib(needed)}; unknown device")
    count, node = gpus_needed(size, int(device.memory_bytes * USABLE)), subject.topology.devices_per_node
    return check(
        name,
        f"{gib(needed)} on {count} GPU{'s' * (count > 1)} of {gib(device.memory_bytes)}",
        warns=count > node,
        remedy=f"a node has {node}: export and evaluation would use the CPU, which is slow; use nodes with more GPUs or larger ones",
    )


def relief(subject: Subject) -> str:
    """What lowers the largest part."""
    predicted, training = memory.predict(subject), subject.training
    hints = []
    if predicted.activations > 0.3 * predicted.peak:
        if training["per_device_train_batch_size"] > 1:
            hints.append("lower training.per_device_train_batch_size")
        if not training["gradient_checkpointing"]:
            hints.append("set training.gradient_checkpointing=true")
        hints.append(f"lower {subject.method}.max_seq_length")
    if predicted.weights + predicted.gradients + predicted.optimizer > 0.3 * predicted.peak:
        stage = subject.zero_stage
        if subject.topology.world_size > 1 and (stage or 0) < 3:
            hints.append("set deepspeed.config_path=zero3")
        elif subject.topology.world_size > 1:
            hints.append("use more GPUs, or deepspeed.config_path=zero3_offload")
        if subject.view["model"]["lora"] is None:
            hints.append("train adapters (model.lora)")
        elif subject.view["model"]["quantization"] is None and stage != 3:
            hints.append("hold the frozen weights in 4 bits (model.quantization)")
    if predicted.reference:
        hints.append("set dpo.reference=stored" if subject.method == "dpo" else "use more GPUs")
    return "; ".join(hints[:3]) or "use GPUs with more memory"


def slurm(subjects: list[Subject]) -> list[Check]:
    """Whether Slurm would take every job, asked of `sbatch --test-only`, `sinfo` and the accounting."""
    from post_training.slurm.check import check_views

    name = "resources.slurm"
    if shutil.which("sbatch") is None:
        return [check(name, "no sbatch here: Slurm was not asked", warns=True, remedy="check it on a login node")]
    try:
        warnings = check_views((subject.name, subject.view) for subject in subjects)
    except UserError as error:
        return [failed(name, error)]
    return [check(name, "; ".join(warnings) or "Slurm would take every job", warns=warnings, remedy="see sinfo -R")]


def gres(partition: str | None) -> list[str]:
    """What the nodes of the GPU partition have, in Slurm's words; empty where it cannot be asked."""
    from post_training.slurm import cluster

    words = [f"--partition={partition}"] if partition else []
    done = cluster.run("sinfo", "--noheader", *words, "--format=%G")
    return [line for line in done.stdout.splitlines() if "gpu" in line] if done.returncode == 0 else []


def base_of(output: Path) -> Path:
    """The output base, of a manifest at `<base>/preflight/<name>/manifest.json`."""
    return output.parents[2]
