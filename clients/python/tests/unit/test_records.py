"""The chain of the action log."""

import hashlib
import json

import pytest

from agentsandbox.errors import LogAltered, ProtocolError
from agentsandbox.records import Lines, LogCursor, LogReader


def log(count: int) -> list[bytes]:
    lines: list[bytes] = []
    for seq in range(count):
        record: dict[str, object] = {"seq": seq, "time": "2026-01-01T00:00:00.000Z", "class": 1007, "activity": "exec"}
        record |= {"pid": 7, "path": "/bin/true"}
        if lines:
            record["prev"] = hashlib.sha256(lines[-1]).hexdigest()
        lines.append(json.dumps(record).encode())
    return lines


def read(lines: list[bytes]) -> LogReader:
    reader = LogReader()
    for line in lines:
        reader.feed(line)
    return reader


def test_a_whole_log_agrees_with_status() -> None:
    lines = log(5)
    reader = read([b"recorder: starting", *lines, b"{}"])
    reader.check(5, hashlib.sha256(lines[-1]).hexdigest())
    record = LogReader().feed(lines[0])
    assert record is not None
    assert (record.seq, record.class_, record.activity, record.fields["pid"]) == (0, 1007, "exec", 7)


def test_a_missing_a_changed_and_a_cut_record_show() -> None:
    lines = log(5)
    head = hashlib.sha256(lines[-1]).hexdigest()
    with pytest.raises(LogAltered, match="record 2 is missing"):
        read(lines[:2] + lines[3:])
    with pytest.raises(LogAltered, match="record 1 was changed"):
        read([lines[0], lines[1].replace(b"true", b"fals"), *lines[2:]])
    with pytest.raises(LogAltered):
        read([*lines[:4], lines[3]])
    with pytest.raises(LogAltered, match="follows another"):
        read([lines[1].replace(b'"seq": 1', b'"seq": 0')])
    with pytest.raises(LogAltered):
        read(lines[:4]).check(5, head)
    with pytest.raises(LogAltered, match="begins at record 1"):
        read(lines[1:]).check(5, head)
    with pytest.raises(LogAltered, match="malformed"):
        read([b'{"seq": 0, "time": "yesterday", "class": 1, "activity": "x"}'])


def test_a_second_connection_gives_only_what_is_new() -> None:
    lines = log(4)
    cursor = LogCursor(after=0)
    assert [record.seq for line in lines[:2] if (record := cursor.feed(line))] == [1]
    assert cursor.may_retry()
    assert [record.seq for line in lines if (record := cursor.feed(line))] == [2, 3]
    assert [cursor.may_retry() for _ in range(6)] == [True] * 5 + [False]


def test_lines_are_bounded_and_split_at_line_feeds_alone() -> None:
    lines = Lines(8)
    assert lines.feed(b"a\rb\xe2\x80\xa8") == []
    assert lines.feed(b"c\nd") == [b"a\rb\xe2\x80\xa8c"]
    with pytest.raises(ProtocolError):
        lines.feed(b"x" * 9)
