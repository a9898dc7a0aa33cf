"""Local files stay where they are; the Hub in the form of a cache on disk, a local server, or nothing at all."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pyarrow.parquet as pq
import pytest

from post_training.data import download
from post_training.errors import DataError
from post_training.fingerprint import file_sha256

SHA = "0123456789abcdef0123456789abcdef01234567"


def test_local_files_are_named_and_not_copied(stages, tmp_path, read):
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for file in files:
        file.write_text(json.dumps({"name": file.name}) + "\n")
    manifest = stages.download(*files)
    assert read(manifest)["files"] == [{"path": str(f), "sha256": file_sha256(f), "bytes": 20} for f in files]
    assert [path.name for path in manifest.parent.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize("change", [lambda p: p.write_text("{}\n"), lambda p: p.unlink()], ids=["changed", "gone"])
def test_a_file_that_changed_since_planning(stages, tmp_path, change):
    file = tmp_path / "a.jsonl"
    file.write_text('{"a": 1}\n')
    task = stages.task("download", "d", {"sha256": [file_sha256(file)]}, {"files": [str(file)]})
    change(file)
    with pytest.raises(DataError, match=r"a\.jsonl: changed since the run was planned; start again"):
        download.run(task)
    assert not task.output.exists()


def fetch(folder, revision=None, split="train", offline=True, **environment):
    """The stage in a process of its own: the Hub's libraries read the environment when they are imported."""
    hub = {"path": "org/name", "subset": None, "split": split, "revision": revision}
    spec = {"stage": "download", "fingerprint": "0", "config": {"hub": hub}, "inputs": {}}
    output = folder / "out" / "data" / "raw" / "d" / "manifest.json"
    words = [
        "--spec",
        json.dumps(spec),
        "--runtime",
        json.dumps({"files": [], "offline": offline}),
        "--output",
        str(output),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "post_training", "download", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HOME": str(folder / "hf"), "HF_TOKEN": "", **environment},
        timeout=60,
    )
    return done, output


def snapshot(folder, branch=None, sha=SHA):
    cached = folder / "hf" / "hub" / "datasets--org--name"
    data = cached / "snapshots" / sha / "data"
    data.mkdir(parents=True)
    (data / "train.jsonl").write_text("".join(json.dumps({"n": n}) + "\n" for n in range(10)))
    if branch:
        (cached / "refs").mkdir()
        (cached / "refs" / branch).write_text(sha)


@pytest.mark.parametrize("branch, revision", [("main", None), (None, None), (None, SHA), ("v2", "v2")])
def test_offline_from_the_snapshot(tmp_path, read, branch, revision):
    snapshot(tmp_path, branch)
    done, output = fetch(tmp_path, revision, split="train[:30%]")
    assert done.returncode == 0, done.stderr
    found = read(output)
    assert found["revision_sha"] == SHA and found["rows_out"] == 3
    assert pq.read_table(output.parent / "rows.parquet").to_pylist() == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert sorted(p.name for p in output.parent.iterdir()) == ["manifest.json", "rows.parquet"]
    assert not (tmp_path / "hf" / "datasets").exists(), "nothing is left in the cache"


def assert_one_line(done, output, said):
    assert done.returncode == 1 and not output.exists()
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("org/name") and said in lines[0], done.stderr


def test_offline_without_what_is_asked_for(tmp_path):
    assert_one_line(*fetch(tmp_path), "it has none")
    snapshot(tmp_path)
    assert_one_line(*fetch(tmp_path, "v2"), f"no snapshot of revision v2 (it has {SHA})")
    snapshot(tmp_path, sha=SHA[::-1])
    assert_one_line(*fetch(tmp_path), "name one of them")
    assert_one_line(*fetch(tmp_path, SHA, split="test"), 'Unknown split "test"')


@pytest.fixture
def server():
    """A Hub that answers every question with one status and error code."""
    answer = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(answer["status"])
            self.send_header("X-Error-Code", answer["code"])
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    served = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{served.server_port}", answer
    served.shutdown()
    served.server_close()


@pytest.mark.parametrize(
    "status, code, said",
    [
        (401, "RepoNotFound", "not found on the Hugging Face Hub; check path"),
        (403, "GatedRepo", "is gated; ask for access on its page and set HF_TOKEN"),
        (404, "RevisionNotFound", "has no revision 'v2'"),
    ],
)
def test_what_the_hub_refuses(tmp_path, server, status, code, said):
    address, answer = server
    answer.update(status=status, code=code)
    assert_one_line(*fetch(tmp_path, "v2", offline=False, HF_ENDPOINT=address), said)


def test_no_network(tmp_path):
    assert_one_line(*fetch(tmp_path, offline=False, HF_ENDPOINT="http://127.0.0.1:9"), "the network")


@pytest.fixture(autouse=True)
def online(monkeypatch):
    """Whatever mode an earlier test of this process has left behind."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
