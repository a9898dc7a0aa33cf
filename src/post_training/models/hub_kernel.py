"""Attention kernels of the Hugging Face Hub, which `model.attn_implementation` names: `org/name[@revision][:function]`.

The stage `download_kernel` fetches one commit with the build that fits this environment; the package `kernels` then finds
it by LOCAL_KERNELS on machines without network. A kernel is code of its publisher's that runs on every rank: nothing is
fetched that is not named, or asked for by what is named.
"""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from post_training.core import manifest
from post_training.core.errors import ConfigError, UserError, brief
from post_training.core.hub import licence_of, set_environment
from post_training.core.task import Task
from post_training.models.download import copy_snapshot

KEY = "model.attn_implementation"
BUILT_IN = (
    "auto", "varlen", "eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3", "flash_attention_4",
)  # fmt: skip
"""Values of `model.attn_implementation` besides kernels of the Hub."""
_NAME = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w.-]+))?(:(?P<function>\w+))?")
_VARLEN = "flash_attn_varlen_func"
"""The function by which Transformers hands the boundaries of documents to a kernel."""


@dataclass(frozen=True)
class KernelName:
    """A kernel as the configuration names it."""

    repository: str
    revision: str | None = None
    function: str | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.repository}{revision}" + (f":{self.function}" if self.function else "")


def parse(attn_implementation: str) -> KernelName | None:
    """The kernel that a value of `model.attn_implementation` names; None for what is built in, and for no name at all."""
    found = _NAME.fullmatch(attn_implementation)
    return KernelName(**found.groupdict()) if found else None


def run(task: Task) -> None:
    """Fetch into `kernels/`, each repository in a folder of its own: the kernel, and those that it asks for."""
    hub, runtime = task.config["hub"], task.runtime
    set_environment(runtime["offline"])
    name = KernelName(hub["name_or_path"], hub["revision"])
    if not runtime["every_build"]:
        check_library()
    target = task.directory / "kernels"
    shutil.rmtree(target, ignore_errors=True)  # of an earlier attempt
    fetched: dict[str, Fetched] = {}
    wanted = [name]
    while wanted:
        one = wanted.pop()
        if one.repository not in fetched:
            fetched[one.repository] = fetch(one, target, runtime["offline"], runtime["every_build"])
            wanted += fetched[one.repository].depends
    own = fetched[name.repository]
    if not any(_VARLEN in path.read_text(encoding="utf-8", errors="replace") for path in own.folder.rglob("*.py")):
        expected = f"has no {_VARLEN}, by which packed documents are kept apart; name a flash attention kernel"
        raise ConfigError(KEY, f"{name} {expected}")
    for repository, found in fetched.items():
        print(f"{repository} at {found.commit}: {', '.join(found.builds)}", flush=True)
    task.finish(
        repository=name.repository,
        revision=own.revision,
        revision_sha=own.commit,
        license=licence_of(own.folder / "README.md"),
        kernels={repository: str(found.folder.relative_to(task.directory)) for repository, found in fetched.items()},
        builds=own.builds,
    )


def environment(kernel: Path) -> dict[str, str]:
    """The variable by which the package `kernels` takes what a manifest lists from where it is. Raises UserError."""
    found = manifest.read(kernel)["kernels"]
    folders = {repository: (kernel.parent / folder).absolute() for repository, folder in found.items()}
    if any(":" in str(folder) for folder in folders.values()):
        problem = f"{kernel.parent}: the package kernels takes no path with a colon; set another paths.output_base"
        raise UserError(problem)
    return {"LOCAL_KERNELS": ":".join(f"{repository}={folder}" for repository, folder in folders.items())}


def check_library() -> None:
    """Raises ConfigError where the package `kernels` is not there, or not of a version that Transformers takes."""
    from transformers.utils import import_utils

    if not import_utils.is_kernels_available():
        wanted = f"'kernels>={import_utils.KERNELS_MIN_VERSION},<{import_utils.KERNELS_MAX_VERSION}'"
        raise ConfigError(KEY, f"kernels of the Hub need a package that is not installed: pip install {wanted}")


def check_loaded(attention: str) -> None:
    """Raise ValueError where Transformers does not hand the boundaries of documents to a kernel of this name, which it has loaded."""
    from transformers.integrations.flash_attention import flash_attention_forward
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if parse(attention) and ALL_ATTENTION_FUNCTIONS[attention] is not flash_attention_forward:
        raise ValueError(f"the attention of {attention} is another than {_VARLEN}, and would mix packed documents")


@dataclass(frozen=True)
class Fetched:
    """One repository at one commit on this machine."""

    folder: Path
    revision: str
    commit: str
    builds: list[str]
    """Names of its builds that were fetched, such as `torch213-cxx11-cu130-x86_64-linux`."""
    depends: list[KernelName]
    """Other kernels that it loads."""


def fetch(name: KernelName, target: Path, offline: bool, every_build: bool) -> Fetched:
    """One commit of a kernel's repository, offline from the Hub's cache. Raises UserError when it cannot be had or used.

    Args:
        name: without a revision, the version that the installed Transformers asks for.
        target: a folder of its own is made below it.
        offline: whether to look into the cache alone.
        every_build: fetch all builds, for a container whose PyTorch is not known here; else the one that fits this one.
    """
    from huggingface_hub import HfApi, snapshot_download

    revision = name.revision or _version(name.repository)
    folder, label = target / name.repository.replace("/", "--"), f"{name.repository}@{revision}"
    given: dict[str, Any] = {"repo_type": "kernel", "ignore_patterns": ["*.pyc"]}
    try:
        if offline:
            cached = Path(snapshot_download(name.repository, revision=revision, local_files_only=True, **given))
            commit, files = cached.name, [str(p.relative_to(cached)) for p in cached.rglob("*") if p.is_file()]
        else:
            commit = str(HfApi().kernel_info(name.repository, revision=revision).sha)
            files = HfApi().list_repo_files(name.repository, revision=commit, repo_type="kernel")
        builds = sorted({file.split("/")[1] for file in files if re.fullmatch(r"build/[^/]+/.+", file)})
        if not every_build:
            builds = [_that_fits(label, builds)] if builds else []
        if not builds:
            raise UserError(f"{label}: has no folder build/, which kernels have; check {KEY}")
        kept = [file for file in files if file.startswith(tuple(f"build/{build}/" for build in builds))]
        kept += [file for file in files if file == "README.md" or re.fullmatch(r"LICENSE[^/]*", file)]
        if offline:
            copy_snapshot(cached, folder, [file for file in kept if not file.endswith(".pyc")])
        else:
            snapshot_download(name.repository, revision=commit, local_dir=folder, allow_patterns=kept, **given)
    except UserError:
        raise
    except Exception as error:  # the Hub client raises a kind for each cause; all are the source's or the network's
        problem = f"cannot be fetched from the Hugging Face Hub as a kernel ({brief(error)})"
        raise UserError(f"{label}: {problem}; check {KEY} and the network") from None
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    if not every_build:
        _check_build(label, folder / "build" / builds[0])
    depends = {one for build in builds for one in _depends(folder / "build" / build)}
    return Fetched(folder, revision, commit, builds, sorted(depends, key=str))


def _version(repository: str) -> str:
    """The branch of the version of a kernel that the installed Transformers asks for."""
    from transformers.integrations.hub_kernels import get_attn_kernel_version

    return f"v{get_attn_kernel_version(repository)}"


def _that_fits(label: str, builds: list[str]) -> str:
    """The build for this Python, PyTorch, CUDA and machine, as `kernels` chooses it. Raises UserError where none is."""
    import platform

    import torch
    from kernels.variants import parse_variant, resolve_variant

    parsed = []
    for build in builds:
        try:
            parsed.append(parse_variant(build))
        except ValueError:
            continue  # of a kind that this version of the package does not know
    chosen, _ = resolve_variant(parsed)
    if chosen is None:
        cuda, hip = torch.version.cuda, torch.version.hip
        backend = f"CUDA {cuda}" if cuda else f"ROCm {hip}" if hip else "the CPU alone"
        here = f"PyTorch {torch.__version__} for {backend} on {platform.machine()}"
        problem = f"{label}: no build fits {here}; it has {', '.join(builds)}; set another revision, or {KEY}=auto"
        raise UserError(problem)
    return str(chosen.variant_str)


def _check_build(label: str, folder: Path) -> None:
    """Raises UserError for a build that wants packages, or a version of `kernels`, that are not here."""
    from kernels import Metadata
    from kernels.validate import AllValidator, default_metadata_validators

    try:
        metadata = Metadata.read_from_file(folder / "metadata.json")
        AllValidator(default_metadata_validators()).validate_metadata(metadata=metadata, variant=folder.name)
    except Exception as error:  # ValueError, ImportError, RuntimeError of the package's own checks
        raise UserError(f"{label}: cannot be used here: {brief(error)}") from None


def _depends(folder: Path) -> list[KernelName]:
    """The kernels that a build loads, by its metadata."""
    try:
        found = json.loads((folder / "metadata.json").read_text(encoding="utf-8")).get("kernel-depends") or []
        return [KernelName(one["repo-id"], str(one.get("revision") or f"v{one['version']}")) for one in found]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder}/metadata.json: cannot be read ({brief(error)})") from None
