"""A real Slurm of several nodes on this machine (see cluster.sh and run.sh)."""

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from pipelines import ROOT, Project, configuration, slurm, until


@pytest.fixture(scope="session", autouse=True)
def cluster() -> Iterator[None]:
    if "POST_TRAINING_TEST_CLUSTER" not in os.environ:
        pytest.skip("no test cluster; `make test-slurm` brings one up")
    stop = threading.Event()

    def shorten_the_wait_of_requeued_jobs() -> None:
        seen: dict[str, float] = {}
        while not stop.wait(0.5):
            lines = slurm("squeue", "-h", "-t", "PENDING", "-o", "%A %r").splitlines()
            waiting = {line.split()[0] for line in lines if line.endswith("BeginTime")}
            seen = {job: seen.get(job, time.monotonic()) for job in waiting}
            for job, since in seen.items():
                # Started in the second of its requeue, it would be killed: "Job credential revoked".
                if time.monotonic() - since > 2:
                    slurm("scontrol", "update", f"jobid={job}", "StartTime=now")

    thread = threading.Thread(target=shorten_the_wait_of_requeued_jobs, daemon=True)
    thread.start()
    yield
    stop.set()
    thread.join()


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """A folder that all processes of these tests share, filled by the one that asks first."""
    path = Path(os.environ["CL_DIR"]) / "shared" / name
    path.parent.mkdir(exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.with_suffix(".complete").exists():
            shutil.rmtree(path, ignore_errors=True)
            make(path)
            path.with_suffix(".complete").touch()
    return path


@pytest.fixture(scope="session")
def prepared() -> Path:
    """A folder with sources, and the model and the rows that they become, made by jobs on the cluster."""

    def make(path: Path) -> None:
        shutil.copytree(ROOT / "config" / "demo", path / "demo")
        Project(path, configuration()).start("data").ends(0)

    return made_once("prepared", make)


@pytest.fixture(scope="session")
def built_extension() -> None:
    """DeepSpeed's collectives for the CPU, if the other tests have built them here: a minute of two cores."""
    name, cache = (
        "deepspeed_shm_comm",
        Path(tempfile.gettempdir()) / f"post-training-{os.getuid()}" / "torch_extensions",
    )
    built = next(iter(Path.home().glob(f".cache/torch_extensions/*/{name}/{name}.so")), None)
    if built and not (cache / name / built.name).exists():
        cache.parent.mkdir(mode=0o700, exist_ok=True)
        shutil.copytree(built.parent, cache / name, dirs_exist_ok=True, ignore=shutil.ignore_patterns("lock"))


@pytest.fixture
def make(tmp_path: Path, prepared: Path) -> Iterator[Callable[..., Project]]:
    """`make(name, key__of__config=value)`: a project whose data stages are done; its jobs end with the test.

    With `like_nfs` on a file system where a file that is deleted while it is open stays in its folder under another name,
    which therefore cannot be removed; on an ordinary one where bindfs is missing.
    """
    made: list[Project] = []
    mounted: list[Path] = []

    def function(name: str = "project", *, like_nfs: bool = False, **changes: Any) -> Project:
        if like_nfs and shutil.which("bindfs"):
            for folder in (tmp_path / name, tmp_path / f"{name}-below"):
                folder.mkdir()
            if slurm("sh", "-c", f"bindfs {tmp_path / name}-below {tmp_path / name} && echo mounted"):
                mounted.append(tmp_path / name)
        if like_nfs and not mounted:
            print("no bindfs here: an ordinary file system")
        shutil.copytree(
            prepared, tmp_path / name, ignore=shutil.ignore_patterns(".snakemake", "*.log"), dirs_exist_ok=True
        )
        made.append(Project(tmp_path / name, configuration(**changes)))
        return made[-1]

    yield function
    for project in made:
        for line in slurm("squeue", "-h", "-o", "%A|%o").splitlines():
            if str(project.path) in line:
                slurm("scancel", line.split("|")[0])
    for path in mounted:
        slurm("umount", "-l", str(path))


@pytest.fixture(scope="session")
def undisturbed(prepared: Path) -> dict[int, Project]:
    """Ranks -> the run that all others of so many ranks must equal. The two train at the same time."""
    configurations = {ranks: configuration(slurm__gpus_per_node=ranks) for ranks in (1, 2)}

    def make(path: Path) -> None:
        mains = []
        for ranks, config in configurations.items():
            shutil.copytree(prepared, path / str(ranks), ignore=shutil.ignore_patterns(".snakemake", "*.log"))
            mains.append(Project(path / str(ranks), config).start())
        for main in mains:
            main.ends(0)

    path = made_once("undisturbed", make)
    return {ranks: Project(path / str(ranks), config) for ranks, config in configurations.items()}


@pytest.fixture(scope="session")
def warned(tmp_path_factory: Any, prepared: Path) -> Iterator[Project]:
    """A run that would never end, in an allocation of three minutes: started early, looked at late."""
    path = tmp_path_factory.mktemp("warned") / "project"
    shutil.copytree(prepared, path, ignore=shutil.ignore_patterns(".snakemake", "*.log"))
    never = {"training__max_steps": 100000, "checkpointing__save_steps": 100000, "slurm__wall_time": "00:03:00"}
    project = Project(path, configuration(slurm__gpus_per_node=1, **never))
    project.main = project.start()

    def end_it_when_it_was_warned() -> None:
        job = until(project.jobs, "the warning")[0]
        # More than once: what comes in the moment of its requeue is undone by that.
        until(lambda: slurm("scancel", job) or project.main.process.poll() is not None, "the end")

    threading.Thread(target=end_it_when_it_was_warned, daemon=True).start()
    yield project
    for line in slurm("squeue", "-h", "-o", "%A|%o").splitlines():
        if str(path) in line:
            slurm("scancel", line.split("|")[0])
