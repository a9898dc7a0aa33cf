"""The engine `server`: against a real one that is not ours, `transformers serve`, and against one that misbehaves."""

import importlib.util
import itertools
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from on_policy_parts import SAMPLING, prompts, task
from tiny import TEMPLATE

from post_training.core.errors import UserError
from post_training.data import registry
from post_training.models import folder as model_folder
from post_training.models.chat_api import ChatApi
from post_training.on_policy import generate
from post_training.on_policy.answers import read_answers
from post_training.on_policy.engine import Request
from post_training.on_policy.limited_reward import scored
from post_training.on_policy.server import Process, ServerEngine, serving
from post_training.rewards import load_reward
from post_training.run_dir.stop import REQUEST

SETTINGS = {
    "command": None, "url": None, "model_name": None, "api_key_variable": "TEST_SERVER_API_KEY", "concurrency": 4,
    "startup_seconds": 120.0, "request_seconds": 60.0, "max_retries": 2,
}  # fmt: skip
ASKED = Request([{"role": "user", "content": "1 and 2?"}], None, "p 0")
SERVE = f"{Path(sys.executable).parent / 'transformers'} serve {{model}} --port {{port}} --device cpu"
needs_serve = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("fastapi", "uvicorn", "openai")),
    reason="`transformers serve` needs fastapi, uvicorn and openai (the extra `dev`)",
)


@pytest.fixture
def no_pause(monkeypatch):
    """Retries without their pauses, which the tests would wait for."""
    monkeypatch.setattr("post_training.models.chat_api._PAUSE_SECONDS", 0.01)


@pytest.fixture
def misbehaving(monkeypatch):
    """A server that answers as `replies` say, one after the other, and then well."""

    class Handler(BaseHTTPRequestHandler):
        replies: ClassVar[list] = []
        requests: ClassVar[list] = []
        paths: ClassVar[list] = []
        headers_of: ClassVar[dict] = {429: {"Retry-After": "1"}, 307: {"Location": "https://else/v1"}}

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.requests.append((self.headers.get("Authorization"), body))
            code, text = self.replies.pop(0) if self.replies else (200, None)
            if code == "hang":
                time.sleep(3)
                return
            if code == "drip":
                self.send_response(200)
                self.end_headers()
                for _ in range(20):
                    self.wfile.write(b" ")
                    time.sleep(0.05)
                return
            good = {
                "choices": [{"message": {"content": " 3 "}, "finish_reason": "stop"}],
                "usage": {"completion_tokens": 2},
            }
            content = (json.dumps(good) if text is None else text).encode()
            self.paths.append(self.path)
            self.send_response(code)
            for header in self.headers_of.get(code, {}).items():
                self.send_header(*header)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    Handler.replies, Handler.requests, Handler.paths = [], [], []
    monkeypatch.setattr(ThreadingHTTPServer, "request_queue_size", 128)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Handler.url = f"http://127.0.0.1:{server.server_port}/v1"
    yield Handler
    server.shutdown()
    server.server_close()


def elsewhere(handler, **settings) -> ServerEngine:
    return ServerEngine(
        SAMPLING | {"top_k": 5, "seed": 7}, SETTINGS | {"url": handler.url} | settings, "their-model", None
    )


@needs_serve
@pytest.mark.slow
def test_a_real_server_is_started_survives_a_kill_and_is_stopped(
    model_manifest, exported, tmp_path, monkeypatch, capsys
):
    """No answer is lost or doubled, whenever the server dies."""
    started: list[int] = []
    start = Process.start

    def noted(self):
        start(self)
        started.append(self._process.pid)

    monkeypatch.setattr(Process, "start", noted)
    ask, asked = ChatApi.ask, itertools.count(1)

    def killed_in_the_middle(self, body):
        if next(asked) == 24:  # of the second batch of 16, with another request on its way
            os.kill(started[0], signal.SIGKILL)
        return ask(self, body)

    monkeypatch.setattr(ChatApi, "ask", killed_in_the_middle)
    config = {"n": 2, "sampling": SAMPLING, "chat_template": None, "shard": [0, 1], "engine": "server"}
    runtime = {"batch_size": 8, "server": SETTINGS | {"command": SERVE, "concurrency": 2, "max_retries": 5}}
    inputs = {"prompts": prompts(tmp_path / "prompts", 24), "model": exported}
    made = task("generate", config, runtime, inputs, tmp_path / "generate")
    assert generate.run(made) == 0
    found = read_answers({"answers 0": made.output})
    assert list(found) == [(prompt, sample) for prompt in range(24) for sample in range(2)]
    assert all(line["answer"] and line["tokens"] for line in found.values())
    assert "starting it again (1 of 3)" in capsys.readouterr().out and len(started) == 2
    for pid in started:
        with pytest.raises(ProcessLookupError):
            os.killpg(pid, 0)


@needs_serve
@pytest.mark.slow
def test_a_model_that_does_not_load_is_one_line(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with (
        pytest.raises(UserError, match=r"^server: ended with code 1 before it was ready: .*server\.log\)$") as error,
        serving(tmp_path / "model", "", SAMPLING, SETTINGS | {"command": SERVE}, tmp_path / "server.log"),
    ):
        raise AssertionError("it is not ready")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("no-such-program {model} {port}", r"generate\.server\.command: no-such-program cannot be started"),
        (f"{sys.executable} -c 'import sys; sys.exit(\"address in use: {{port}}\")' {{model}}", r"ended with code 1 .* address in use"),
        (f"{sys.executable} -c 'import time; time.sleep(60)' {{model}} {{port}}", r"not ready after 1 s .*it said nothing"),
    ],
)  # fmt: skip
def test_a_server_that_does_not_start_is_one_line_and_nothing_stays(tmp_path, command, message):
    processes = []
    with pytest.raises(UserError, match=message):
        process = Process(command, tmp_path, tmp_path / "log", 1.0)
        processes.append(process)
        try:
            process.start()
        finally:
            process.stop()
    for process in processes:
        assert process._process is None or process._process.poll() is not None


def test_a_request_is_openai_s_and_has_a_seed_of_its_own(misbehaving, monkeypatch):
    monkeypatch.setenv("TEST_SERVER_API_KEY", "a-key-of-the-test")
    engine = elsewhere(misbehaving)
    first, second = engine.answers([ASKED, Request(ASKED.prompt, [{"type": "function"}], "p 1")])
    assert first == second and (first.text, first.tokens, first.ended) == ("3", 2, True)
    (key, body), (_, other) = sorted(misbehaving.requests, key=lambda one: "tools" in one[1])
    assert key == "Bearer a-key-of-the-test"
    assert (
        body.items()
        >= {"model": "their-model", "messages": ASKED.prompt, "max_tokens": 8, "temperature": 1.0, "top_k": 5}.items()
    )
    assert body["seed"] != other["seed"] and "tools" in other and 0 <= body["seed"] < 2**31


@pytest.mark.parametrize(
    ("code", "text", "message"),
    [
        (401, "no\nsuch", r"refuses the key of TEST_SERVER_API_KEY \(401\)"),
        (404, "no\nsuch", r"has no model 'their-model' \(no such\)"),
        (404, "<html>\n</html>", r"/v1/chat/completions answers with a web page and is not OpenAI's chat API"),
        (200, "\n<!DOCTYPE html>", r"answers with a web page"),
        (200, '{"choices":\n[]}', r"the answer is not in OpenAI's form: {\"choices\": \[\]}"),
        (307, "", r"has moved to https://else/v1; give that as url"),
        (302, "", r"has moved to another address; give that as url"),
    ],
)
def test_what_a_repetition_cannot_change_is_one_line_at_once(misbehaving, code, text, message):
    misbehaving.replies += [(code, text)]
    with pytest.raises(UserError, match=message) as error:
        elsewhere(misbehaving).answers([ASKED])
    assert len(misbehaving.requests) == 1 and "\n" not in str(error.value)


def test_failures_are_repeated_and_then_one_line(misbehaving, no_pause):
    misbehaving.replies += [(503, "busy"), (500, "oops")]
    assert elsewhere(misbehaving).answers([ASKED])[0].text == "3"
    # As long as the server wishes; and an answer that a proxy cuts off.
    misbehaving.replies += [(429, "slow down"), (200, '{"choices": [{"mess')]
    began = time.monotonic()
    assert elsewhere(misbehaving).answers([ASKED])[0].text == "3" and time.monotonic() - began > 1
    misbehaving.replies += [(503, "busy")] * 3
    with pytest.raises(UserError, match=r"answers 503: busy; 2 repetitions did not help \(max_retries\)"):
        elsewhere(misbehaving).answers([ASKED])


def test_a_server_that_hangs_is_one_line(misbehaving, no_pause):
    for kind in ("hang", "drip"):
        misbehaving.replies[:] = [(kind, None)] * 2
        with pytest.raises(UserError, match=r"no answer within 0\.2 s \(request_seconds\)"):
            elsewhere(misbehaving, request_seconds=0.2, max_retries=1).answers([ASKED])


def test_as_many_requests_as_asked_are_under_way_for_as_long_as_it_takes(misbehaving, monkeypatch):
    count = 110
    together = threading.Barrier(count, timeout=20)
    reply = misbehaving.do_POST

    def all_at_once(self):
        together.wait()
        reply(self)

    monkeypatch.setattr(misbehaving, "do_POST", all_at_once)
    engine = elsewhere(misbehaving, concurrency=count, request_seconds=float("inf"), max_retries=0)
    assert [answer.text for answer in engine.answers([ASKED] * count)] == ["3"] * count


def test_half_a_character_is_no_text_and_endless_json_no_answer(misbehaving, no_pause):
    half = '{"choices": [{"message": {"content": "a\\ud800b"}, "finish_reason": "stop"}]}'
    misbehaving.replies += [(200, "[" * 100_000), (200, half)]
    assert elsewhere(misbehaving).answers([ASKED])[0].text == "a?b"


def test_a_job_that_is_to_stop_does_not_wait_until_its_server_is_ready(tmp_path):
    command = f"{sys.executable} -c 'import time; time.sleep(60)' {{model}} {{port}}"
    REQUEST.received.append(signal.SIGUSR1)
    try:
        with serving(tmp_path, "", SAMPLING, SETTINGS | {"command": command}, tmp_path / "log") as engine:
            assert engine.process._process.poll() is None
    finally:
        REQUEST.received.clear()
    assert engine.process._process.poll() is not None


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/", "/v1/v1/", "/v1/chat/completions"])
def test_an_address_is_taken_as_people_write_it(misbehaving, end):
    assert elsewhere(misbehaving, url=misbehaving.url.removesuffix("/v1") + end).answers([ASKED])[0].text == "3"
    assert misbehaving.paths == ["/v1/chat/completions"]


def test_an_address_that_cannot_be_one_and_a_key_that_no_header_takes_are_one_line(misbehaving, monkeypatch):
    with pytest.raises(UserError, match=r"server: localhost:8000/v1/chat/completions: .*give a url such as http://"):
        elsewhere(misbehaving, url="localhost:8000").answers([ASKED])
    monkeypatch.setenv("TEST_SERVER_API_KEY", "a-key\n")
    elsewhere(misbehaving).answers([ASKED])
    assert misbehaving.requests[0][0] == "Bearer a-key"
    monkeypatch.setenv("TEST_SERVER_API_KEY", "a\nkey")
    with pytest.raises(UserError, match=r"^TEST_SERVER_API_KEY: holds characters that no key has") as error:
        elsewhere(misbehaving)
    assert "a\nkey" not in str(error.value)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_a_certificate_that_nobody_signed_is_one_line_at_once(tmp_path):
    files = ["-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "cert"), "-subj", "/CN=localhost"]
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *files], check=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    engine = ServerEngine(SAMPLING, SETTINGS | {"url": f"https://127.0.0.1:{server.server_port}"}, "m", None)
    with pytest.raises(UserError, match=r"self-signed certificate.*set SSL_CERT_FILE"):
        engine.answers([ASKED])
    server.shutdown()
    server.server_close()


def test_a_server_that_is_not_there_is_one_line(no_pause):
    engine = ServerEngine(SAMPLING, SETTINGS | {"url": "http://127.0.0.1:9"}, "m", None)
    with pytest.raises(UserError, match=r"ConnectError: .*2 repetitions did not help"):
        engine.answers([ASKED])


def test_a_refused_prompt_is_an_empty_answer_and_all_of_them_one_line(misbehaving, tmp_path):
    asked = prompts(tmp_path / "prompts", 3)
    config = {"n": 1, "sampling": SAMPLING, "model_name": "their-model", "shard": [0, 1], "engine": "server"}
    runtime = {"batch_size": 8, "server": SETTINGS | {"url": misbehaving.url, "concurrency": 1}}
    misbehaving.replies += [(400, "too long")]
    made = task("generate", config, runtime, {"prompts": asked}, tmp_path / "one")
    assert generate.run(made) == 0
    assert json.loads(made.output.read_text())["answers"] == {"cut": 1, "empty": 1}
    misbehaving.replies += [(400, "too long")] * 3
    with pytest.raises(UserError, match="all 3 answers are empty"):
        generate.run(task("generate", config, runtime, {"prompts": asked}, tmp_path / "two"))


def ask_judge(handler, replies: list[str], answers: list[str], **arguments) -> list:
    """The scores by the replies of a server, in order."""
    content = [{"choices": [{"message": {"content": text}, "finish_reason": "stop"}]} for text in replies]
    handler.replies += [(200, json.dumps(one)) for one in content]
    source = registry.reward_names([])["judge"]
    given = {"url": handler.url, "model_name": "m", "concurrency": 1, "max_retries": 0} | arguments
    reward = load_reward("judge", source.file, given)
    columns = [{"gold": "the reference"}] * len(answers)
    return [found["score"] for found in scored(
        reward, [{"prompt": ASKED.prompt, "columns": one} for one in columns],
        [{"prompt": n, "sample": 0, "answer": text} for n, text in enumerate(answers)],
    )]  # fmt: skip


def test_a_rating_is_parsed_strictly(misbehaving):
    replies = [
        "Good. [[10]]",
        "Bad, though it spells [[9]] here. [[1]].",
        "It is [[7]], I think.",
        "Nice answer!",
        "[[11]]",
    ]
    assert ask_judge(misbehaving, replies, ["a {answer} b", "2", "3", "4", "5"]) == [1.0, 0.0, None, None, None]
    first = misbehaving.requests[0][1]
    assert "a {answer} b" in first["messages"][0]["content"] and first["temperature"] == 0


def test_a_comparison_is_asked_with_the_places_swapped(misbehaving):
    replies = ["[[A]]", "[[B]]", "[[A]]", "[[A]]", "[[C]]", "[[B]]", "[[B]]", "neither"]
    assert ask_judge(misbehaving, replies, ["w", "x", "y", "z"], reference="gold") == [1.0, 0.5, 0.75, None]
    texts = [body["messages"][0]["content"] for _, body in misbehaving.requests[:2]]
    assert texts[0].index("[Answer A]\nw") < texts[0].index("the reference") < texts[1].index("[Answer B]\nw")


def test_a_server_that_refuses_the_key_is_no_missing_score(misbehaving):
    misbehaving.replies += [(401, "no")]
    with pytest.raises(UserError, match="refuses the key of OPENAI_API_KEY"):
        ask_judge(misbehaving, [], ["x", "y"])


def test_the_template_of_the_model_is_the_export_s(exported):
    """What a server renders is what training saw: the export carries the pipeline's template."""
    found = (model_folder(exported) / "chat_template.jinja").read_text()
    assert found.strip() == TEMPLATE.strip()
