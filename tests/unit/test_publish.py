"""The real client of the Hub against a server of this test that speaks as much of its protocol as an upload needs."""

import base64
import json
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from tiny import task

from post_training.core.errors import ConfigError, UserError
from post_training.release import publish

TOKEN = "a-token-of-this-test-0815"
COMMIT = "c" * 40


class Hub(BaseHTTPRequestHandler):
    """Remembers what it is told: `asked`, and `files` of the commit."""

    def log_message(self, *_):
        pass

    def _answer(self, value, status=200):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _handle(self):
        server = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        server.asked.append((self.command, self.path, body, self.headers.get("Authorization")))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer({"error": "not you"}, 401)
        url = f"http://127.0.0.1:{server.server_port}/org/model"
        if self.path.endswith("/repos/create"):
            return self._answer({"url": url, "id": "org/model"})
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            return self._answer(
                {
                    "files": [
                        {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None} for f in files
                    ]
                }
            )
        if "/commit/" in self.path:
            lines = [json.loads(line) for line in body.splitlines()]
            server.header = next(line["value"] for line in lines if line["key"] == "header")
            server.files = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            return self._answer({"commitUrl": f"{url}/commit/{COMMIT}", "commitOid": COMMIT, "success": True})
        return self._answer({"id": "org/model", "sha": "0" * 40, "siblings": []})

    do_GET = do_POST = _handle


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked, server.files, server.header = [], {}, {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture
def push(exported, tmp_path):
    shutil.copytree(exported.parents[1], tmp_path / exported.parents[1].name)
    model = tmp_path / exported.parents[1].name / "model" / "manifest.json"
    config = {"hub_model_id": "org/model", "private": True}
    return task("push", config, {}, {"export": model}, tmp_path / "published" / "model-1" / "manifest.json")


def run(push, hub, environment):
    """As the rule does; the client reads the address of the Hub when it is imported."""
    return subprocess.run(
        [sys.executable, "-m", "post_training", "stage", str(push.saved())],
        capture_output=True,
        text=True,
        env=environment | {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HUB_OFFLINE": "0"},
    )


def test_the_model_is_pushed_as_it_was_exported(push, hub, environment):
    done = run(push, hub, environment | {"HF_TOKEN": TOKEN})
    assert done.returncode == 0, done.stderr
    folder = push.inputs["export"].parent
    assert {"config.json", "config.yaml", "tokenizer.json", "provenance.json", "README.md"} <= set(hub.files)
    assert not {"manifest.json", "code.diff"} & set(hub.files), "they name a machine and a person"
    assert all((folder / name).read_bytes() == content for name, content in hub.files.items())
    assert len([name for name in hub.files if name.endswith(".safetensors")]) == 3
    created = json.loads(next(body for _, path, body, _ in hub.asked if path.endswith("/repos/create")))
    assert (created["name"], created["organization"], created["visibility"]) == ("model", "org", "private")
    told = json.loads(push.output.read_text())
    assert (told["revision_sha"], told["repository"]) == (COMMIT, "org/model")
    assert TOKEN not in done.stdout + done.stderr + push.output.read_text()


def test_a_token_that_is_refused_is_one_line_without_it(push, hub, environment):
    done = run(push, hub, environment | {"HF_TOKEN": "another-token-0816"})
    assert done.returncode == 1 and not push.output.exists()
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("org/model: cannot be published (") and "another-token-0816" not in line


def test_a_machines_login_is_not_used(push, hub, environment, tmp_path):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "token").write_text(TOKEN)
    done = run(push, hub, environment | {"HF_HOME": str(tmp_path / "hf")})
    assert done.returncode == 1 and "HF_TOKEN is not set" in done.stderr and hub.asked == []


@pytest.fixture
def environment():
    import os

    return {name: value for name, value in os.environ.items() if name not in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")}


def test_changed_weights_are_not_published(push, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    weights = sorted(push.inputs["export"].parent.glob("*.safetensors"))[1]
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match=rf"{weights.name}: was changed: .*so nothing is published"):
        publish.run(push)


def test_an_edited_card_is_published(push):
    card = push.inputs["export"].parent / "README.md"
    card.write_text(card.read_text() + "\nWritten by a person.\n")
    assert "README.md" in publish.to_publish(push.inputs["export"])


def test_no_token(monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(ConfigError, match="HF_TOKEN is not set"):
        publish.check_token()
