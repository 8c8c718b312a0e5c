"""An API server of the test."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeAlias
from urllib.parse import parse_qs, urlsplit

from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve
from websockets.typing import Subprotocol

from agentsandbox import Config
from agentsandbox.credentials import Credentials
from agentsandbox.exec import V5

SUCCESS = b'\x03{"status":"Success"}'


def failure(code: int) -> bytes:
    """Return the outcome of a command that ended with this exit code."""
    causes = [{"reason": "ExitCode", "message": str(code)}]
    status = {"status": "Failure", "reason": "NonZeroExitCode", "details": {"causes": causes}}
    return b"\x03" + json.dumps(status).encode()


def sandbox(
    uid: str = "u1", version: str = "1", *, ready: bool = False, finished: bool = False, **spec: Any
) -> dict[str, Any]:
    status: dict[str, Any] = {}
    if ready or finished:
        kind = "Finished" if finished else "Ready"
        conditions = [{"type": kind, "status": "True", "reason": kind, "message": ""}]
        status = {"podName": "p", "runId": "", "conditions": conditions}
    if finished:
        status["result"] = {"reason": "Completed", "exitCode": 0}
    metadata = {"name": "s", "namespace": "n", "uid": uid, "resourceVersion": version}
    return {"metadata": metadata, "spec": {"runId": ""} | spec, "status": status}


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


Look: TypeAlias = Callable[[ServerConnection, Request], Response | None]


@contextmanager
def exec_server(
    handle: Callable[[ServerConnection], None], protocol: str = V5, look: Look | None = None
) -> Iterator[Config]:
    protocols = [Subprotocol(protocol)]
    with serve(handle, "127.0.0.1", 0, subprotocols=protocols, process_request=look, compression=None) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            yield Config(server=f"http://127.0.0.1:{running.socket.getsockname()[1]}")
        finally:
            running.shutdown()
            thread.join()


@contextmanager
def session_server(handle: Callable[[ServerConnection], None], *states: dict[str, Any]) -> Iterator[Config]:
    """Take steps; each look at the sandbox shows the next of its states, or the last again."""
    left = list(states)

    def look(connection: ServerConnection, request: Request) -> Response | None:
        if "/exec?" in request.path:
            return None
        return connection.respond(200, json.dumps(left.pop(0) if len(left) > 1 else left[0]))

    with exec_server(handle, look=look) as config:
        yield config


def command(connection: ServerConnection) -> list[str]:
    """Return what is to be executed."""
    assert connection.request is not None
    return parse_qs(urlsplit(connection.request.path).query)["command"]


def stdin(connection: ServerConnection) -> bytes:
    """Take all of standard input."""
    taken = b""
    for message in connection:
        assert isinstance(message, bytes)
        if message == b"\xff\x00":
            break
        taken += message[1:]
    return taken


def status(code: int, reason: str = "", message: str = "") -> tuple[int, dict[str, Any]]:
    return code, {"kind": "Status", "status": "Failure", "reason": reason, "message": message, "code": code}
