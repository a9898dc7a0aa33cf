"""The environments that the Makefile makes: what the locks hold, and, with network and disk, whether they install and work.

`make test-install` makes two environments outside of this one: for CUDA, where no nvcc is to be had, and on a torch that
a machine provides, which is a CPU build of an environment of its own.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
GIGABYTES = 16
"""What both environments and the wheels on their way need."""
IMPORTS = """
import importlib, sys
from importlib.metadata import packages_distributions
modules = {}
for module, names in packages_distributions().items():
    for name in names:
        modules.setdefault(name.lower().replace("_", "-").replace(".", "-"), []).append(module)
for name in sys.argv[1:]:
    for module in modules[name]:
        if not module.startswith("_"):
            importlib.import_module(module)
import torch
print(torch.__version__, torch.version.cuda)
"""


def site_torch():
    spec = importlib.util.spec_from_file_location("site_torch", ROOT / "envs" / "site_torch.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lock(build):
    lines = (ROOT / "envs" / f"lock-{build}.txt").read_text().split()
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}


def required(*extras):
    extra = PROJECT["optional-dependencies"]
    lines = PROJECT["dependencies"] + [line for name in extras for line in extra[name]]
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize("build", ["cpu", "cuda"])
def test_a_lock_pins_everything_that_is_required(build):
    pinned = lock(build)
    for requirement in required(build, "slurm", "evaluation", "dev"):
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


def test_the_locks_differ_in_what_cuda_needs_alone():
    cpu, cuda = lock("cpu"), lock("cuda")
    assert {name: cuda[name] for name in cpu.keys() & cuda.keys()} == {
        name: cpu[name] for name in cpu.keys() & cuda.keys()
    }
    more = {name for name in cuda.keys() - cpu.keys() if not name.startswith(("nvidia-", "cuda-"))}
    assert more == {"triton", "liger-kernel"}


def test_vllm_has_versions_of_its_own():
    pinned, makefile = lock("vllm"), (ROOT / "Makefile").read_text()
    assert f'"vllm=={pinned["vllm"]}"' in makefile and ".venv-vllm/.done: envs/lock-vllm.txt" in makefile
    assert all(pinned.values()) and not {"trl", "post-training", "snakemake"} & pinned.keys()
    # If it could have those of training, it would need no environment of its own.
    assert any(pinned[name] != lock("cuda")[name] for name in ("torch", "transformers"))


def test_nothing_in_a_lock_is_compiled_against_another_part_of_it():
    assert not {"flash-attn", "kernels"} & lock("cuda").keys()
    assert "flash-attn" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize(
    ("version", "accepted"),
    [
        ("2.5.1", False),
        ("2.6.0", True),
        ("2.9.0a0+git5f2a", True),
        ("2.13.0+rocm7", True),
        ("2.14.0", False),
        ("3.0", False),
    ],
)
def test_torch_versions_of_a_site(version, accepted):
    assert site_torch().is_accepted(version) is accepted


def test_a_site_keeps_its_torch_and_what_belongs_to_it():
    names = {canonicalize_name(name) for name in site_torch().packages()}
    assert lock("cuda").keys() - names == {
        name
        for name in lock("cuda")
        if name in ("torch", "triton") or (name.startswith(("nvidia-", "cuda-")) and name != "nvidia-ml-py")
    }


def made(folder, build, python=sys.executable, **environment):
    """An environment as the Makefile makes it, without this one's packages and without a compiler for CUDA."""
    cleared = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV", "CUDA_HOME")
    }
    path = {"PATH": "/usr/bin:/bin", "PIP_NO_COMPILE": "1"}  # what is imported is compiled then
    assert shutil.which("nvcc", path=path["PATH"]) is None
    words = ["make", f"VENV={folder}", f"PYTHON={python}", f"BUILD={build}", f"{folder}/.{build}"]
    done = subprocess.run(words, cwd=ROOT, env=cleared | path | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder / "bin", done.stdout


def base_python():
    return str(Path(sys.base_prefix) / "bin" / "python3")


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    if "POST_TRAINING_TEST_INSTALL" not in os.environ:
        pytest.skip("`make test-install` installs")
    path = tmp_path_factory.mktemp("environments")
    free = shutil.disk_usage(path).free / 1e9
    if free < GIGABYTES:
        pytest.skip(f"{free:.0f} GB are free, {GIGABYTES} are needed")
    yield path
    shutil.rmtree(path, ignore_errors=True)


# The index's own build, whatever torch pip's settings here would prefer.
INDEX = {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""}


@pytest.mark.slow
def test_the_lock_for_cuda_resolves():
    """By metadata alone, for which nothing large is downloaded; `make test-install` installs it."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
    command += ["--requirement", str(ROOT / "envs" / "lock-cuda.txt")]
    done = subprocess.run(command, env=os.environ | INDEX | {"DS_BUILD_OPS": "0"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_installs_for_cuda_without_a_compiler_and_checks_a_run_on_two_nodes(room):
    binaries, _ = made(room / "cuda", "cuda", base_python(), **INDEX)
    names = [canonicalize_name(requirement.name) for requirement in required("cuda", "slurm", "evaluation")]
    plain = {"PATH": f"{binaries}:/usr/bin:/bin", "HOME": str(room)}
    said = subprocess.run([binaries / "python", "-c", IMPORTS, *names], env=plain, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr[-3000:]
    assert re.match(r"2\.\d+\.\d+(\+cu\d+)? \d+\.\d+$", said.stdout.splitlines()[-1])

    project = room / "project"
    shutil.copytree(ROOT, project, ignore=shutil.ignore_patterns(".*", "outputs", "tests", "shared", "build"))
    two_nodes = "slurm.num_nodes=2 slurm.gpus_per_node=4 slurm.gpu_model=h100-80 training.effective_batch_size=16 training.per_device_train_batch_size=2"
    # Where the tests on a cluster have left their sbatch, there is nobody that it reaches.
    two_nodes += " preflight.only_warn=[resources.slurm]"
    for words in (["data"], ["preflight", "--executor", "slurm"]):
        command = [binaries / "snakemake", *words, "--config", "method=dpo", f"set={two_nodes}"]
        done = subprocess.run(command, cwd=project, env=plain, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    logs = [path.read_text() for path in (project / "outputs" / "logs" / "preflight").glob("*.log")]
    assert logs and all("libraries.attention" in text for text in logs)


@pytest.mark.slow
def test_installs_on_the_torch_that_a_machine_provides_and_trains_with_it(room):
    site = room / "site-python"
    subprocess.run([base_python(), "-m", "venv", site], check=True)
    pip = [site / "bin" / "python", "-m", "pip", "install", "--quiet", f"torch=={lock('cuda')['torch']}", "numpy"]
    subprocess.run(pip, check=True, capture_output=True)
    binaries, said = made(room / "site", "site", site / "bin" / "python")
    assert "site: " in said and str(site) in said
    where = "import torch, transformers; print(torch.__file__, transformers.__file__)"
    plain = {"PATH": f"{binaries}:/usr/bin:/bin", "HOME": str(room), "OMP_NUM_THREADS": "1"}
    found = subprocess.check_output([binaries / "python", "-c", where], env=plain, text=True).split()
    assert found[0].startswith(str(site)) and found[1].startswith(str(binaries.parent))
    project = room / "project-on-site"
    shutil.copytree(ROOT, project, ignore=shutil.ignore_patterns(".*", "outputs", "tests", "shared", "build"))
    command = [binaries / "snakemake", "--config", "method=sft", "set=training.max_steps=2"]
    done = subprocess.run(command, cwd=project, env=plain, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]


def test_without_a_torch_there_is_one_line(tmp_path):
    words = [base_python(), ROOT / "envs" / "site_torch.py", tmp_path / "venv"]
    done = subprocess.run(words, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
    assert done.returncode == 1 and not done.stdout
    assert "does not import torch" in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "venv").exists()
