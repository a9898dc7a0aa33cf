"""Local files stay where they are; the Hub in the form of a cache on disk, a local server, or nothing at all."""

import gzip
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from post_training.core.errors import DataError
from post_training.core.fingerprint import file_sha256
from post_training.core.task import Task
from post_training.data import download

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


def fetch(folder, revision=None, split="train", offline=True, subset=None, **environment):
    """The stage in a process of its own: the Hub's libraries read the environment when they are imported."""
    hub = {"path": "org/name", "subset": subset, "split": split, "revision": revision}
    spec = {"stage": "download", "fingerprint": "0", "config": {"hub": hub}, "inputs": {}}
    output = folder / "out" / "data" / "raw" / "d" / "manifest.json"
    task = Task.of(spec, {"files": [], "offline": offline}, {}, output)
    done = subprocess.run(
        [sys.executable, "-m", "post_training", "stage", str(task.write(folder / "task.json"))],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HOME": str(folder / "hf"), "HF_TOKEN": "", **environment},
        timeout=300,
    )
    return done, output


LINES = "".join(json.dumps({"n": n}) + "\n" for n in range(10))


def snapshot(folder, branch=None, sha=SHA, files=None):
    """A commit in the Hub's cache, as it stands there: names that lead to contents."""
    cached = folder / "hf" / "hub" / "datasets--org--name"
    for number, (name, content) in enumerate((files or {"data/train.jsonl": LINES}).items()):
        blob, path = cached / "blobs" / f"{sha[:8]}{number}", cached / "snapshots" / sha / name
        for made in (blob, path):
            made.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content if isinstance(content, bytes) else content.encode())
        path.symlink_to(blob)
    if branch:
        (cached / "refs").mkdir()
        (cached / "refs" / branch).write_text(sha)


@pytest.mark.parametrize("branch, revision", [("main", None), (None, None), (None, SHA), ("v2", "v2")])
def test_offline_from_the_snapshot(tmp_path, read, branch, revision):
    snapshot(tmp_path, branch)
    done, output = fetch(tmp_path, revision)
    assert done.returncode == 0, done.stderr
    found = read(output)
    assert found["revision_sha"] == SHA and found["rows_out"] == 10
    assert [entry["path"] for entry in found["files"]] == ["files/00000-train.jsonl"]
    assert (output.parent / "files" / "00000-train.jsonl").read_text() == LINES
    assert sorted(p.name for p in output.parent.iterdir()) == ["files", "manifest.json"]
    assert not (tmp_path / "hf" / "datasets").exists(), "nothing is left in the cache"


def parquet(rows):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


CARD = """---
configs:
- {config_name: plain, data_files: [{split: train, path: "plain/*.csv"}, {split: test, path: "plain/test/*"}]}
- {config_name: other, sep: ";", data_files: [{split: train, path: "other/x.csv"}]}
- {config_name: saved, data_files: [{split: train, path: "saved/*.parquet"}]}
- {config_name: text, data_files: [{split: train, path: "text/*.txt"}]}
---
"""
REPOSITORY = {
    "README.md": CARD,
    "plain/a.csv": "n\n0\n1\n",
    "plain/b.csv": "n\n2\n",
    "plain/test/x.csv.gz": gzip.compress(b"n\n7\n"),
    "other/x.csv": "n;m\n0;1\n",
    "saved/0.parquet": parquet([{"n": 0}] * 3),
    "saved/1.parquet": parquet([{"n": 1}] * 2),
    "text/x.txt": "one\ntwo\n",
}
SPLITS = [
    ("plain", "test", ["files/00000-x.csv.gz"], 1),
    ("other", "train", ["rows.parquet"], 1),
    ("saved", "train", ["files/00000-0.parquet", "files/00001-1.parquet"], 5),
]


@pytest.mark.parametrize("subset, split, files, rows", SPLITS)
def test_the_files_of_a_subset_and_split(tmp_path, read, subset, split, files, rows):
    """Files that our readers read come as they are; of the others `datasets` makes parquet."""
    snapshot(tmp_path, "main", files=REPOSITORY)
    done, output = fetch(tmp_path, subset=subset, split=split)
    assert done.returncode == 0, done.stderr
    assert [entry["path"] for entry in read(output)["files"]] == files and read(output)["rows_out"] == rows


def test_text_is_not_taken_for_what_most_files_are(tmp_path, read):
    snapshot(tmp_path, "main", files=REPOSITORY)
    done, output = fetch(tmp_path, subset="text")
    assert done.returncode == 1 and "x.txt: unknown kind of file" in done.stderr and not output.exists()
    snapshot(tmp_path / "alone", "main", files={"x.txt": REPOSITORY["text/x.txt"]})
    done, output = fetch(tmp_path / "alone")
    assert pq.read_table(output.parent / "rows.parquet").to_pylist() == [{"text": "one"}, {"text": "two"}], done.stderr


def test_an_incomplete_snapshot(tmp_path):
    card = "---\ndataset_info: {features: [{name: n, dtype: int64}], splits: [{name: train, num_bytes: 1, num_examples: 11}]}\n---\n"
    snapshot(tmp_path, "main", files={"README.md": card, "data/train.jsonl": LINES})
    assert_one_line(*fetch(tmp_path), "has 10 rows, its card says 11: it is incomplete")


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
    assert_one_line(*fetch(tmp_path, SHA, split="test"), "has no split 'test'. On offer: train")


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


def tree_of(files, folder):
    """What the Hub lists of one folder."""
    under = {name.removeprefix(folder): content for name, content in files.items() if name.startswith(folder)}
    listed = [
        {"type": "file", "path": folder + name, "size": len(content), "oid": "0"}
        for name, content in under.items()
        if "/" not in name
    ]
    folders = sorted({name.split("/")[0] for name in under if "/" in name})
    return listed + [{"type": "directory", "path": folder + name, "size": 0, "oid": "0"} for name in folders]


FILES = {name: content if isinstance(content, bytes) else content.encode() for name, content in REPOSITORY.items()}


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as a download asks for: one dataset at one commit, which is its main branch."""

    def do_GET(self):
        path = unquote(self.path.partition("?")[0])
        name = path.partition(f"/datasets/org/name/resolve/{SHA}/")[2]
        folder = path.partition(f"/api/datasets/org/name/tree/{SHA}")[2].strip("/")
        if name:
            content = FILES.get(name)
        elif "/tree/" in path:
            content = json.dumps(tree_of(FILES, f"{folder}/" if folder else "")).encode()
        else:
            siblings = [{"rfilename": name} for name in FILES]
            content = json.dumps({"id": "org/name", "sha": SHA, "siblings": siblings, "tags": []}).encode()
        self.send_response(404 if content is None else 200)
        self.send_header(
            "X-Error-Code" if content is None else "X-Repo-Commit", "EntryNotFound" if content is None else SHA
        )
        self.send_header("ETag", f'"{hashlib.sha1(content or b"").hexdigest()}"')
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content or b"")

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


def test_from_a_hub(tmp_path, read):
    """The commit is recorded, the files are the split's, and the Hub's cache holds no copy of them."""
    served = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{served.server_port}"
        done, output = fetch(tmp_path, subset="plain", offline=False, HF_ENDPOINT=address)
    finally:
        served.shutdown()
        served.server_close()
    assert done.returncode == 0, done.stderr
    found = read(output)
    assert found["revision_sha"] == SHA and found["rows_out"] == 3
    assert [entry["path"] for entry in found["files"]] == ["files/plain/a.csv", "files/plain/b.csv"]
    assert {path.name for path in output.parent.iterdir()} == {"manifest.json", "files"}
    assert not list((tmp_path / "hf").rglob("*.csv"))
