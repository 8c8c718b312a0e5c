"""Steps for programs without an event loop.

The connection of a step carries both directions at once, and each must go on while the other is stalled. That is an
event loop's work, so one runs in a thread of its own, started with the first step.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

from agentsandbox.api import Request
from agentsandbox.async_transport import AsyncStepStream, open_step
from agentsandbox.config import Config
from agentsandbox.errors import ApiError, ClientClosed, ConnectionFailed
from agentsandbox.exec import Chunk

T = TypeVar("T")


class Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self._streams: weakref.WeakSet[AsyncStepStream] = weakref.WeakSet()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end; an interrupt of the caller cancels it."""
        with self._lock:
            if self._closed:
                work.close()
                raise ClientClosed("the client is closed")
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="agentsandbox", daemon=True)
                self._thread.start()
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError as error:
            raise ClientClosed("the client was closed meanwhile") from error
        except BaseException:
            future.cancel()
            raise

    async def open(self, config: Config, request: Request, seconds: float | None) -> AsyncStepStream:
        """Execute a command, over a connection that ends with the loop at the latest."""
        stream = await open_step(config, request, seconds)
        self._streams.add(stream)
        return stream

    def close(self) -> None:
        """End what runs in the loop, its connections, and its thread."""
        with self._lock:
            loop, self._loop, self._closed = self._loop, None, True
        if loop is not None and self._thread is not None:
            asyncio.run_coroutine_threadsafe(self._end(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join()
            loop.close()

    async def _end(self) -> None:
        # Whoever waits for one of these is in another thread, and would wait for ever.
        running = asyncio.all_tasks() - {asyncio.current_task()}
        for task in running:
            task.cancel()
        await asyncio.gather(*running, *(stream.close() for stream in self._streams), return_exceptions=True)


class StepStream:
    """A running step: iterate over its output, then read `exit_code`.

    Closing it early ends the step and all it started. A step with standard input goes on: only its input ends, and it
    ends by itself, at its `timeout` or with the session.
    """

    def __init__(self, loop: Loop, stream: AsyncStepStream, on_failure: Callable[[], None] | None) -> None:
        self._loop = loop
        self._stream = stream
        self._on_failure = on_failure

    @classmethod
    def open(
        cls,
        loop: Loop,
        config: Config,
        request: Request,
        seconds: float | None,
        on_failure: Callable[[], None] | None = None,
    ) -> Self:
        """Execute a command; its end must be reported within `seconds`. A failure without an exit code is told."""
        return cls(loop, loop.run(loop.open(config, request, seconds)), on_failure)

    def __enter__(self) -> Self:
        """Use the stream."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the stream."""
        self.close()

    def __iter__(self) -> Iterator[Chunk]:
        """Yield output as it comes, to the step's end."""
        while (chunk := self._read(self._stream.receive())) is not None:
            yield chunk

    def _read(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            return self._loop.run(work)
        except (ApiError, ConnectionFailed):
            # In the caller's thread, which can make requests.
            if self._on_failure is not None:
                self._on_failure()
            raise

    def write(self, data: bytes) -> None:
        """Send standard input. Blocks while the command does not read: then let another thread read its output."""
        self._loop.run(self._stream.write(data))

    def close_stdin(self) -> None:
        """End standard input."""
        self._loop.run(self._stream.close_stdin())

    def feed(self, data: bytes) -> None:
        """Send all of standard input and end it, while the caller reads the output."""
        self._loop.run(self._stream.feed(data))

    @property
    def exit_code(self) -> int:
        """The exit code, dropping output that was not read; raises `StepRefused` if the step was refused."""
        return self._read(self._stream.exit_code())

    @property
    def raw_exit_code(self) -> int:
        """The exit code, whatever it means."""
        return self._read(self._stream.raw_exit_code())

    def close(self) -> None:
        """Close the connection. What is left of the step ends, or only its standard input if it has one."""
        # A client that was closed has closed its connections.
        with contextlib.suppress(ClientClosed):
            self._loop.run(self._stream.close())
