"""Steps without I/O: what is executed in the recorder container, and what its outcome means."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from agentsandbox.errors import OutputTooLarge, ProtocolError, StepFailed, StepRefused, StepTimeout
from agentsandbox.exec import Chunk

EXIT_TIMEOUT = 124
"""Exit code of a step that its own time limit ended."""
EXIT_REFUSED = 125
"""Exit code of a step that was refused, or could not be had."""
OUTPUT_MAX_BYTES = 16 << 20
"""Most output of a step that is held unless the caller says otherwise."""
GRACE_SECONDS = 30.0
"""How long after a step's own time limit its end must be reported."""

TRANSFER_SECONDS = 600.0
"""How long a file may take on its way into or out of a sandbox unless the caller says otherwise."""

_SUPERVISOR = "/sandbox-supervisor"
_REFUSED = re.compile(rb"^sandbox-supervisor: (?:step|status)(?: refused)?: (\w{1,64}): (.*)$")
_TAIL_BYTES = 4096


@dataclass(frozen=True)
class StepResult:
    """How a step ended."""

    exit_code: int
    """Of the command; 128 + signal if a signal ended it; 124 if the step's time limit did."""
    stdout: bytes
    """Standard output, byte-exact: text of the sandbox, not to be trusted."""
    stderr: bytes
    """Standard error, byte-exact: text of the sandbox, not to be trusted."""
    timed_out: bool
    """Whether the step had a time limit and ended with its exit code."""

    @property
    def text(self) -> str:
        """Standard output as text; bytes that are no UTF-8 are replaced."""
        return self.stdout.decode(errors="replace")

    def check(self) -> StepResult:
        """Return the result of exit code 0; raise `StepFailed` otherwise."""
        if self.exit_code != 0:
            raise StepFailed(self)
        return self


def step_command(
    command: Sequence[str],
    *,
    timeout: float | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    stdin: bool = False,
) -> list[str]:
    """Return the command line of a step."""
    if isinstance(command, str | bytes):
        raise TypeError("a step's command is a list: no shell splits a string")
    if not command:
        raise ValueError("a step needs a command")
    # A caller that leaves closes standard input; without `--attended` nothing tells the recorder.
    line = [_SUPERVISOR, "step", "--stdin" if stdin else "--attended"]
    line += _limit(timeout)
    for name, value in (env or {}).items():
        if not name or "=" in name:
            raise ValueError(f"{name!r} is no name of an environment entry")
        line += ["--env", f"{name}={value}"]
    if cwd is not None:
        line += ["--workdir", cwd]
    line += ["--", *command]
    if any("\0" in word for word in line):
        raise ValueError("a step's command, environment or working directory holds a NUL")
    return line


def put_command(folder: str, timeout: float | None) -> list[str]:
    """Return the command line that unpacks a tar stream into a folder of the sandbox."""
    return [_SUPERVISOR, "step", *_limit(timeout), "--put", folder]


def get_command(path: str, timeout: float | None) -> list[str]:
    """Return the command line that sends a path of the sandbox as a tar stream."""
    return [_SUPERVISOR, "step", "--attended", *_limit(timeout), "--get", path]


def _limit(timeout: float | None) -> list[str]:
    if timeout is None:
        return []
    if not timeout > 0:
        raise ValueError(f"timeout {timeout} is not above 0")
    return ["--timeout", str(math.ceil(timeout))]


def status_command() -> list[str]:
    """Return the command line that prints a run as it stands now."""
    return [_SUPERVISOR, "status"]


class Collector:
    """The output of one step, held up to a bound."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._parts: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}

    def add(self, chunk: Chunk) -> None:
        """Take some output."""
        self._parts[chunk.stream] += chunk.data
        if sum(map(len, self._parts.values())) > self._max_bytes:
            raise OutputTooLarge(f"the step wrote more than {self._max_bytes} bytes")

    def result(self, exit_code: int, *, limited: bool) -> StepResult:
        """Return the result of the step; raise `StepRefused` if it was refused."""
        stdout, stderr = (bytes(self._parts[stream]) for stream in ("stdout", "stderr"))
        result = StepResult(exit_code, stdout, stderr, limited and exit_code == EXIT_TIMEOUT)
        if exit_code == EXIT_REFUSED:
            raise_if_refused(stderr, result)
        return result


class Tail:
    """The end of a step's standard error, by which a refusal is known when the output itself is not held."""

    def __init__(self) -> None:
        self._tail = b""

    def add(self, chunk: Chunk) -> None:
        """Take some output."""
        if chunk.stream == "stderr":
            self._tail = (self._tail + chunk.data)[-_TAIL_BYTES:]

    def check(self, exit_code: int) -> int:
        """Return the exit code; raise `StepRefused` if the step was refused."""
        if exit_code == EXIT_REFUSED:
            raise_if_refused(self._tail, None)
        return exit_code


def raise_if_refused(stderr: bytes, result: StepResult | None) -> None:
    """Raise `StepRefused` if the last line of standard error says so."""
    lines = stderr.rstrip(b"\n").split(b"\n")
    if refusal := _REFUSED.match(lines[-1]):
        reason, message = (part.decode(errors="replace") for part in refusal.groups())
        raise StepRefused(reason, message, result)


def raise_unexpected(result: StepResult) -> NoReturn:
    """Raise for a step of our own that failed without being refused."""
    if result.timed_out:
        raise StepTimeout("the sandbox did not do it in time")
    said = result.stderr[-_TAIL_BYTES:].decode(errors="replace").strip()
    raise ProtocolError(f"exit code {result.exit_code}: {said}")
