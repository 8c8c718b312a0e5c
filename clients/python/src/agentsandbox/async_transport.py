"""The asyncio way to do what operations yield, and the one way to execute commands."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator
from types import TracebackType
from typing import Self, TypeVar

import httpx2
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.typing import Subprotocol

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
from agentsandbox.errors import AgentSandboxError, ApiError, ConnectionFailed, ProtocolError, StepTimeout
from agentsandbox.exec import MESSAGE_MAX_BYTES, PROTOCOLS, Channels, Chunk, stdin_end, stdin_messages
from agentsandbox.network import network_errors
from agentsandbox.records import Lines
from agentsandbox.steps import Tail

T = TypeVar("T")

_CLOSE_SECONDS = 5.0
"""How long the API server may take to say goodbye."""
_KEEP_ALIVE_SECONDS = 30


class AsyncTransport:
    """One API server, and the connections to it, in one event loop."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._http = httpx2.AsyncClient(
            base_url=config.server,
            verify=config.tls or True,
            proxy=config.proxy,
            headers=[("Accept", "application/json"), *config.headers],
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def run(self, operation: Operation[T]) -> T:
        """Carry out an operation."""
        try:
            effect = next(operation)
            while True:
                try:
                    answer = await self._perform(effect)
                except AgentSandboxError as error:
                    effect = operation.throw(error)
                else:
                    effect = operation.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result

    async def _perform(self, effect: Effect) -> Answer | None:
        if isinstance(effect, Sleep):
            await asyncio.sleep(effect.seconds)
            return None
        if isinstance(effect, Request):
            async with self._send(effect) as response:
                return Answer(response.status_code, response.headers, await _body(response))
        async with self._send(effect.request) as response:
            if response.is_error:
                return Answer(response.status_code, response.headers, await _body(response))
            async for line in _lines(response, EVENT_MAX_BYTES):
                if effect.feed(line):
                    break
            return Answer(response.status_code)

    @contextlib.asynccontextmanager
    async def lines(self, request: Request, max_bytes: int) -> AsyncGenerator[AsyncIterator[bytes]]:
        """Open a stream of lines."""
        async with self._send(request) as response:
            if response.is_error:
                raise_for(response.status_code, await _body(response))
            yield _lines(response, max_bytes)

    @contextlib.asynccontextmanager
    async def _send(self, request: Request) -> AsyncGenerator[httpx2.Response]:
        sni = self._config.tls_server_name
        for again in (True, False):
            with network_errors():
                opened = self._http.stream(
                    request.method,
                    request.target,
                    json=request.body,
                    headers=await authorization(self._config) | request.headers,
                    timeout=httpx2.Timeout(READ_SECONDS, read=request.read_seconds),
                    extensions={"sni_hostname": sni} if sni else {},
                )
                async with opened as response:
                    refused = response.status_code == httpx2.codes.UNAUTHORIZED
                    if refused and again and self._config.credentials.refused():
                        continue
                    yield response
                    return

    async def open_step(
        self, request: Request, seconds: float | None, on_failure: Callable[[], Awaitable[None]]
    ) -> AsyncStepStream:
        """Execute a command; its end must be reported within `seconds`. A failure without an exit code is told."""
        return await open_step(self._config, request, seconds, on_failure)


async def open_step(
    config: Config, request: Request, seconds: float | None, on_failure: Callable[[], Awaitable[None]] | None = None
) -> AsyncStepStream:
    """Execute a command; its end must be reported within `seconds`. A failure without an exit code is told."""
    for again in (True, False):
        try:
            connection = await connect(
                f"ws{config.server.removeprefix('http')}{request.target}",
                ssl=config.tls,
                server_hostname=config.tls_server_name,
                subprotocols=[Subprotocol(protocol) for protocol in PROTOCOLS],
                additional_headers=[*config.headers, *(await authorization(config)).items()],
                compression=None,
                proxy=config.proxy or True,
                open_timeout=READ_SECONDS,
                close_timeout=_CLOSE_SECONDS,
                # An API server that passes the connection on to the kubelet cuts off output that is still under way
                # if anything is sent after the command's end, a ping included. TCP's keep-alive does not go that far.
                ping_interval=None,
                max_size=MESSAGE_MAX_BYTES,
            )
        except InvalidStatus as error:
            status = error.response.status_code
            if status == httpx2.codes.UNAUTHORIZED and again and config.credentials.refused():
                continue
            raise_for(status, bytes(error.response.body or b""))
        except (OSError, WebSocketException) as error:
            raise ConnectionFailed(f"{config.server}: {error}") from error
        _keep_alive(connection)
        try:
            return AsyncStepStream(connection, seconds, on_failure)
        except ProtocolError:
            await connection.close()
            raise
    raise AssertionError("the second attempt returns or raises")


def _keep_alive(connection: ClientConnection) -> None:
    """Let the kernel notice a dead connection, and keep a silent one open."""
    found = connection.transport.get_extra_info("socket")
    found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option in ("TCP_KEEPIDLE", "TCP_KEEPINTVL"):
        if number := getattr(socket, option, None):
            found.setsockopt(socket.IPPROTO_TCP, number, _KEEP_ALIVE_SECONDS)


async def authorization(config: Config) -> dict[str, str]:
    """Return the header of the token that holds now."""
    credentials = config.credentials
    token = credentials.token() if credentials.fresh() else await asyncio.to_thread(credentials.token)
    return {"Authorization": f"Bearer {token}"} if token else {}


class AsyncStepStream:
    """A running step: iterate over its output, then await `exit_code()`.

    Closing it early ends the step and all it started. A step with standard input goes on: only its input ends, and it
    ends by itself, at its `timeout` or with the session.
    """

    def __init__(
        self, connection: ClientConnection, seconds: float | None, on_failure: Callable[[], Awaitable[None]] | None
    ) -> None:
        self._connection = connection
        self._on_failure = on_failure
        self._channels = Channels(connection.subprotocol)
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self._tail = Tail()
        self._feeder: asyncio.Task[None] | None = None
        self._code: int | None = None

    async def __aenter__(self) -> Self:
        """Use the stream."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the stream."""
        await self.close()

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        """Yield output as it comes, to the step's end."""
        while (chunk := await self.receive()) is not None:
            yield chunk

    async def receive(self) -> Chunk | None:
        """Return the next output, or nothing at the step's end."""
        while self._code is None:
            left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
            try:
                async with asyncio.timeout(left):
                    message = await self._connection.recv()
            except TimeoutError as error:
                raise StepTimeout("the step's end was not reported in time") from error
            except ConnectionClosed:
                self._code = await self._outcome()
                return None
            if (chunk := self._channels.feed(message)) is not None:
                self._tail.add(chunk)
                return chunk
        return None

    async def _outcome(self) -> int:
        try:
            return self._channels.exit_code()
        except (ApiError, ConnectionFailed):
            if self._on_failure is not None:
                await self._on_failure()
            raise

    async def write(self, data: bytes) -> None:
        """Send standard input. Waits while the command does not read: then let another task read its output."""
        if not self._channels.can_close_stdin:
            raise ProtocolError(
                "this API server can't end a command's standard input: it is older than Kubernetes 1.30"
            )
        with _broken():
            for message in stdin_messages(data):
                await self._connection.send(message)
                # Sending alone lets nothing else run: not even the news that the connection is gone.
                await asyncio.sleep(0)

    async def close_stdin(self) -> None:
        """End standard input."""
        with _broken():
            await self._connection.send(stdin_end())

    async def feed(self, data: bytes) -> None:
        """Send all of standard input and end it, while the caller reads the output."""
        if not self._channels.can_close_stdin:
            await self.write(data)
        self._feeder = asyncio.create_task(self._feed(data))

    async def _feed(self, data: bytes) -> None:
        # A command may end without reading all. A connection that broke is noticed by who reads.
        with contextlib.suppress(ConnectionFailed):
            await self.write(data)
            await self.close_stdin()

    async def exit_code(self) -> int:
        """Return the exit code, dropping output that was not read; raise `StepRefused` if the step was refused."""
        return self._tail.check(await self.raw_exit_code())

    async def raw_exit_code(self) -> int:
        """Return the exit code, whatever it means."""
        while await self.receive() is not None:
            pass
        if self._code is None:
            raise AssertionError("output ends with an exit code")
        return self._code

    async def close(self) -> None:
        """Close the connection. What is left of the step ends, or only its standard input if it has one."""
        if self._feeder is not None:
            self._feeder.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._feeder
        await self._connection.close()


@contextlib.contextmanager
def _broken() -> Generator[None]:
    try:
        yield
    except (OSError, WebSocketException) as error:
        raise ConnectionFailed(f"the exec connection broke: {error}") from error


async def _body(response: httpx2.Response) -> bytes:
    body = bytearray()
    async for data in response.aiter_bytes():
        body += data
        if len(body) > ANSWER_MAX_BYTES:
            raise ProtocolError(f"the API server's answer is longer than {ANSWER_MAX_BYTES} bytes")
    return bytes(body)


async def _lines(response: httpx2.Response, max_bytes: int) -> AsyncIterator[bytes]:
    lines = Lines(max_bytes)
    async for data in response.aiter_bytes():
        for line in lines.feed(data):
            yield line
