"""Both faces against an API server of this test: what is sent, what is tried again, and steps over real connections."""

import asyncio
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from websockets.sync.server import ServerConnection, serve
from websockets.typing import Subprotocol

from agentsandbox import (
    ApiError,
    AsyncClient,
    Client,
    ClientClosed,
    Config,
    ConnectionFailed,
    OutputTooLarge,
    ProtocolError,
    StepRefused,
    StepStream,
    StepTimeout,
)
from agentsandbox.api import Request
from agentsandbox.credentials import Credentials
from agentsandbox.exec import V4, V5
from agentsandbox.steps import Collector
from agentsandbox.stream import Loop

SUCCESS = b'\x03{"status":"Success"}'
REQUEST = Request(method="GET", path="/exec", query=(("command", "a b"), ("command", "&")))


def sandbox(uid: str = "u1", version: str = "1", *, finished: bool = False, **spec: Any) -> dict[str, Any]:
    conditions = [{"type": "Finished", "status": "True", "reason": "Finished", "message": ""}] if finished else []
    status = {"podName": "p", "runId": "", "conditions": conditions, "result": {"reason": "Completed", "exitCode": 0}}
    metadata = {"name": "s", "namespace": "n", "uid": uid, "resourceVersion": version}
    return {"metadata": metadata, "spec": {"runId": ""} | spec, "status": status if finished else {}}


class Server(ThreadingHTTPServer):
    """Gives the answers it was told to give, in order, and remembers the requests."""

    def __init__(self, *answers: tuple[int, Any]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = list(answers)
        self.requests: list[tuple[str, str, dict[str, str], Any]] = []

    @property
    def config(self) -> Config:
        return Config(server=f"http://127.0.0.1:{self.server_address[1]}", credentials=Rotating())


class Handler(BaseHTTPRequestHandler):
    server: Server

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append((self.command, self.path, dict(self.headers), json.loads(body) if body else None))
        status, answer = self.server.answers.pop(0)
        if status == 0:
            # The connection breaks before an answer.
            self.close_connection = True
            return
        text = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PATCH = do_DELETE = answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Stay silent."""


class Rotating(Credentials):
    """A token that is another after each refusal."""

    number = 1

    def token(self) -> str:
        return f"token-{self.number}"

    def refused(self) -> bool:
        self.number += 1
        return True


@contextmanager
def server(*answers: tuple[int, Any]) -> Iterator[Server]:
    with Server(*answers) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield running
        finally:
            running.shutdown()
            thread.join()


@contextmanager
def exec_server(handle: Callable[[ServerConnection], None], protocol: str = V5) -> Iterator[Config]:
    with serve(handle, "127.0.0.1", 0, subprotocols=[Subprotocol(protocol)], compression=None) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            yield Config(server=f"http://127.0.0.1:{running.socket.getsockname()[1]}")
        finally:
            running.shutdown()
            thread.join()


@contextmanager
def stream(config: Config, seconds: float | None = 60) -> Iterator[StepStream]:
    loop = Loop()
    try:
        with StepStream.open(loop, config, REQUEST, seconds) as opened:
            yield opened
    finally:
        loop.close()


def status(code: int, reason: str = "", message: str = "") -> tuple[int, dict[str, Any]]:
    return code, {"kind": "Status", "status": "Failure", "reason": reason, "message": message, "code": code}


def test_a_create_whose_answer_was_lost_meets_its_own_sandbox() -> None:
    found = sandbox(image="i", command=["c"])
    answers = ((0, b""), status(409, "AlreadyExists"), (200, found))
    with server(*answers) as api, Client("n", config=api.config) as client:
        assert client.create(image="i", command=["c"]).uid == "u1"
        assert [request[0] for request in api.requests] == ["POST", "POST", "GET"]
        assert api.requests[0][3]["metadata"]["name"] == api.requests[1][3]["metadata"]["name"]


def test_a_token_that_is_refused_is_replaced_once() -> None:
    answers = (status(401, "Unauthorized"), (200, sandbox()), status(401), status(401, "Unauthorized", "who are you"))
    with server(*answers) as api, Client("n", config=api.config) as client:
        client.get("s")
        assert [request[2]["Authorization"] for request in api.requests] == ["Bearer token-1", "Bearer token-2"]
        with pytest.raises(ApiError, match="who are you"):
            client.get("s")


def test_a_wait_watches_and_looks_again_when_the_watch_breaks() -> None:
    gone = json.dumps({"type": "ERROR", "object": {"code": 410}}).encode() + b"\n"
    bookmark = {"type": "BOOKMARK", "object": {"metadata": {}}}
    events = [bookmark, {"type": "MODIFIED", "object": sandbox(finished=True)}]
    watched = b"".join(json.dumps(event).encode() + b"\n" for event in events)
    answers = ((200, sandbox()), (200, sandbox(version="7")), (200, gone), (200, sandbox(version="8")), (200, watched))
    with server(*answers) as api, Client("n", config=api.config) as client:
        found = client.get("s")
        assert found.wait(60).exit_code == 0
        assert [f"resourceVersion={version}" in api.requests[at][1] for at, version in ((2, 7), (4, 8))] == [True] * 2


def test_both_faces_send_the_same() -> None:
    answers: list[tuple[int, Any]] = [(201, sandbox()), (200, sandbox()), (200, sandbox(finished=True)), (200, {})]

    async def asynchronous(config: Config) -> None:
        async with AsyncClient("n", config=config) as client:
            async with await client.create("s", image="i", command=["c"], files={"f": "x"}) as found:
                await found.stop()
                await found.wait(60)

    with server(*answers) as one, Client("n", config=one.config) as client:
        with client.create("s", image="i", command=["c"], files={"f": "x"}) as found:
            found.stop()
            found.wait(60)
    with server(*answers) as two:
        asyncio.run(asynchronous(two.config))
    assert [(method, path, body) for method, path, _, body in one.requests] == [
        (method, path, body) for method, path, _, body in two.requests
    ]
    assert one.requests[3][3]["preconditions"] == {"uid": "u1"}


def test_an_admission_policy_of_ours_is_a_policy_rejection() -> None:
    message = (
        "x is forbidden: ValidatingAdmissionPolicy 'agentsandbox-exec' with binding 'b' denied request: steps only"
    )
    with server(status(422, "Invalid", message)) as api, Client("n", config=api.config) as client:
        with pytest.raises(Exception, match=r"^steps only$"):
            client.get("s")


def test_the_log_is_read_and_resumed() -> None:
    first = b'{"seq":0,"time":"2026-01-01T00:00:00Z","class":6002,"activity":"begin"}'
    prev = hashlib.sha256(first).hexdigest().encode()
    second = b'{"seq":1,"time":"2026-01-01T00:00:01Z","class":6002,"activity":"end","prev":"' + prev + b'"}'
    log = first + b"\n" + second + b"\n"
    done = sandbox(finished=True)
    done["status"]["audit"] = {"records": 2, "head": hashlib.sha256(second).hexdigest(), "capture": {}}
    answers = ((200, done), (200, log), (0, b""), (200, log), (200, log), (200, first + b"\n"))
    with server(*answers) as api, Client("n", config=api.config) as client:
        found = client.get("s")
        assert [record.activity for record in found.log()] == ["begin", "end"]
        assert [record.activity for record in found.log(follow=True, after=0)] == ["end"]
        assert found.verify_log() == 2
        with pytest.raises(Exception, match="1 records"):
            found.verify_log()


def test_more_of_both_streams_than_any_buffer_holds() -> None:
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

    with exec_server(echo) as config, stream(config) as step:
        step.feed(big)
        output = b"".join(chunk.data for chunk in step)
        assert hashlib.sha256(output).digest() == hashlib.sha256(big).digest()
        assert step.exit_code == 0


def test_a_connection_that_breaks_is_no_success() -> None:
    with exec_server(lambda connection: connection.send(b"\x01x")) as config, stream(config) as step:
        with pytest.raises(ConnectionFailed):
            _ = step.exit_code


def test_an_endless_step_is_given_up() -> None:
    def endless(connection: ServerConnection) -> None:
        for _ in connection:
            pass

    with exec_server(endless) as config, stream(config, 0.05) as step, pytest.raises(StepTimeout):
        _ = step.exit_code


def test_output_is_bounded() -> None:
    collector = Collector(3)
    with exec_server(lambda connection: connection.send(b"\x02four")) as config, stream(config) as step:
        chunk = next(iter(step))
        with pytest.raises(OutputTooLarge):
            collector.add(chunk)


def test_a_refusal_is_told_apart_from_exit_code_125() -> None:
    failure = {"status": "Failure", "reason": "NonZeroExitCode"}
    code = failure | {"details": {"causes": [{"reason": "ExitCode", "message": "125"}]}}
    for said, refused in ((b"sandbox-supervisor: step refused: TooManySteps: 64 run", True), (b"docker: no", False)):

        def answer(connection: ServerConnection, said: bytes = said) -> None:
            connection.send(b"\x02before\n")
            connection.send(b"\x02" + said + b"\n")
            connection.send(b"\x03" + json.dumps(code).encode())

        with exec_server(answer) as config, stream(config) as step:
            if refused:
                with pytest.raises(StepRefused, match="TooManySteps: 64 run"):
                    _ = step.exit_code
            else:
                assert step.exit_code == 125


def test_version_4_runs_steps_without_input_only() -> None:
    with exec_server(lambda connection: connection.send(SUCCESS), V4) as config:
        with stream(config) as step:
            assert step.exit_code == 0
        with stream(config) as step, pytest.raises(ProtocolError):
            step.feed(b"x")


def test_a_closed_client_says_so() -> None:
    loop = Loop()
    loop.close()
    with pytest.raises(ClientClosed):
        StepStream.open(loop, Config(server="http://127.0.0.1:1"), REQUEST, None)
