"""The threaded face: `Client` and `Sandbox`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self, Unpack

from agentsandbox import api
from agentsandbox.config import Config
from agentsandbox.errors import ApiError, ConnectionFailed, LogAltered, NotFound
from agentsandbox.models import Json, SandboxSpec, sandbox_object
from agentsandbox.records import LINE_MAX_BYTES, LogCursor, LogReader, LogRecord
from agentsandbox.status import Live, Result, live_of
from agentsandbox.steps import (
    GRACE_SECONDS,
    OUTPUT_MAX_BYTES,
    TRANSFER_SECONDS,
    Collector,
    StepResult,
    get_command,
    put_command,
    raise_unexpected,
    status_command,
    step_command,
)
from agentsandbox.stream import StepStream
from agentsandbox.tar import OVERHEAD_BYTES, pack, place, unpack
from agentsandbox.transport import Transport
from agentsandbox.view import START_SECONDS, SandboxView, has_started, new_name


class Client:
    """Creates and finds sandboxes in one namespace. May be used by several threads."""

    def __init__(
        self, namespace: str | None = None, *, config: Config | None = None, start_seconds: float = START_SECONDS
    ) -> None:
        config = config or Config.load()
        self.namespace = namespace or config.namespace
        self.start_seconds = start_seconds
        self._transport = Transport(config)

    def __enter__(self) -> Self:
        """Use the client."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close its connections; sandboxes stay."""
        self.close()

    def close(self) -> None:
        """Close its connections; sandboxes stay. Steps that other threads wait for raise `ClientClosed` there."""
        self._transport.close()

    def create(self, name: str | None = None, *, adopt: bool = True, **spec: Unpack[SandboxSpec]) -> Sandbox:
        """Create a sandbox, with a command to run or a session that takes steps; see `SandboxSpec` for its fields.

        Without a name it gets a new one. With one, a sandbox that is there already and asks for the same run is taken
        as it is, unless `adopt` is false; one that asks for another run raises `AlreadyExists`.
        """
        sandbox = sandbox_object(self.namespace, name or new_name("sandbox"), spec)
        created = self._transport.run(api.create(self.namespace, sandbox, adopt=adopt or name is None))
        return Sandbox(self._transport, created, self.start_seconds)

    def get(self, name: str) -> Sandbox:
        """Find a sandbox."""
        found = self._transport.run(api.get(api.Ref(self.namespace, name)))
        return Sandbox(self._transport, found, self.start_seconds)

    def list(self, label_selector: str | None = None) -> Sequence[Sandbox]:
        """Find all sandboxes, or those with certain labels."""
        found = self._transport.run(api.list_all(self.namespace, label_selector))
        return [Sandbox(self._transport, sandbox, self.start_seconds) for sandbox in found]


class Sandbox(SandboxView):
    """One sandbox. As a context manager it is deleted at the end."""

    def __init__(self, transport: Transport, sandbox: Json, start_seconds: float) -> None:
        super().__init__(sandbox)
        self._transport = transport
        self._start_seconds = start_seconds

    def __enter__(self) -> Self:
        """Use the sandbox."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Delete the sandbox."""
        self.delete()

    def refresh(self) -> Self:
        """Look again where it stands."""
        self._take(self._transport.run(api.get(self._ref)))
        return self

    def wait(self, timeout: float | None = None) -> Result:
        """Wait until the run has ended; return its result. A run that its policy rejects raises `PolicyRejected`."""
        self._take(self._transport.run(api.wait(self._ref, "finished", lambda status: status.finished, timeout)))
        return self._verdict()

    def wait_ready(self, timeout: float | None = None) -> Self:
        """Wait until the command runs, the session takes steps, or the run has ended already."""
        self._take(self._transport.run(api.wait(self._ref, "ready", has_started, timeout)))
        return self

    def stop(self) -> None:
        """End the run; its verdict is `Stopped`. Does not wait for it."""
        self._take(self._transport.run(api.change(self._ref, {"stop": True})))

    def run_again(self, run_id: str) -> None:
        """Run a finished sandbox again: with another run id than any before."""
        self._take(self._transport.run(api.change(self._ref, {"runId": run_id, "stop": False})))

    def delete(self, *, wait: bool = False, timeout: float | None = None) -> None:
        """Delete it, ending its run if it has not ended; no error if it is gone already."""
        self._transport.run(api.delete(self._ref))
        if wait:
            self._transport.run(api.wait_gone(self._ref, timeout))

    def step(
        self,
        command: Sequence[str],
        *,
        stdin: bytes | None = None,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        max_output: int = OUTPUT_MAX_BYTES,
    ) -> StepResult:
        """Run a command in a session, as a recorded and counted step, and wait for its end.

        The step ends with exit code 124 after `timeout` seconds, rounded up to whole ones. Output beyond `max_output`
        bytes raises `OutputTooLarge`, which ends a step without `stdin`. Waits for the session to start.
        """
        line = step_command(command, timeout=timeout, env=env, cwd=cwd, stdin=stdin is not None)
        return self._run(line, stdin, timeout, max_output)

    def stream_step(
        self,
        command: Sequence[str],
        *,
        stdin: bool = False,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> StepStream:
        """Run a command as a step, with its output and input as streams. Use it as a context manager."""
        line = step_command(command, timeout=timeout, env=env, cwd=cwd, stdin=stdin)
        return self._open(line, stdin=stdin, timeout=timeout)

    def write_file(
        self, path: str, content: bytes, *, mode: int = 0o644, timeout: float | None = TRANSFER_SECONDS
    ) -> None:
        """Write a file of a session, relative to the workspace or below `/workspace` or `/tmp`. Counts as a step.

        One that takes longer than `timeout` seconds raises `StepTimeout`.
        """
        folder, name = place(path)
        result = self._run(put_command(folder, timeout), pack(name, content, mode), timeout, OUTPUT_MAX_BYTES)
        if result.exit_code != 0:
            raise_unexpected(result)

    def read_file(
        self, path: str, *, max_bytes: int = OUTPUT_MAX_BYTES, timeout: float | None = TRANSFER_SECONDS
    ) -> bytes:
        """Read one regular file of a session, of at most `max_bytes`. Counts as a step.

        One that takes longer than `timeout` seconds raises `StepTimeout`.
        """
        result = self._run(get_command(path, timeout), None, timeout, max_bytes + OVERHEAD_BYTES)
        if result.exit_code != 0:
            raise_unexpected(result)
        return unpack(result.stdout, max_bytes)

    def live(self) -> Live:
        """Ask the running sandbox what it has used and done so far. Is no step."""
        result = self._run(status_command(), None, GRACE_SECONDS, OUTPUT_MAX_BYTES)
        if result.exit_code != 0:
            raise_unexpected(result)
        return live_of(result.stdout)

    def log(self, *, follow: bool = False, after: int | None = None) -> Iterator[LogRecord]:
        """Yield the records of the action log; with `follow` to the end of the run, else those there are.

        `after` leaves out records up to this number. A gap or a changed record raises `LogAltered`. Waits for the
        sandbox to start.
        """
        self._wait_started()
        cursor = LogCursor(after)
        while True:
            try:
                for line in self._log_lines(follow=follow):
                    if record := cursor.feed(line):
                        yield record
            except ConnectionFailed:
                if not follow or not cursor.may_retry():
                    raise
            else:
                return

    def verify_log(self) -> int:
        """Read the whole log of a finished run and compare it with status; return how many records it has."""
        audit = self.audit if self.result else None
        if audit is None:
            raise LogAltered(f"sandbox {self.name}: status says nothing of a log")
        reader = LogReader()
        for line in self._log_lines(follow=False):
            reader.feed(line)
        reader.check(audit.records, audit.head)
        return reader.records

    def _log_lines(self, *, follow: bool) -> Iterator[bytes]:
        try:
            with self._transport.lines(self._log_request(follow=follow), LINE_MAX_BYTES) as lines:
                yield from lines
        except NotFound as error:
            raise NotFound(404, "NotFound", f"sandbox {self.name}: its log is gone with its pod") from error

    def _wait_started(self) -> None:
        if not self.status.ready and not self.status.finished:
            self.wait_ready(self._start_seconds)

    def _open(self, line: Sequence[str], *, stdin: bool, timeout: float | None) -> StepStream:
        self._wait_started()
        seconds = None if timeout is None else timeout + GRACE_SECONDS
        try:
            return self._transport.open_step(self._exec_request(line, stdin=stdin), seconds, self._check_again)
        except ApiError:
            self._check_again()
            raise

    def _check_again(self) -> None:
        # A pod that is gone or has ended says so in many ways, some API servers only once the connection is open; the
        # sandbox says it in one.
        with contextlib.suppress(ConnectionFailed):
            self.refresh()
        self._check_takes_steps()

    def _run(self, line: Sequence[str], stdin: bytes | None, timeout: float | None, max_output: int) -> StepResult:
        collector = Collector(max_output)
        with self._open(line, stdin=stdin is not None, timeout=timeout) as stream:
            if stdin is not None:
                stream.feed(stdin)
            for chunk in stream:
                collector.add(chunk)
            return collector.result(stream.raw_exit_code, limited=timeout is not None)
