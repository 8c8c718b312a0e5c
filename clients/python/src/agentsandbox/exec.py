"""The channels of `pods/exec` over a WebSocket, without I/O: subprotocols `v5.channel.k8s.io` and `v4.channel.k8s.io`.

Each message is binary: one byte for the channel, then its data. Channel 3 carries the outcome, a `Status` object. In
version 5 the message (255, channel) closes a channel, which is how standard input ends; version 4 can't say that.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from agentsandbox.errors import ApiError, ConnectionFailed, ProtocolError

V5 = "v5.channel.k8s.io"
V4 = "v4.channel.k8s.io"
PROTOCOLS = (V5, V4)

MESSAGE_MAX_BYTES = 1 << 20
"""Longest message that is taken. API servers send at most 32 KiB at once."""

_STDIN, _STDOUT, _STDERR, _OUTCOME, _RESIZE, _CLOSE = 0, 1, 2, 3, 4, 255
_PIECE_BYTES = 32 << 10
_OUTCOME_MAX_BYTES = 64 << 10
_EXIT_CODE_MAX = 255

Stream: TypeAlias = Literal["stdout", "stderr"]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some output of a step, byte-exact."""

    stream: Stream
    data: bytes


class Channels:
    """One exec connection."""

    def __init__(self, protocol: str | None) -> None:
        if protocol not in PROTOCOLS:
            raise ProtocolError(f"the API server chose the exec protocol {protocol!r}, none of {', '.join(PROTOCOLS)}")
        self.can_close_stdin = protocol == V5
        self._outcome = bytearray()
        self._closed: set[int] = set()

    def feed(self, message: bytes | str) -> Chunk | None:
        """Take a message of the server; return what it holds of the command's output."""
        if isinstance(message, str):
            raise ProtocolError("the API server sent text over an exec connection")
        if not message:
            raise ProtocolError("the API server sent an exec message without a channel")
        channel, data = message[0], bytes(message[1:])
        if channel == _CLOSE and self.can_close_stdin:
            if len(data) != 1 or data[0] > _RESIZE:
                raise ProtocolError("the API server closed an exec channel that there is not")
            self._closed.add(data[0])
            return None
        if channel not in (_STDOUT, _STDERR, _OUTCOME):
            raise ProtocolError(f"the API server sent on exec channel {channel}")
        if not data:
            # Sent when the connection opens.
            return None
        if channel in self._closed:
            raise ProtocolError(f"the API server sent on exec channel {channel} after closing it")
        if channel == _OUTCOME:
            self._outcome += data
            if len(self._outcome) > _OUTCOME_MAX_BYTES:
                raise ProtocolError("the API server's outcome of an exec is endless")
            return None
        return Chunk("stdout" if channel == _STDOUT else "stderr", data)

    def exit_code(self) -> int:
        """Return the exit code, once the connection is closed."""
        if not self._outcome:
            raise ConnectionFailed("the exec connection broke before the command's outcome was reported")
        return outcome(bytes(self._outcome))


def stdin_messages(data: bytes) -> Iterator[bytes]:
    """Return the messages that carry standard input."""
    for start in range(0, len(data), _PIECE_BYTES):
        yield bytes((_STDIN,)) + data[start : start + _PIECE_BYTES]


def stdin_end() -> bytes:
    """Return the message that ends standard input, in version 5."""
    return bytes((_CLOSE, _STDIN))


def outcome(text: bytes) -> int:
    """Read the exit code out of a `Status`; anything but an end of the command is an error."""
    try:
        status = json.loads(text)
    except ValueError as error:
        raise ProtocolError("the outcome of an exec is no JSON") from error
    if not isinstance(status, dict):
        raise ProtocolError("the outcome of an exec is no Status")
    if status.get("status") == "Success":
        return 0
    reason, message = str(status.get("reason", "")), str(status.get("message", ""))
    if status.get("status") != "Failure":
        raise ProtocolError("the outcome of an exec is neither Success nor Failure")
    if reason != "NonZeroExitCode":
        code = status.get("code")
        raise ApiError(code if isinstance(code, int) else 500, reason, message)
    details = status.get("details")
    causes = details.get("causes") if isinstance(details, dict) else None
    codes = [
        str(cause.get("message"))
        for cause in (causes if isinstance(causes, list) else [])
        if isinstance(cause, dict) and cause.get("reason") == "ExitCode"
    ]
    if len(codes) != 1 or not (codes[0].isascii() and codes[0].isdigit()) or not 0 < int(codes[0]) <= _EXIT_CODE_MAX:
        raise ProtocolError("the outcome of an exec names no exit code")
    return int(codes[0])
