"""A client of OpenAI's chat API: bounded concurrency, repetitions, and errors of one line."""

import os
import random
import ssl
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx

from post_training.core.errors import UserError, brief

_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS, _LONGEST_WISH_SECONDS = 1.0, 30.0, 300.0
_FOREVER_SECONDS = 1e6  # sockets take no infinity


class Gone(Exception):
    """The server ended, cannot be reached, or is too busy."""

    def __init__(self, problem: str, wish_seconds: float = 0.0) -> None:
        super().__init__(problem)
        self.wish_seconds = wish_seconds
        """How long it asks to be left alone."""


@dataclass(frozen=True)
class Reply:
    """The text of an answer, its tokens, and whether it ended by itself. A prompt that the server refuses has an empty one."""

    text: str
    tokens: int
    ended: bool


class ChatApi:
    """A server's chat API.

    Args:
        url: gives the server's address, with or without `/v1`, or all of it, which ends with `/chat/completions`; asked anew for each request.
        settings: `api_key_variable`, `concurrency`, `request_seconds`, `max_retries`.
        when_gone: called before a request is sent again.
    """

    def __init__(
        self, url: Callable[[], str], settings: dict[str, Any], when_gone: Callable[[], None] = lambda: None
    ) -> None:
        self._url, self._settings, self._when_gone = url, settings, when_gone
        key = os.environ.get(settings["api_key_variable"], "").strip()
        if not key.isascii() or not key.isprintable():
            raise UserError(f"{settings['api_key_variable']}: holds characters that no key has; set it again")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        timeout = min(settings["request_seconds"], _FOREVER_SECONDS)
        limits = httpx.Limits(
            max_connections=settings["concurrency"], max_keepalive_connections=settings["concurrency"]
        )
        self._client = httpx.Client(timeout=timeout, headers=headers, limits=limits)

    def ask_all(self, bodies: list[dict[str, Any]]) -> list[Reply]:
        """The reply to each request, in their order. Raises UserError where the server cannot answer at all."""
        with ThreadPoolExecutor(self._settings["concurrency"]) as pool:
            futures = [pool.submit(self.ask, body) for body in bodies]
            try:
                return [future.result() for future in futures]
            except BaseException:
                for future in futures:
                    future.cancel()
                raise

    def ask(self, body: dict[str, Any]) -> Reply:
        """The reply to one request, sent again after a failure, with pauses that double, or as long as the server wishes."""
        problem, pause, wish = "", _PAUSE_SECONDS, 0.0
        for attempt in range(self._settings["max_retries"] + 1):
            if attempt:
                # Not all at the same moment: those that failed together would fail together again.
                time.sleep(max(pause * random.uniform(0.5, 1), wish))  # noqa: S311
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            try:
                return self._asked(body)
            except Gone as gone:
                problem, wish = str(gone), min(gone.wish_seconds, _LONGEST_WISH_SECONDS)
                self._when_gone()
        raise UserError(f"server: {problem}; {self._settings['max_retries']} repetitions did not help (max_retries)")

    def _asked(self, body: dict[str, Any]) -> Reply:
        url = _endpoint(self._url())
        try:
            response = self._sent(url, body)
        except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise UserError(f"server: {url}: {brief(error)}; give a url such as http://host:8000/v1") from None
        except httpx.TimeoutException:
            raise Gone(f"no answer within {self._settings['request_seconds']:g} s (request_seconds)") from None
        except httpx.HTTPError as error:
            if _is_certificate(error):
                remedy = "set SSL_CERT_FILE to a file with the certificate that signed it, or use http://"
                raise UserError(f"server: {url}: {brief(error)}; {remedy}") from None
            raise Gone(f"{type(error).__name__}: {brief(error)}") from None
        said = brief(Exception(response.text), 200)
        if response.status_code in (401, 403):
            raise UserError(
                f"server: {url} refuses the key of {self._settings['api_key_variable']} ({response.status_code})"
            )
        if response.is_redirect:
            raise UserError(
                f"server: {url} has moved to {response.headers.get('location', 'another address')}; give that as url"
            )
        if response.text.lstrip()[:1] == "<" and response.status_code in (200, 404):
            raise UserError(
                f"server: {url} answers with a web page and is not OpenAI's chat API; give another url: {said}"
            )
        if response.status_code == 404:
            raise UserError(f"server: {url} has no model {body['model']!r} ({said})")
        if response.status_code in (400, 413, 422):
            print(f"server: refuses a prompt: {said}", flush=True)
            return Reply("", 0, False)
        if response.status_code != 200:
            wish = response.headers.get("retry-after", "")
            raise Gone(f"{url} answers {response.status_code}: {said}", float(wish) if wish.isdecimal() else 0.0)
        return _reply(response)

    def _sent(self, url: str, body: dict[str, Any]) -> httpx.Response:
        """The complete response. A server that sends a little now and then has no more time than one that sends nothing."""
        deadline = time.monotonic() + self._settings["request_seconds"]
        with self._client.stream("POST", url, json=body) as response:
            content = bytearray()
            for part in response.iter_bytes():
                content += part
                if time.monotonic() > deadline:
                    raise httpx.ReadTimeout("the answer has no end")
        headers = [(name, value) for name, value in response.headers.multi_items() if name != "content-encoding"]
        return httpx.Response(response.status_code, headers=headers, content=bytes(content), request=response.request)


def _endpoint(url: str) -> str:
    url = url.strip().rstrip("/")
    if url.endswith("/chat/completions"):
        return url
    while url.endswith("/v1"):
        url = url.removesuffix("/v1").rstrip("/")
    return f"{url}/v1/chat/completions"


def _is_certificate(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error is not None


def _reply(response: httpx.Response) -> Reply:
    try:
        content = response.json()
    except (ValueError, RecursionError):
        raise Gone(f"an answer is cut off or no JSON: {brief(Exception(response.text), 200)}") from None
    try:
        choice = content["choices"][0]
        text = choice["message"].get("content") or ""
        tokens = int((content.get("usage") or {}).get("completion_tokens") or 0)
        # JSON may spell half of a character, which no file holds.
        return Reply(text.encode(errors="replace").decode().strip(), tokens, choice.get("finish_reason") == "stop")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise UserError(f"server: the answer is not in OpenAI's form: {brief(Exception(response.text), 200)}") from None
