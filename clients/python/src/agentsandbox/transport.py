"""The threaded way to do what operations yield."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator
from typing import TypeVar

import httpx2

from agentsandbox.api import (
    ANSWER_MAX_BYTES,
    EVENT_MAX_BYTES,
    READ_SECONDS,
    Answer,
    Effect,
    Operation,
    Request,
    Sleep,
    raise_for,
)
from agentsandbox.config import Config
from agentsandbox.errors import AgentSandboxError, ProtocolError
from agentsandbox.network import network_errors
from agentsandbox.records import Lines
from agentsandbox.stream import Loop, StepStream

T = TypeVar("T")


class Transport:
    """One API server, and the connections to it."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._loop = Loop()
        self._http = httpx2.Client(
            base_url=config.server,
            verify=config.tls or True,
            proxy=config.proxy,
            headers=[("Accept", "application/json"), *config.headers],
        )

    def close(self) -> None:
        """Close the connections."""
        self._loop.close()
        self._http.close()

    def run(self, operation: Operation[T]) -> T:
        """Carry out an operation."""
        try:
            effect = next(operation)
            while True:
                try:
                    answer = self._perform(effect)
                except AgentSandboxError as error:
                    effect = operation.throw(error)
                else:
                    effect = operation.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result

    def _perform(self, effect: Effect) -> Answer | None:
        if isinstance(effect, Sleep):
            time.sleep(effect.seconds)
            return None
        if isinstance(effect, Request):
            with self._send(effect) as response:
                return Answer(response.status_code, response.headers, _body(response))
        with self._send(effect.request) as response:
            if response.is_error:
                return Answer(response.status_code, response.headers, _body(response))
            any(effect.feed(line) for line in _lines(response, EVENT_MAX_BYTES))
            return Answer(response.status_code)

    @contextlib.contextmanager
    def lines(self, request: Request, max_bytes: int) -> Generator[Iterator[bytes]]:
        """Open a stream of lines."""
        with self._send(request) as response:
            if response.is_error:
                raise_for(response.status_code, _body(response))
            yield _lines(response, max_bytes)

    @contextlib.contextmanager
    def _send(self, request: Request) -> Generator[httpx2.Response]:
        sni = self._config.tls_server_name
        for again in (True, False):
            with network_errors():
                opened = self._http.stream(
                    request.method,
                    request.target,
                    json=request.body,
                    headers=self._authorization() | request.headers,
                    timeout=httpx2.Timeout(READ_SECONDS, read=request.read_seconds),
                    extensions={"sni_hostname": sni} if sni else {},
                )
                with opened as response:
                    refused = response.status_code == httpx2.codes.UNAUTHORIZED
                    if refused and again and self._config.credentials.refused():
                        continue
                    yield response
                    return

    def open_step(self, request: Request, seconds: float | None, on_failure: Callable[[], None]) -> StepStream:
        """Execute a command; its end must be reported within `seconds`. A failure without an exit code is told."""
        return StepStream.open(self._loop, self._config, request, seconds, on_failure)

    def _authorization(self) -> dict[str, str]:
        token = self._config.credentials.token()
        return {"Authorization": f"Bearer {token}"} if token else {}


def _body(response: httpx2.Response) -> bytes:
    body = bytearray()
    for data in response.iter_bytes():
        body += data
        if len(body) > ANSWER_MAX_BYTES:
            raise ProtocolError(f"the API server's answer is longer than {ANSWER_MAX_BYTES} bytes")
    return bytes(body)


def _lines(response: httpx2.Response, max_bytes: int) -> Iterator[bytes]:
    lines = Lines(max_bytes)
    for data in response.iter_bytes():
        yield from lines.feed(data)
