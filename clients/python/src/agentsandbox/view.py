"""What both faces know of a sandbox without asking: the object as it was seen last."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from agentsandbox.api import Ref, Request, pod
from agentsandbox.errors import NotFinished, PolicyRejected, StepRefused
from agentsandbox.models import Json
from agentsandbox.status import Audit, Result, Status, Usage, status_of

RECORDER = "recorder"
START_SECONDS = 300.0
"""How long a sandbox may take to start, image pull included, before a step or its log is asked for."""
SILENCE_SECONDS = 300.0
"""After so much silence the connection of a followed log is replaced: it may be dead."""


def new_name(prefix: str) -> str:
    """Return a name that nobody else has: made here, so that creating it twice makes one sandbox."""
    return f"{prefix}-{secrets.token_hex(5)}"


def has_started(status: Status) -> bool:
    """Whether the command runs, the session takes steps, or the run has ended already."""
    return status.ready or status.finished


class SandboxView:
    """A sandbox as it was seen last. Nothing here asks the API server."""

    def __init__(self, sandbox: Json) -> None:
        metadata = sandbox["metadata"]
        self._ref = Ref(metadata["namespace"], metadata["name"], metadata["uid"])
        self._take(sandbox)

    def _take(self, sandbox: Json) -> None:
        self._object = sandbox
        self._status = status_of(sandbox)

    @property
    def name(self) -> str:
        """Name of the object."""
        return self._ref.name

    @property
    def namespace(self) -> str:
        """Namespace of the object."""
        return self._ref.namespace

    @property
    def uid(self) -> str:
        """UID of the object."""
        return self._ref.uid

    @property
    def object(self) -> Json:
        """The whole object, as the API server gave it."""
        return self._object

    @property
    def status(self) -> Status:
        """Where it stands."""
        return self._status

    @property
    def result(self) -> Result:
        """How the run ended; raises `NotFinished` before that."""
        if not self._status.finished or self._status.result is None:
            raise NotFinished(f"sandbox {self.name}: {self._status.describe()}")
        return self._status.result

    @property
    def usage(self) -> Usage | None:
        """What the run used, once it has ended."""
        return self._status.usage

    @property
    def audit(self) -> Audit | None:
        """The action log in figures, once the run has ended."""
        return self._status.audit

    def __repr__(self) -> str:
        """Name it, and say where it stands."""
        return f"<{type(self).__name__} {self.namespace}/{self.name}: {self._status.phase or 'new'}>"

    def _verdict(self) -> Result:
        """Return the result; a rejection is the caller's mistake and raises."""
        if self.result.reason == "PolicyRejected":
            raise PolicyRejected(self.result.message)
        return self.result

    def _check_takes_steps(self) -> str:
        """Return the name of the pod that takes steps; raise if none does any more."""
        if self._status.finished:
            if self.result.reason == "PolicyRejected":
                raise PolicyRejected(self.result.message)
            raise StepRefused("SessionEnded", f"sandbox {self.name} has ended: {self.result.reason}")
        return self._status.pod_name or ""

    def _exec_request(self, command: Sequence[str], *, stdin: bool) -> Request:
        # Held open without input, it tells the recorder that the caller is there.
        stdin = stdin or "--attended" in command[:3]
        flags = {"stdin": stdin, "stdout": True, "stderr": True, "tty": False}
        query = [("container", RECORDER), *((flag, str(value).lower()) for flag, value in flags.items())]
        query += [("command", word) for word in command]
        return Request(method="GET", path=pod(self.namespace, self._check_takes_steps(), "exec"), query=tuple(query))

    def _log_request(self, *, follow: bool) -> Request:
        query = (("container", RECORDER), ("follow", str(follow).lower()))
        path = pod(self.namespace, self._status.pod_name or "", "log")
        return Request(method="GET", path=path, query=query, read_seconds=SILENCE_SECONDS)
