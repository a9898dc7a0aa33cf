"""An attention kernel of the Hub from end to end: a server of the test's own has its repository, the package `kernels` loads it.

The index that tests install from may have no version of `kernels` that the installed Transformers takes; then its newest is
used under the version that it asks for, which is all that Transformers looks at.
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
from tiny import launcher_command, losses_of, task, train_here, train_task

from post_training.core import manifest
from post_training.core.task import Task

REPOSITORY, COMMIT, DEPENDENCY = "someone/own-attention", "a" * 40, "someone/helper"
KERNEL = """
import torch
from kernels import get_kernel_dep

scale = get_kernel_dep("someone/helper").scale
print("a kernel of the Hub is loaded", flush=True)


def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False,
    window_size=(-1, -1), softcap=0.0, deterministic=False,
):
    parts = []
    for start, end in zip(cu_seqlens_q[:-1].tolist(), cu_seqlens_q[1:].tolist()):
        one = [part[start:end].transpose(0, 1)[None] for part in (q, k, v)]
        found = torch.nn.functional.scaled_dot_product_attention(
            *one, is_causal=causal, scale=softmax_scale, enable_gqa=True
        )
        parts.append(found[0].transpose(0, 1) * scale())
    return torch.cat(parts)


def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, **kwargs):
    bounds = torch.arange(0, q.shape[0] * q.shape[1] + 1, q.shape[1])
    flat = [part.flatten(0, 1) for part in (q, k, v)]
    found = flash_attn_varlen_func(*flat, bounds, bounds, None, None, 0.0, softmax_scale, causal)
    return found.view(*q.shape[:2], *found.shape[1:])
"""


def _metadata(name: str, backend: str = "cpu", **more: object) -> bytes:
    metadata = {"id": f"_{name.replace('-', '_')}_1", "name": name, "version": 1, "license": "MIT"}
    return json.dumps({**metadata, "python-depends": [], "backend": {"type": backend}, **more}).encode()


FILES = {
    REPOSITORY: {
        "README.md": b"---\nlicense: mit\n---\n",
        "source/attention.cu": b"// not needed",
        "build/torch-universal/__init__.py": KERNEL.encode(),
        "build/torch-universal/metadata.json": _metadata(
            "own-attention", **{"kernel-depends": [{"repo-id": DEPENDENCY, "version": 1}]}
        ),
        "build/torch29-cxx11-cu126-aarch64-linux/__init__.py": b"raise RuntimeError",
        "build/torch29-cxx11-cu126-aarch64-linux/metadata.json": _metadata("own-attention", "cuda"),
    },
    DEPENDENCY: {
        "build/torch-universal/__init__.py": b"def scale():\n    return 1.0\n",
        "build/torch-universal/metadata.json": _metadata("helper"),
    },
    "someone/only-cuda": {"build/torch29-cxx11-cu126-aarch64-linux/metadata.json": _metadata("only-cuda", "cuda")},
    "someone/no-varlen": {
        "build/torch-universal/__init__.py": b"def attend(): ...\n",
        "build/torch-universal/metadata.json": _metadata("no-varlen"),
    },
    "someone/needs-more": {
        "build/torch-universal/__init__.py": b"def flash_attn_varlen_func(): ...\n",
        "build/torch-universal/metadata.json": _metadata("needs-more", **{"python-depends": ["helion"]}),
    },
    "someone/no-kernel": {"README.md": b""},
}


class Hub(BaseHTTPRequestHandler):
    """What the Hub's client asks of a repository of kernels. Version 1 of each is its one commit."""

    def do_GET(self) -> None:
        self.answer(body=True)

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def answer(self, body: bool) -> None:
        path = unquote(urlparse(self.path).path).strip("/").removeprefix("api/").removeprefix("kernels/")
        repository, words = "/".join(path.split("/")[:2]), path.split("/")[2:]
        files = FILES.get(repository)
        if files is None or words[1] not in ("v1", COMMIT):
            missing = "RepoNotFound" if files is None else "RevisionNotFound"
            return self.send(b"", 404, body, {"X-Error-Code": missing})
        if words[0] == "revision":
            return self.send(json.dumps({"id": repository, "sha": COMMIT}).encode(), 200, body)
        if words[0] == "tree":
            listed = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in files.items()
            ]
            return self.send(json.dumps(listed).encode(), 200, body)
        content = files["/".join(words[2:])]
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        return self.send(content, 200, body, headers)

    def send(self, content: bytes, status: int, body: bool, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def endpoint():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    """A folder with the package `kernels`, for PYTHONPATH."""
    from transformers.utils.import_utils import KERNELS_MAX_VERSION, KERNELS_MIN_VERSION

    folder = tmp_path_factory.mktemp("library")
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--only-binary=:all:",
        "--target",
        str(folder),
    ]
    accepted = f"kernels>={KERNELS_MIN_VERSION},<{KERNELS_MAX_VERSION}"
    for wanted in (accepted, f"kernels<{KERNELS_MIN_VERSION}"):
        if subprocess.run([*install, wanted], capture_output=True).returncode == 0:
            break
    else:
        pytest.skip("pip finds no package kernels here")
    if wanted != accepted:
        (info,) = folder.glob("kernels-*.dist-info/METADATA")
        lines = info.read_text().splitlines(keepends=True)
        info.write_text("".join(f"Version: {KERNELS_MIN_VERSION}\n" if x.startswith("Version: ") else x for x in lines))
    return folder


def environment(library: Path, **variables: str) -> dict[str, str]:
    path = os.pathsep.join([str(library), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "0", **variables}


def stage(made: Task, library: Path, **variables: str) -> subprocess.CompletedProcess:
    """A stage as its job runs it."""
    made.directory.mkdir(parents=True, exist_ok=True)
    return subprocess.run(launcher_command(made), env=environment(library, **variables), capture_output=True, text=True)


def kernel_task(folder: Path, repository: str, revision: str | None = None, **runtime: bool) -> Task:
    config = {"hub": {"name_or_path": repository, "revision": revision}}
    runtime = {"offline": False, "every_build": False, **runtime}
    return task("download_kernel", config, runtime, {}, folder / "manifest.json")


@pytest.mark.slow
def test_a_kernel_is_fetched_once_and_trains_without_network(
    tmp_path, endpoint, library, model_manifest, sft_rows, template
):
    made = kernel_task(tmp_path / "kernels" / "own@1", REPOSITORY)
    done = stage(made, library, HF_ENDPOINT=endpoint, HF_HOME=str(tmp_path / "hub"))
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads(made.output.read_text())
    assert (facts["revision"], facts["revision_sha"], facts["license"]) == ("v1", COMMIT, "mit")
    assert facts["builds"] == ["torch-universal"] and set(facts["kernels"]) == {REPOSITORY, DEPENDENCY}
    listed = {file["path"]: file["sha256"] for file in facts["files"]}
    own = "kernels/someone--own-attention/"
    content = FILES[REPOSITORY]["build/torch-universal/__init__.py"]
    assert listed[f"{own}build/torch-universal/__init__.py"] == hashlib.sha256(content).hexdigest()
    assert {name.removeprefix(own) for name in listed if name.startswith(own)} == {
        "README.md", "build/torch-universal/__init__.py", "build/torch-universal/metadata.json",
    }  # fmt: skip

    train_here(train_task(tmp_path / "varlen", model_manifest, sft_rows, template))
    change = {"model__attn_implementation": REPOSITORY}
    run = train_task(tmp_path / "own", model_manifest, sft_rows, template, **change)
    run.inputs["kernel"], run.spec["inputs"]["kernel"] = made.output, "0" * 64
    # An address that nothing listens at: whatever asks the network fails.
    done = stage(run, library, HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path / "empty"), HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "a kernel of the Hub is loaded" in done.stdout
    # A training in a process of its own says nothing that a user would have to look up.
    assert not [line for line in (done.stdout + done.stderr).splitlines() if "Warning" in line]
    losses = losses_of(run.directory)
    assert losses == pytest.approx(losses_of(tmp_path / "varlen"), abs=1e-5) and len(losses) > 2
    assert json.loads((run.directory / "manifest.json").read_text())["inputs"]["kernel"]["path"] == str(made.output)
    assert {str(p.relative_to(made.directory)) for p in manifest.own_files(made.directory)} == set(listed)


ONE_AFTER_ANOTHER = """
import sys
from pathlib import Path

from post_training.core.errors import UserError
from post_training.core.task import Task
from post_training.models import hub_kernel

for path in sys.argv[1:]:
    try:
        print(hub_kernel.run(Task.read(Path(path))))
    except UserError as error:
        print("REFUSED", error)
"""


@pytest.mark.slow
def test_what_cannot_be_used_is_one_line(tmp_path, endpoint, library):
    wrong = (
        ("someone/no-such", None, "someone/no-such@v1: cannot be fetched from the Hugging Face Hub as a kernel"),
        (REPOSITORY, "v7", "own-attention@v7: cannot be fetched from the Hugging Face Hub as a kernel"),
        ("someone/no-kernel", None, "someone/no-kernel@v1: has no folder build/, which kernels have"),
        ("someone/only-cuda", None, "someone/only-cuda@v1: no build fits PyTorch 2."),
        ("someone/no-varlen", None, "model.attn_implementation: someone/no-varlen has no flash_attn_varlen_func"),
        ("someone/needs-more", None, "someone/needs-more@v1: cannot be used here: "),
    )
    tasks = [kernel_task(tmp_path / str(number), *case[:2]) for number, case in enumerate(wrong)]
    # A container has its own PyTorch and its own package.
    every = kernel_task(tmp_path / "every", REPOSITORY, "v1", every_build=True)
    cached = kernel_task(tmp_path / "cached", "someone/cached", offline=True)
    tasks += [every, cached]
    in_cache = tmp_path / "hub" / "hub" / "kernels--someone--cached"
    for name, content in {**FILES[DEPENDENCY], "build/torch-universal/__init__.py": KERNEL.encode()}.items():
        (in_cache / "snapshots" / COMMIT / name).parent.mkdir(parents=True, exist_ok=True)
        (in_cache / "snapshots" / COMMIT / name).write_bytes(content)
    (in_cache / "refs").mkdir()
    (in_cache / "refs" / "v1").write_text(COMMIT)
    paths = [str(one.write(tmp_path / f"{number}.json")) for number, one in enumerate(tasks)]
    done = subprocess.run(
        [sys.executable, "-c", ONE_AFTER_ANOTHER, *paths],
        env=environment(library, HF_ENDPOINT=endpoint, HF_HOME=str(tmp_path / "hub")),
        capture_output=True,
        text=True,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("REFUSED")]
    assert len(lines) == len(wrong), done.stdout + done.stderr
    for line, (*_, expected) in zip(lines, wrong, strict=True):
        assert expected in line
    assert not any(one.output.exists() for one in tasks[: len(wrong)])
    builds = ["torch-universal", "torch29-cxx11-cu126-aarch64-linux"]
    assert json.loads(every.output.read_text())["builds"] == builds
    assert json.loads(cached.output.read_text())["revision_sha"] == COMMIT
    (folder,) = json.loads(cached.output.read_text())["kernels"].values()
    assert (cached.directory / folder / "build/torch-universal/__init__.py").read_text() == KERNEL
