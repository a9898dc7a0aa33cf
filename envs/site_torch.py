"""An environment on top of a torch that the machine provides: `python envs/site_torch.py VENV`, with a Python that imports it.

Installs everything of lock-cuda.txt except torch and the wheels that torch from the index brings along. The environment
finds the packages of the Python that made it behind its own, wherever they are: on a module's PYTHONPATH, in a container's
dist-packages, in a conda or virtual environment. Standard library only.
"""

import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Parts of a build of torch. nvidia-ml-py is the one package with such a name that is ours.
_TORCH = re.compile(r"torch|triton|pytorch-triton.*|cuda-.*|nvidia-(?!ml-py$).*")
_VERSIONS = """
import json, sys
from importlib.metadata import PackageNotFoundError, distribution
found = {}
for name in sys.argv[1:]:
    try:
        package = distribution(name)
        found[name] = [package.version, str(package.locate_file(""))]
    except PackageNotFoundError:
        found[name] = ["missing", ""]
import torch
print(json.dumps([torch.__version__, found]))
"""


def accepted() -> str:
    """The range of torch versions that pyproject.toml accepts."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return str(project["optional-dependencies"]["site"][0].removeprefix("torch"))


def is_accepted(version: str) -> bool:
    """Whether a version such as `2.9.0a0+git123` is in the range; major and minor number decide."""
    found = _minor(version)
    low, high = (_minor(bound) for bound in accepted().split(","))
    return low <= found < high


def _minor(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def packages() -> dict[str, str]:
    """Name -> pinned version of what is installed."""
    lines = (ROOT / "envs" / "lock-cuda.txt").read_text(encoding="utf-8").split()
    return {
        name: version for name, _, version in (line.partition("==") for line in lines) if not _TORCH.fullmatch(name)
    }


def package_folders() -> list[str]:
    """Folders from which this Python imports packages, the standard library and this script's folder left out."""
    own = {str(Path(__file__).resolve().parent), *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib"))}
    own |= {str(Path(folder, "lib-dynload")) for folder in own}
    return [folder for folder in sys.path if Path(folder).is_dir() and folder not in own]


def install(folder: Path) -> None:
    """Make the environment. Ends with a line when torch is missing or outside the range, or a package is shadowed."""
    if sys.version_info < (3, 11):  # noqa: UP036 (the machine chooses it)
        sys.exit(f"site: {sys.executable} is Python {sys.version.split()[0]}, expected 3.11 or newer")
    try:
        import torch
    except ImportError as error:
        sys.exit(
            f"site: {sys.executable} does not import torch ({error}); load its module, or set PYTHON to its Python"
        )
    if not is_accepted(torch.__version__):
        sys.exit(f"site: torch {torch.__version__} in {torch.__path__[0]}, expected {accepted()}")
    pinned, lock = packages(), folder / "lock-site.txt"
    # Limits of the machine on package versions are for its own environment, not for this one.
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PIP_CONSTRAINT")}
    environment["DS_BUILD_OPS"] = "0"

    def run(*words: str) -> None:
        if subprocess.run(words, env=environment).returncode:
            sys.exit(f"site: failed: {' '.join(words)}")

    run(sys.executable, "-m", "venv", str(folder))
    lock.write_text("".join(f"{name}=={version}\n" for name, version in pinned.items()), encoding="utf-8")
    python, pip = str(folder / "bin" / "python"), [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    run(*pip, "--upgrade", "pip", "setuptools", "wheel")
    run(*pip, "--no-deps", "--requirement", str(lock))
    run(*pip, "--no-deps", "--no-build-isolation", "--editable", str(ROOT))
    target = subprocess.check_output(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    )
    Path(target.strip(), "site-torch.pth").write_text("\n".join([*package_folders(), ""]), encoding="utf-8")

    # As the user will call it, PYTHONPATH included.
    shown = subprocess.run([python, "-c", _VERSIONS, *pinned], capture_output=True, text=True)
    if shown.returncode:
        sys.exit(f"site: torch does not import in {folder}:\n{shown.stderr.strip()}")
    version, found = json.loads(shown.stdout.splitlines()[-1])
    wrong = [f"{name} {found[name][0]} in {found[name][1]}" for name in pinned if found[name][0] != pinned[name]]
    if wrong:
        sys.exit(
            f"site: other versions come before the environment's own: {', '.join(wrong)}. The environment finds these folders "
            "without PYTHONPATH: unset it, and with modules in jobs set slurm.env={PYTHONPATH: ''}"
        )
    print(f"site: {folder} uses torch {version} of {sys.executable} (accepted: {accepted()})")


if __name__ == "__main__":
    install(Path(sys.argv[1]))
