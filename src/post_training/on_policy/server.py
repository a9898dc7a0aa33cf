"""The engine `server`: a program with OpenAI's chat API, started for the job from a command, or elsewhere at a `url`.

Answers are asked for with bounded concurrency. A request that fails is sent again after a pause that doubles; a server that is
gone is started again. What a repetition cannot change (a wrong key, a model that is not there) ends the job with one line, and a
prompt that the server refuses is an empty answer, which is counted.
"""

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from post_training.core.errors import UserError
from post_training.models.chat_api import ChatApi
from post_training.on_policy.engine import Answer, Request, stream_seed
from post_training.run_dir.parent import SNAKEMAKE, snakemake_is_gone
from post_training.run_dir.stop import REQUEST, die_with_parent

_POLL_SECONDS, _STOP_SECONDS = 0.5, 20.0
_RESTARTS = 3
# Of the environment in which this job runs, and not of the server's own.
_NOT_PASSED_ON = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", SNAKEMAKE)


class Process:
    """A server on this machine. Its output goes to a log file; it dies with this process.

    Args:
        command: words with `{model}` and `{port}`, such as `vllm serve {model} --port {port}`.
        model: folder.
        log: file that takes its output.
        startup_seconds: how long until it answers.
    """

    def __init__(self, command: str, model: Path, log: Path, startup_seconds: float) -> None:
        self.command, self.model, self.log, self.startup_seconds = command, model, log, startup_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._lock, self._starts, self.url = threading.Lock(), 0, ""
        # The kernel ends the server with the thread that started it, so that is one which lives as long as this object.
        self._starter = ThreadPoolExecutor(1)

    def start(self) -> None:
        """Start it and wait until it is healthy, or this process is to stop. Raises UserError, with the end of its output,
        where it ends or never is."""
        self._starter.submit(self._start).result()

    def _start(self) -> None:
        port = _free_port()
        words = [
            word.replace("{model}", str(self.model)).replace("{port}", str(port)) for word in shlex.split(self.command)
        ]
        environment = {name: value for name, value in os.environ.items() if name not in _NOT_PASSED_ON}
        me, self.url = os.getpid(), f"http://127.0.0.1:{port}"
        self._starts += 1
        self.log.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self.log.open("ab") as log:
                self._process = subprocess.Popen(
                    words, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                    preexec_fn=lambda: die_with_parent(me),
                )  # fmt: skip
        except OSError as error:
            raise UserError(
                f"generate.server.command: {words[0]} cannot be started ({error}); give the path of the program, "
                "or for vLLM make its environment: make vllm"
            ) from None
        print(f"server: {shlex.join(words)}; output: {self.log}", flush=True)
        deadline = time.monotonic() + self.startup_seconds
        while not (self._healthy() or REQUEST.wanted or snakemake_is_gone()):
            if self._process.poll() is not None:
                raise UserError(
                    f"server: ended with code {self._process.returncode} before it was ready: {self._last_lines()}"
                )
            if time.monotonic() > deadline:
                raise UserError(
                    f"server: not ready after {self.startup_seconds:g} s (generate.server.startup_seconds): {self._last_lines()}"
                )
            time.sleep(_POLL_SECONDS)

    def restart_if_gone(self) -> None:
        """Start it again after a crash, once however many requests find it gone. Raises UserError after several."""
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                return
            if self._starts > _RESTARTS:
                raise UserError(f"server: ended {self._starts} times: {self._last_lines()}")
            print(f"server: it is gone; starting it again ({self._starts} of {_RESTARTS})", flush=True)
            self.start()

    def stop(self) -> None:
        """End it and what it has started."""
        self._starter.shutdown()
        if self._process is None:
            return
        for number, patience in ((signal.SIGTERM, _STOP_SECONDS), (signal.SIGKILL, _STOP_SECONDS)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(patience)

    def _healthy(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def _last_lines(self) -> str:
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.is_file() else ""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return f"{' | '.join(lines[-3:])[-500:] or 'it said nothing'} ({self.log})"


class ServerEngine:
    """Answers by a server, in the form of `engine.Engine`."""

    def __init__(
        self, sampling: dict[str, Any], settings: dict[str, Any], model_name: str, process: Process | None
    ) -> None:
        self.sampling, self.settings, self.model_name, self.process = sampling, settings, model_name, process
        if process is None:
            self.api = ChatApi(lambda: str(settings["url"]), settings)
        else:
            self.api = ChatApi(lambda: process.url, settings, process.restart_if_gone)

    @property
    def at_a_time(self) -> int:
        """Answers of a batch: enough that the last ones, for which all wait, cost little."""
        return 8 * int(self.settings["concurrency"])

    def length(self, prompt: list[dict[str, Any]], tools: Any = None) -> int | None:
        """Characters, in place of tokens, which the server counts."""
        return sum(len(message["content"]) for message in prompt)

    def answers(self, requests: list[Request]) -> list[Answer]:
        """One batch. Raises UserError where the server cannot answer at all."""
        replies = self.api.ask_all([self._body(request) for request in requests])
        return [Answer(reply.text, reply.tokens, reply.ended) for reply in replies]

    def _body(self, request: Request) -> dict[str, Any]:
        sampling = self.sampling
        return {
            "model": self.model_name,
            "messages": request.prompt,
            "max_tokens": sampling["max_new_tokens"],
            "temperature": sampling["temperature"],
            "top_p": sampling["top_p"],
            "seed": stream_seed(sampling["seed"], request.stream),
            **({"top_k": sampling["top_k"]} if sampling["top_k"] else {}),
            **({"tools": request.tools} if request.tools else {}),
        }


@contextmanager
def serving(
    folder: Path | None, name: str, sampling: dict[str, Any], settings: dict[str, Any], log: Path
) -> Iterator[ServerEngine]:
    """The engine, with a server of its own where `settings` have a command; it is stopped whatever happens."""
    if settings["command"] is None:
        yield ServerEngine(sampling, settings, name, None)
        return
    assert folder is not None
    process = Process(settings["command"], folder.absolute(), log, settings["startup_seconds"])
    try:
        process.start()
        yield ServerEngine(sampling, settings, settings["model_name"] or str(folder.absolute()), process)
    finally:
        process.stop()


def _free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])
