"""A process that owns a directory, and whether it is still alive.

An owner is dead when it has said so; when its process is gone, on its own machine; when its Slurm job is
gone or was requeued; or, where neither can be seen, when its file has not been touched for STALE_SECONDS by
the file server's own clock.
"""

import os
import secrets
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

STALE_SECONDS = 300.0
_HIDDEN = "hidden"


@dataclass(frozen=True)
class Owner:
    """A process that owns a directory, as its file says."""

    host: str
    pid: int
    process: str
    """Boot, PID namespace and start time: no later process with the same id has the same."""
    slurm_job_id: str | None
    since: str
    stopping: bool = False
    """It was asked to stop and will be gone soon."""
    released: bool = False
    slurm_restart: str = "0"

    def describe(self) -> str:
        """`process 4711 on node3 (Slurm job 1234), since 2026-11-25T22:00:00`."""
        job = f" (Slurm job {self.slurm_job_id})" if self.slurm_job_id else ""
        return f"process {self.pid} on {self.host}{job}, since {self.since}"


def this_process() -> Owner:
    """The owner that this process would be."""
    pid, job, restart = os.getpid(), os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_RESTART_COUNT") or "0"
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    return Owner(socket.gethostname(), pid, _process(pid) or _HIDDEN, job, now, slurm_restart=restart)


def why_alive(owner: Owner, me: Owner, path: Path) -> str | None:
    """The reason to take an owner for alive, or None."""
    if owner.released:
        return None
    same_job = owner.slurm_job_id is not None and owner.slurm_job_id == me.slurm_job_id
    if same_job and owner.slurm_restart != me.slurm_restart:
        return None  # Slurm has requeued the job, wherever the process of its former attempt may still run
    here = same_machine(owner, me)
    if here and _process(owner.pid) == owner.process:
        return "its process runs"
    if same_job:
        return None
    if owner.slurm_job_id is not None:
        state = _slurm_state(owner.slurm_job_id)
        if state is not None:
            # Also when the process here is gone: its ranks on other nodes live as long as the job.
            return f"its job is {state.lower()}" if state else None
    if here and _process(owner.pid) != _HIDDEN:
        return None
    age = _age(path)
    return f"its last sign of life is {age:.0f} s old" if age < STALE_SECONDS else None


def same_machine(owner: Owner, me: Owner) -> bool:
    """Whether both saw the same boot and the same PID namespace."""
    return owner.process.rpartition(" ")[0] == me.process.rpartition(" ")[0]


def client_environment() -> dict[str, str]:
    """Environment of Slurm's commands: filters and formats that a user has set in the shell would hide live jobs."""
    filters = ("SQUEUE_", "SACCT_", "SCONTROL_", "SCANCEL_", "SINFO_")
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(filters) and name != "SLURM_TIME_FORMAT"
    }


def _slurm_state(job: str) -> str | None:
    """State of a job in the queue, pending after a requeue included; empty when it has left the queue; None if unknown."""
    command = ["squeue", "--noheader", "--jobs", job, "--format", "%T"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=client_environment())
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return "" if "Invalid job id" in done.stderr else None
    return (done.stdout.split() or [""])[0]


def _process(pid: int) -> str | None:
    """Boot, PID namespace and start time of a process; None when it is gone or a zombie; _HIDDEN when it may not be seen."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except OSError:
            return _HIDDEN
        return _HIDDEN
    return None if fields[0] == "Z" else f"{boot} {namespace} {fields[19]}"


def _age(path: Path) -> float:
    """Seconds since a file was touched, by the clock of the server that holds it."""
    probe = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    probe.touch()
    try:
        return max(0.0, probe.stat().st_mtime - path.stat().st_mtime)
    finally:
        probe.unlink()
