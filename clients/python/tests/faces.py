"""Both faces for one test: a loop of the test drives the asyncio one, so that it reads like the threaded one."""

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, cast

from agentsandbox import AsyncClient, AsyncSandbox, AsyncStepStream, Client, Config, StepStream
from agentsandbox.api import Request
from agentsandbox.async_transport import open_step
from agentsandbox.stream import Loop

FACES = ("threads", "asyncio")


@contextmanager
def open_client(face: str, namespace: str, config: Config | None = None) -> Iterator[Client]:
    if face == "threads":
        with Client(namespace, config=config) as client:
            yield client
        return
    with asyncio.Runner() as runner, Driven(runner, AsyncClient(namespace, config=config)) as driven:
        yield cast("Client", driven)


@contextmanager
def open_stream(face: str, config: Config, request: Request, seconds: float | None) -> Iterator[StepStream]:
    if face == "threads":
        loop = Loop()
        try:
            with StepStream.open(loop, config, request, seconds) as stream:
                yield stream
        finally:
            loop.close()
        return
    with asyncio.Runner() as runner, Driven(runner, runner.run(open_step(config, request, seconds))) as driven:
        yield cast("StepStream", driven)


class Driven:
    """An object of the asyncio face with the methods of the threaded one."""

    def __init__(self, runner: asyncio.Runner, driven: AsyncClient | AsyncSandbox | AsyncStepStream) -> None:
        self._runner = runner
        self._driven = driven

    def __enter__(self) -> Any:
        return self._take(self._driven.__aenter__())

    def __exit__(self, *_: object) -> None:
        self._take(self._driven.__aexit__(None, None, None))

    def __iter__(self) -> Iterator[Any]:
        assert isinstance(self._driven, AsyncStepStream)
        return self._iterate(aiter(self._driven))

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._driven, name)
        if not inspect.ismethod(found):
            return found
        # Properties of the threaded face.
        if name in ("exit_code", "raw_exit_code"):
            return self._take(found())
        return functools.partial(self._call, found)

    def _call(self, method: Any, *args: Any, **options: Any) -> Any:
        return self._take(method(*args, **options))

    def _take(self, result: Any) -> Any:
        if inspect.iscoroutine(result):
            return self._take(self._runner.run(result))
        if inspect.isasyncgen(result):
            return self._iterate(result)
        if isinstance(result, list):
            return [self._take(item) for item in result]
        if isinstance(result, AsyncClient | AsyncSandbox | AsyncStepStream):
            return Driven(self._runner, result)
        return result

    def _iterate(self, items: AsyncIterator[Any]) -> Iterator[Any]:
        async def following() -> tuple[Any, ...]:
            async for item in items:
                return (item,)
            return ()

        while item := self._runner.run(following()):
            yield item[0]
