"""Both faces against an API server of this test: what is sent, what is tried again, and steps over real connections."""

import hashlib
import json
import queue
import threading
from collections.abc import Callable
from typing import Any

import pytest
from websockets.sync.server import ServerConnection

from agentsandbox import (
    AgentSandboxError,
    ApiError,
    Client,
    ClientClosed,
    Config,
    ConnectionFailed,
    OutputTooLarge,
    ProtocolError,
    Sandbox,
    StepRefused,
    StepStream,
    StepTimeout,
)
from agentsandbox.api import Request
from agentsandbox.exec import V4
from agentsandbox.steps import Collector
from agentsandbox.stream import Loop
from agentsandbox.tar import pack, unpack
from faces import FACES, open_client, open_stream
from fake import SUCCESS, command, exec_server, failure, sandbox, server, session_server, status, stdin

REQUEST = Request(method="GET", path="/exec", query=(("command", "a b"), ("command", "&")))


@pytest.fixture(params=FACES)
def face(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_create_whose_answer_was_lost_meets_its_own_sandbox(face: str) -> None:
    found = sandbox(image="i", command=["c"])
    answers = ((0, b""), status(409, "AlreadyExists"), (200, found))
    with server(*answers) as api, open_client(face, "n", api.config) as client:
        assert client.create(image="i", command=["c"]).uid == "u1"
        assert [request[0] for request in api.requests] == ["POST", "POST", "GET"]
        assert api.requests[0][3]["metadata"]["name"] == api.requests[1][3]["metadata"]["name"]


def test_a_token_that_is_refused_is_replaced_once(face: str) -> None:
    answers = (status(401, "Unauthorized"), (200, sandbox()), status(401), status(401, "Unauthorized", "who are you"))
    with server(*answers) as api, open_client(face, "n", api.config) as client:
        client.get("s")
        assert [request[2]["Authorization"] for request in api.requests] == ["Bearer token-1", "Bearer token-2"]
        with pytest.raises(ApiError, match="who are you"):
            client.get("s")


def test_a_wait_watches_and_looks_again_when_the_watch_breaks(face: str) -> None:
    gone = json.dumps({"type": "ERROR", "object": {"code": 410}}).encode() + b"\n"
    bookmark = {"type": "BOOKMARK", "object": {"metadata": {}}}
    events = [bookmark, {"type": "MODIFIED", "object": sandbox(finished=True)}]
    watched = b"".join(json.dumps(event).encode() + b"\n" for event in events)
    answers = ((200, sandbox()), (200, sandbox(version="7")), (200, gone), (200, sandbox(version="8")), (200, watched))
    with server(*answers) as api, open_client(face, "n", api.config) as client:
        found = client.get("s")
        assert found.wait(60).exit_code == 0
        assert [f"resourceVersion={version}" in api.requests[at][1] for at, version in ((2, 7), (4, 8))] == [True] * 2


def test_both_faces_send_the_same() -> None:
    answers: list[tuple[int, Any]] = [
        (201, sandbox()),
        (200, sandbox()),
        (200, sandbox(finished=True)),
        (200, sandbox()),
        (200, {"items": [sandbox()], "metadata": {"continue": "more"}}),
        (200, {"items": [sandbox("u2")]}),
        (200, {}),
    ]
    sent = []
    for face in FACES:
        with server(*answers) as api, open_client(face, "n", api.config) as client:
            with client.create("s", image="i", command=["c"], files={"f": "x"}) as found:
                found.stop()
                assert found.wait(60).reason == "Completed"
                found.run_again("second")
                assert [each.uid for each in client.list("a=b")] == ["u1", "u2"]
            sent.append([(method, path, body) for method, path, _, body in api.requests])
    assert sent[0] == sent[1]
    assert [method for method, _, _ in sent[0]] == ["POST", "PATCH", "GET", "PATCH", "GET", "GET", "DELETE"]
    assert sent[0][3][2]["spec"] == {"runId": "second", "stop": False}
    assert "labelSelector=a%3Db&continue=more" in sent[0][5][1]
    assert sent[0][6][2]["preconditions"] == {"uid": "u1"}


def test_a_session_takes_steps_and_files_and_tells_how_it_stands(face: str) -> None:
    files: dict[str, bytes] = {}

    def run(connection: ServerConnection) -> None:
        match command(connection)[1:]:
            case ["step", "--stdin", "--env", "A=b", "--workdir", "/tmp", "--", "cat"]:
                connection.send(b"\x01" + stdin(connection))
                connection.send(b"\x02done")
            case ["step", "--timeout", "600", "--put", folder]:
                files[f"{folder}/a/b"] = unpack(stdin(connection)[512:], 100)
            case ["step", "--attended", "--timeout", "600", "--get", path]:
                connection.send(b"\x01" + pack("b", files[path], 0o644))
            case ["status"]:
                connection.send(b'\x01{"processes":3,"steps":{"taken":2,"refused":1},"audit":{"records":5}}')
            case other:
                raise AssertionError(other)
        connection.send(SUCCESS)

    with session_server(run, sandbox(ready=True)) as config, open_client(face, "n", config) as client:
        found = client.get("s")
        assert found.step(["cat"], stdin=b"in", env={"A": "b"}, cwd="/tmp").stdout == b"in"
        with found.stream_step(["cat"], stdin=True, env={"A": "b"}, cwd="/tmp") as step:
            step.write(b"one ")
            step.write(b"two")
            step.close_stdin()
            assert [(chunk.stream, chunk.data) for chunk in step] == [("stdout", b"one two"), ("stderr", b"done")]
            assert step.exit_code == 0
        found.write_file("a/b", b"content")
        assert files == {"/workspace/a/b": b"content"}
        assert found.read_file("/workspace/a/b") == b"content"
        live = found.live()
        assert (live.processes, live.steps, live.steps_refused, live.records) == (3, 2, 1, 5)


def test_a_file_that_takes_too_long_is_given_up(face: str) -> None:
    commands = []

    def run(connection: ServerConnection) -> None:
        commands.append(command(connection)[2:-1])
        connection.send(failure(124))

    with session_server(run, sandbox(ready=True)) as config, open_client(face, "n", config) as client:
        found = client.get("s")
        with pytest.raises(StepTimeout):
            found.write_file("f", b"x", timeout=1.5)
        with pytest.raises(StepTimeout):
            found.read_file("f", timeout=1.5)
        with pytest.raises(ProtocolError, match="exit code 124"):
            found.read_file("f", timeout=None)
        with pytest.raises(ValueError, match="timeout 0"):
            found.write_file("f", b"x", timeout=0)
    assert commands == [["--timeout", "2", "--put"], ["--attended", "--timeout", "2", "--get"], ["--attended", "--get"]]


GONE = b'\x03{"status":"Failure","reason":"InternalError","message":"container not found","code":500}'


@pytest.mark.parametrize("said", [b"\x01some output", GONE], ids=["broken", "gone"])
def test_a_step_that_ends_with_its_session_says_so(face: str, said: bytes) -> None:
    def end(connection: ServerConnection) -> None:
        connection.send(said)

    steps: list[Callable[[Sandbox], object]] = [
        lambda found: found.step(["c"]),
        lambda found: found.step(["c"], stdin=b"x"),
        lambda found: list(found.stream_step(["c"])),
        lambda found: found.stream_step(["c"]).exit_code,
        lambda found: found.write_file("f", b"x"),
        lambda found: found.read_file("f"),
    ]
    for step in steps:
        for ended in (True, False):
            states = (sandbox(ready=True), sandbox(ready=True, finished=ended))
            with session_server(end, *states) as config, open_client(face, "n", config) as client:
                found = client.get("s")
                if ended:
                    with pytest.raises(StepRefused, match="SessionEnded: sandbox s has ended: Completed"):
                        step(found)
                else:
                    with pytest.raises((ConnectionFailed, ApiError), match=r"broke before|container not found"):
                        step(found)


def test_an_admission_policy_of_ours_is_a_policy_rejection(face: str) -> None:
    message = (
        "x is forbidden: ValidatingAdmissionPolicy 'agentsandbox-exec' with binding 'b' denied request: steps only"
    )
    with server(status(422, "Invalid", message)) as api, open_client(face, "n", api.config) as client:
        with pytest.raises(Exception, match=r"^steps only$"):
            client.get("s")


def test_the_log_is_read_and_resumed(face: str) -> None:
    first = b'{"seq":0,"time":"2026-01-01T00:00:00Z","class":6002,"activity":"begin"}'
    prev = hashlib.sha256(first).hexdigest().encode()
    second = b'{"seq":1,"time":"2026-01-01T00:00:01Z","class":6002,"activity":"end","prev":"' + prev + b'"}'
    log = first + b"\n" + second + b"\n"
    done = sandbox(finished=True)
    done["status"]["audit"] = {"records": 2, "head": hashlib.sha256(second).hexdigest(), "capture": {}}
    answers = ((200, done), (200, log), (0, b""), (200, log), (200, log), (200, first + b"\n"))
    with server(*answers) as api, open_client(face, "n", api.config) as client:
        found = client.get("s")
        assert [record.activity for record in found.log()] == ["begin", "end"]
        assert [record.activity for record in found.log(follow=True, after=0)] == ["end"]
        assert found.verify_log() == 2
        with pytest.raises(Exception, match="1 records"):
            found.verify_log()


def test_more_of_both_streams_than_any_buffer_holds(face: str) -> None:
    big = bytes(range(256)) * 32_768

    def echo(connection: ServerConnection) -> None:
        assert connection.request is not None
        assert connection.request.path == "/exec?command=a+b&command=%26"
        for message in connection:
            assert isinstance(message, bytes)
            if message == b"\xff\x00":
                break
            connection.send(b"\x01" + message[1:])
        connection.send(SUCCESS)

    with exec_server(echo) as config, open_stream(face, config, REQUEST, 60) as step:
        step.feed(big)
        output = b"".join(chunk.data for chunk in step)
        assert hashlib.sha256(output).digest() == hashlib.sha256(big).digest()
        assert step.exit_code == 0


def test_a_connection_that_breaks_is_no_success(face: str) -> None:
    with (
        exec_server(lambda connection: connection.send(b"\x01x")) as config,
        open_stream(face, config, REQUEST, 60) as step,
    ):
        with pytest.raises(ConnectionFailed):
            _ = step.exit_code


def test_an_endless_step_is_given_up(face: str) -> None:
    def endless(connection: ServerConnection) -> None:
        for _ in connection:
            pass

    with exec_server(endless) as config, open_stream(face, config, REQUEST, 0.05) as step, pytest.raises(StepTimeout):
        _ = step.exit_code


def test_output_is_bounded(face: str) -> None:
    collector = Collector(3)
    with (
        exec_server(lambda connection: connection.send(b"\x02four")) as config,
        open_stream(face, config, REQUEST, 60) as step,
    ):
        chunk = next(iter(step))
        with pytest.raises(OutputTooLarge):
            collector.add(chunk)


def test_a_refusal_is_told_apart_from_exit_code_125(face: str) -> None:
    for said, refused in ((b"sandbox-supervisor: step refused: TooManySteps: 64 run", True), (b"docker: no", False)):

        def answer(connection: ServerConnection, said: bytes = said) -> None:
            connection.send(b"\x02before\n")
            connection.send(b"\x02" + said + b"\n")
            connection.send(failure(125))

        with exec_server(answer) as config, open_stream(face, config, REQUEST, 60) as step:
            if refused:
                with pytest.raises(StepRefused, match="TooManySteps: 64 run"):
                    _ = step.exit_code
            else:
                assert step.exit_code == 125


def test_version_4_runs_steps_without_input_only(face: str) -> None:
    with exec_server(lambda connection: connection.send(SUCCESS), V4) as config:
        with open_stream(face, config, REQUEST, 60) as step:
            assert step.exit_code == 0
        with open_stream(face, config, REQUEST, 60) as step, pytest.raises(ProtocolError):
            step.feed(b"x")


def test_a_closed_client_says_so() -> None:
    loop = Loop()
    loop.close()
    with pytest.raises(ClientClosed):
        StepStream.open(loop, Config(server="http://127.0.0.1:1"), REQUEST, None)


def test_a_client_that_is_closed_ends_the_steps_of_other_threads() -> None:
    begun, left = threading.Semaphore(0), threading.Semaphore(0)
    ends: queue.Queue[Exception] = queue.Queue()

    def endless(connection: ServerConnection) -> None:
        begun.release()
        for _ in connection:
            pass
        left.release()

    def wait(found: Sandbox, given: bytes | None) -> None:
        try:
            found.step(["cat"], stdin=given)
        except AgentSandboxError as error:
            ends.put(error)

    with session_server(endless, sandbox(ready=True)) as config:
        client = Client("n", config=config)
        found = client.get("s")
        for given in (None, b"x" * (64 << 20)):
            threading.Thread(target=wait, args=(found, given), daemon=True).start()
        stream = found.stream_step(["cat"])
        for _ in range(3):
            assert begun.acquire(timeout=10)
        client.close()
        for _ in range(2):
            assert isinstance(ends.get(timeout=10), ClientClosed)
        for _ in range(3):
            assert left.acquire(timeout=10)
        with pytest.raises(ClientClosed):
            _ = stream.exit_code
        stream.close()
        client.close()
