"""The action log: one JSON object a line, each with the hash of the line before, so that a cut or a change shows."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime

from agentsandbox.errors import LogAltered, ProtocolError
from agentsandbox.models import Json

LINE_MAX_BYTES = 64 << 10
"""Longest line that is taken. A record has at most 8 KiB."""

_ENVELOPE = ("seq", "time", "class", "activity", "prev")


@dataclass(frozen=True)
class LogRecord:
    """One action of a run. Its texts are the sandbox's own: escape them before a terminal shows them."""

    seq: int
    """Its place in the log, from 0."""
    time: datetime
    """When it was seen."""
    class_: int
    """OCSF class: 1001 file, 1007 process, 4001 network, 6002 life of the run, 6003 steps."""
    activity: str
    """What was done, such as `exec`, `open`, `connect`, `step` or `end`."""
    fields: Json
    """What belongs to the activity, as in the log's reference."""
    sha256: str
    """Hash of the record's line, which the next record repeats."""


class LogReader:
    """Reads a log line by line, and compares each record with the hash that the next one repeats.

    The container's log may have lost its beginning to rotation; from the first record that is there on, none may be
    missing.
    """

    def __init__(self) -> None:
        self.first: int | None = None
        """Number of the first record that was read."""
        self.records = 0
        """Records that were read."""
        self.head: str | None = None
        """Hash of the last record that was read."""
        self._next: int | None = None

    def feed(self, line: bytes) -> LogRecord | None:
        """Read a line; lines that are no records (messages of the recorder itself) give nothing."""
        try:
            parsed = json.loads(line)
        except ValueError:
            return None
        if not isinstance(parsed, dict) or not all(key in parsed for key in _ENVELOPE[:4]):
            return None
        record = _record(parsed, line)
        prev = parsed.get("prev")
        if self._next is None:
            if record.seq == 0 and prev is not None:
                raise LogAltered("the log's first record follows another")
            self.first = record.seq
        elif record.seq != self._next:
            raise LogAltered(f"record {self._next} is missing: {record.seq} comes in its place")
        elif prev != self.head:
            raise LogAltered(f"record {record.seq - 1} was changed: record {record.seq} has another hash of it")
        self._next, self.head = record.seq + 1, record.sha256
        self.records += 1
        return record

    def check(self, records: int, head: str | None) -> None:
        """Compare a log that was read to its end with what status says of it."""
        if self.first not in (0, None):
            raise LogAltered(f"the log begins at record {self.first}: those before it were rotated away or removed")
        if (self.records, self.head) != (records, head):
            raise LogAltered(f"the log has {self.records} records up to {self.head}, status {records} up to {head}")


class Lines:
    """Splits a stream into lines, each bounded."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Take some bytes; return the lines that are whole, without their ends."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        if max(map(len, (*whole, self._rest))) > self._max_bytes:
            raise ProtocolError(f"a line is longer than {self._max_bytes} bytes")
        return whole


def _record(parsed: Json, line: bytes) -> LogRecord:
    try:
        return LogRecord(
            seq=int(parsed["seq"]),
            time=datetime.fromisoformat(str(parsed["time"])),
            class_=int(parsed["class"]),
            activity=str(parsed["activity"]),
            fields={key: value for key, value in parsed.items() if key not in _ENVELOPE},
            sha256=hashlib.sha256(line).hexdigest(),
        )
    except (TypeError, ValueError) as error:
        raise LogAltered(f"a record is malformed: {error}") from error


class LogCursor:
    """What of a log was given to the caller, over several connections: each begins with the log's first record."""

    _RETRIES = 5

    def __init__(self, after: int | None) -> None:
        self._after = -1 if after is None else after
        self._reader = LogReader()
        self._failures = 0

    def feed(self, line: bytes) -> LogRecord | None:
        """Read a line; return its record if it was not given before."""
        record = self._reader.feed(line)
        if record is None or record.seq <= self._after:
            return None
        self._after, self._failures = record.seq, 0
        return record

    def may_retry(self) -> bool:
        """Take note that a connection broke; return whether another is worth it."""
        self._reader = LogReader()
        self._failures += 1
        return self._failures <= self._RETRIES
