"""Exec channels and the outcome of an exec."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsandbox.errors import ApiError, ConnectionFailed, ProtocolError
from agentsandbox.exec import V4, V5, Channels, Chunk, outcome, stdin_end, stdin_messages


def failure(*causes: tuple[str, str]) -> bytes:
    found = [{"reason": reason, "message": message} for reason, message in causes]
    status = {"status": "Failure", "reason": "NonZeroExitCode", "details": {"causes": found}}
    return json.dumps(status).encode()


def test_output_is_told_apart_and_the_outcome_may_come_in_pieces() -> None:
    channels = Channels(V5)
    assert channels.feed(b"\x01") is None
    assert channels.feed(b"\x01out\x00") == Chunk("stdout", b"out\x00")
    assert channels.feed(b"\x02err") == Chunk("stderr", b"err")
    text = failure(("ExitCode", "7"))
    assert channels.feed(b"\x03" + text[:9]) is None
    assert channels.feed(b"\x03" + text[9:]) is None
    assert channels.feed(b"\xff\x01") is None
    assert channels.exit_code() == 7


@pytest.mark.parametrize("message", [b"", "text", b"\x00x", b"\x04x", b"\x05x", b"\xff", b"\xff\x09", b"\xff\x01\x02"])
def test_what_the_protocol_does_not_allow_is_refused(message: bytes | str) -> None:
    with pytest.raises(ProtocolError):
        Channels(V5).feed(message)


def test_nothing_comes_after_a_channel_was_closed() -> None:
    channels = Channels(V5)
    channels.feed(b"\xff\x01")
    with pytest.raises(ProtocolError):
        channels.feed(b"\x01late")


def test_version_4_has_no_close_and_other_versions_are_refused() -> None:
    assert not Channels(V4).can_close_stdin
    with pytest.raises(ProtocolError):
        Channels(V4).feed(b"\xff\x00")
    for other in (None, "", "channel.k8s.io", "v3.channel.k8s.io"):
        with pytest.raises(ProtocolError):
            Channels(other)


def test_a_connection_without_an_outcome_is_no_success() -> None:
    channels = Channels(V5)
    channels.feed(b"\x01all seems well")
    with pytest.raises(ConnectionFailed):
        channels.exit_code()


def test_an_endless_outcome_is_refused() -> None:
    channels = Channels(V5)
    channels.feed(b"\x03" + b" " * (64 << 10))
    with pytest.raises(ProtocolError):
        channels.feed(b"\x03 ")


def test_success_and_exit_codes() -> None:
    assert outcome(b'{"metadata":{},"status":"Success"}') == 0
    assert outcome(failure(("Other", "x"), ("ExitCode", "255"))) == 255


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"status":"Unknown"}',
        b'{"status":"Failure","reason":"NonZeroExitCode"}',
        failure(),
        failure(("ExitCode", "0")),
        failure(("ExitCode", "256")),
        failure(("ExitCode", "-1")),
        failure(("ExitCode", "\u0661")),
        failure(("ExitCode", "1"), ("ExitCode", "2")),
    ],
)
def test_an_unclear_outcome_is_no_exit_code(text: bytes) -> None:
    with pytest.raises(ProtocolError):
        outcome(text)


def test_a_failure_that_is_no_exit_code_is_an_error_of_the_server() -> None:
    with pytest.raises(ApiError, match="container not found"):
        outcome(b'{"status":"Failure","reason":"InternalError","message":"container not found","code":500}')


@given(st.lists(st.binary(max_size=300)))
def test_no_messages_confuse_the_channels(messages: list[bytes]) -> None:
    channels = Channels(V5)
    try:
        for message in messages:
            channels.feed(message)
        channels.exit_code()
    except (ProtocolError, ConnectionFailed, ApiError):
        pass


@given(st.binary(max_size=100_000))
def test_standard_input_is_cut_and_ended(data: bytes) -> None:
    messages = list(stdin_messages(data))
    assert b"".join(message[1:] for message in messages) == data
    assert all(message[0] == 0 and len(message) <= (32 << 10) + 1 for message in messages)
    assert stdin_end() == b"\xff\x00"
