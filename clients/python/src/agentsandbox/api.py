"""Requests to the API server and what their answers mean, without I/O.

An operation is a generator: it yields what is to be done (`Request`, `Watch`, `Sleep`) and is sent what came of it. The
threaded and the asyncio face differ in how they do it and in nothing else.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeAlias, TypeVar
from urllib.parse import quote, urlencode

from agentsandbox.errors import (
    AlreadyExists,
    ApiError,
    Conflict,
    ConnectionFailed,
    Forbidden,
    Invalid,
    NotFound,
    PolicyRejected,
    ProtocolError,
    Unauthorized,
    WaitTimeout,
)
from agentsandbox.models import GROUP, PLURAL, VERSION, Json, same_run
from agentsandbox.status import Status, status_of

ANSWER_MAX_BYTES = 64 << 20
"""Longest answer that is held: a page of sandboxes, each at most 1.5 MiB in etcd and far less in practice."""
EVENT_MAX_BYTES = 4 << 20
"""Longest event of a watch: one sandbox."""
READ_SECONDS = 30.0
"""How long an answer may take."""
PAGE = 100

_ATTEMPTS = 5
_BACKOFF_SECONDS = 0.2
_BACKOFF_MAX_SECONDS = 10.0
_WATCH_SECONDS = 30
_ADMISSION = re.compile(r"ValidatingAdmissionPolicy '[^']*agentsandbox[^']*'.*? denied request: (.*)", re.DOTALL)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request."""

    method: str
    path: str
    query: tuple[tuple[str, str], ...] = ()
    body: Json | None = None
    content_type: str = "application/json"
    read_seconds: float = READ_SECONDS

    @property
    def target(self) -> str:
        """Path and query."""
        return f"{self.path}?{urlencode(self.query)}" if self.query else self.path

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the body."""
        return {"Content-Type": self.content_type} if self.body is not None else {}


@dataclass(frozen=True, kw_only=True)
class Watch:
    """A request whose answer is a stream of lines; each goes to `feed`, until it returns true or the stream ends."""

    request: Request
    feed: Callable[[bytes], bool]


@dataclass(frozen=True)
class Sleep:
    """A pause."""

    seconds: float


@dataclass(frozen=True)
class Answer:
    """What the API server answered; of a successful watch no body."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


Effect: TypeAlias = Request | Watch | Sleep
Operation: TypeAlias = Generator[Effect, Answer | None, T]


def collection(namespace: str) -> str:
    """Return the path of the sandboxes of a namespace."""
    return f"/apis/{GROUP}/{VERSION}/namespaces/{quote(namespace, safe='')}/{PLURAL}"


def pod(namespace: str, name: str, part: str) -> str:
    """Return the path of a part of a pod, such as `log`."""
    return f"/api/v1/namespaces/{quote(namespace, safe='')}/pods/{quote(name, safe='')}/{part}"


@dataclass(frozen=True)
class Ref:
    """A sandbox: its name, and the UID once it is known, so that another of the same name is never taken for it."""

    namespace: str
    name: str
    uid: str = ""

    @property
    def path(self) -> str:
        """Path of the object."""
        return f"{collection(self.namespace)}/{quote(self.name, safe='')}"

    def check(self, found: Json) -> Json:
        """Return the object, if it is this one."""
        if self.uid and found["metadata"].get("uid") != self.uid:
            raise self.replaced()
        return found

    def replaced(self) -> NotFound:
        """Return the error of a sandbox whose name another one has."""
        return NotFound(404, "NotFound", f"sandbox {self.name} was deleted; another of its name is there")


def create(namespace: str, sandbox: Json, *, adopt: bool) -> Operation[Json]:
    """Create a sandbox, or take the one of the same name that asks for the same run."""
    name = sandbox["metadata"]["name"]
    try:
        return (yield from call(Request(method="POST", path=collection(namespace), body=sandbox), retry=adopt))
    except AlreadyExists:
        if not adopt:
            raise
    found = yield from get(Ref(namespace, name))
    if found["metadata"].get("deletionTimestamp"):
        raise AlreadyExists(409, "AlreadyExists", f"sandbox {name} is being deleted; wait, or take another name")
    if fields := same_run(sandbox["spec"], found["spec"]):
        raise AlreadyExists(
            409, "AlreadyExists", f"sandbox {name} exists and asks for another run; different: {', '.join(fields)}"
        )
    return found


def get(ref: Ref) -> Operation[Json]:
    """Read a sandbox."""
    return ref.check((yield from call(Request(method="GET", path=ref.path), retry=True)))


def list_all(namespace: str, label_selector: str | None) -> Operation[list[Json]]:
    """Read the sandboxes of a namespace, page by page."""
    items: list[Json] = []
    token = ""
    while True:
        query = [("limit", str(PAGE))]
        query += [("labelSelector", label_selector)] if label_selector else []
        query += [("continue", token)] if token else []
        page = yield from call(Request(method="GET", path=collection(namespace), query=tuple(query)), retry=True)
        items += page["items"]
        token = page.get("metadata", {}).get("continue", "")
        if not token:
            return items


def change(ref: Ref, spec: Json) -> Operation[Json]:
    """Merge into the spec of a sandbox."""
    body: Json = {"spec": spec}
    if ref.uid:
        body["metadata"] = {"uid": ref.uid}
    request = Request(method="PATCH", path=ref.path, body=body, content_type="application/merge-patch+json")
    try:
        return (yield from call(request, retry=True))
    except Invalid as error:
        # The API server refuses to change a UID: the object of this name is another one.
        if ref.uid and "metadata.uid" in error.message:
            raise ref.replaced() from error
        raise


def delete(ref: Ref) -> Operation[None]:
    """Delete a sandbox; one that is gone is deleted."""
    options: Json = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
    if ref.uid:
        options["preconditions"] = {"uid": ref.uid}
    try:
        yield from call(Request(method="DELETE", path=ref.path, body=options), retry=True)
    except (NotFound, Conflict):
        # A conflict is another object of the same name: ours is gone.
        return


def wait(ref: Ref, what: str, holds: Callable[[Status], bool], timeout: float | None) -> Operation[Json]:
    """Wait until the status of a sandbox is as it should be; return the object."""
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        found = yield from get(ref)
        if holds(status_of(found)):
            return found
        left = _WATCH_SECONDS if deadline is None else deadline - time.monotonic()
        if left <= 0:
            raise WaitTimeout(f"sandbox {ref.name}: not {what} within {timeout} s: {status_of(found).describe()}")
        seen = _Seen(ref, found, holds)
        try:
            yield from call_watch(Watch(request=_watch(ref, found, min(left, _WATCH_SECONDS)), feed=seen.feed))
        except ConnectionFailed:
            # What was missed is read by the next look, which tries as often as any other request.
            yield Sleep(_BACKOFF_SECONDS)
        if holds(status_of(seen.sandbox)):
            return seen.sandbox


def wait_gone(ref: Ref, timeout: float | None) -> Operation[None]:
    """Wait until a sandbox is gone."""
    try:
        yield from wait(ref, "gone", lambda _: False, timeout)
    except NotFound:
        return


class _Seen:
    """The last state of a sandbox that a watch showed."""

    def __init__(self, ref: Ref, sandbox: Json, holds: Callable[[Status], bool]) -> None:
        self.sandbox = sandbox
        self._ref = ref
        self._holds = holds

    def feed(self, line: bytes) -> bool:
        event = _json(line)
        kind, seen = event.get("type"), event.get("object")
        if kind == "BOOKMARK":
            return False
        if kind == "ERROR" or not isinstance(seen, dict):
            # Such as 410: what the watch started from is compacted away. The next look starts anew.
            return True
        if kind == "DELETED":
            raise NotFound(404, "NotFound", f"sandbox {self._ref.name} was deleted")
        self.sandbox = self._ref.check(seen)
        return self._holds(status_of(self.sandbox))


def _watch(ref: Ref, found: Json, seconds: float) -> Request:
    whole = max(1, round(seconds))
    query = (
        ("watch", "true"),
        ("fieldSelector", f"metadata.name={ref.name}"),
        ("resourceVersion", str(found["metadata"].get("resourceVersion", ""))),
        ("allowWatchBookmarks", "true"),
        ("timeoutSeconds", str(whole)),
    )
    return Request(method="GET", path=collection(ref.namespace), query=query, read_seconds=whole + READ_SECONDS)


def call(request: Request, *, retry: bool) -> Operation[Json]:
    """Make a request; return the object in its answer. `retry` says that making it twice does no harm."""
    answer = yield from _tried(request, retry=retry)
    return _json(answer.body)


def call_watch(watch: Watch) -> Operation[None]:
    """Follow a stream of lines."""
    yield from _tried(watch, retry=False)


def _tried(effect: Request | Watch, *, retry: bool) -> Operation[Answer]:
    for attempt in range(_ATTEMPTS if retry else 1):
        last = not retry or attempt == _ATTEMPTS - 1
        pause = min(_BACKOFF_SECONDS * 2**attempt, _BACKOFF_MAX_SECONDS)
        try:
            answer = yield effect
        except ConnectionFailed:
            if last:
                raise
            yield Sleep(pause)
            continue
        if answer is None:
            raise TypeError("a request was sent no answer")
        if answer.status < 400:  # noqa: PLR2004 - HTTP's border of errors
            return answer
        if last or not _may_pass(answer):
            raise_for(answer.status, answer.body)
        yield Sleep(max(pause, _retry_after(answer)))
    raise AssertionError("the last attempt returns or raises")


def _may_pass(answer: Answer) -> bool:
    return answer.status in (429, 500, 502, 503, 504)


def _retry_after(answer: Answer) -> float:
    text = answer.headers.get("retry-after", "")
    return min(float(text), _BACKOFF_MAX_SECONDS) if text.isascii() and text.isdigit() else 0.0


def raise_for(status: int, body: bytes) -> NoReturn:
    """Raise what an answer that is no success means."""
    try:
        answer = _json(body)
    except ProtocolError:
        answer = {"message": body[:512].decode(errors="replace")}
    reason, message = str(answer.get("reason", "")), str(answer.get("message", ""))
    if status in (403, 422) and (denied := _ADMISSION.search(message)):
        raise PolicyRejected(denied.group(1))
    by_status: dict[int, type[ApiError]] = {
        401: Unauthorized,
        403: Forbidden,
        404: NotFound,
        409: Conflict,
        422: Invalid,
    }
    kind = AlreadyExists if reason == "AlreadyExists" else by_status.get(status, ApiError)
    raise kind(status, reason, message)


def _json(text: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(text)
    except ValueError as error:
        raise ProtocolError(f"the API server's answer is no JSON: {text[:80]!r}") from error
    if not isinstance(parsed, dict):
        raise ProtocolError("the API server's answer is no object")
    return parsed
