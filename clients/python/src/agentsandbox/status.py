"""What is known of a sandbox: the parts of `AgentSandbox.status`, as in the API reference.

A figure that could not be measured is `None`, never 0.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from agentsandbox.errors import ProtocolError, RunFailed
from agentsandbox.models import Json

SUCCESSES = frozenset({"Completed", "IdleTimeout"})


@dataclass(frozen=True)
class Condition:
    """One condition: `status` is `True`, `False` or `Unknown`."""

    type: str
    status: str
    reason: str
    message: str


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    reason: str
    """Why, such as `Completed`, `NonZeroExit`, `DeadlineExceeded` or `PolicyRejected`."""
    exit_code: int | None
    """Of the command; 128 + signal if a signal ended it; `None` if it never started or never reported."""
    signal: int | None
    """The signal that ended it."""
    message: str
    """For people. Ends with the last lines of standard error if the run failed: not to be trusted."""
    output: str | None
    """What the command left in the file that `$SANDBOX_OUTPUT` names: not to be trusted."""
    evidence: str
    """Who says so: `Guest` (the sandbox's supervisor), `Kubelet` or `Operator`."""

    @property
    def succeeded(self) -> bool:
        """Whether this end counts as a success."""
        return self.reason in SUCCESSES

    def check(self) -> Result:
        """Return the result of a success; raise `RunFailed` otherwise."""
        if not self.succeeded:
            raise RunFailed(self)
        return self


@dataclass(frozen=True)
class Usage:
    """What a run used."""

    wall_seconds: float | None
    cpu_seconds: float | None
    memory_peak_bytes: int | None
    disk_written_bytes: int | None
    processes_peak: int | None
    bytes_sent: int | None
    bytes_received: int | None
    commands: int | None
    """Programs executed, where commands are captured."""
    files_changed: int | None
    """Files of the workspace that are new, changed or gone."""
    steps: int | None
    """Model requests and commands of a session together."""
    model_requests: int | None
    input_tokens: int | None
    output_tokens: int | None
    egress_allowed: int | None
    egress_denied: int | None
    source: Mapping[str, str] = field(default_factory=dict)
    """Where each measured figure comes from, by its field name in the object."""


@dataclass(frozen=True)
class Audit:
    """The action log in figures."""

    records: int
    """Records in the log."""
    head: str | None
    """SHA-256 of the last record, in hexadecimal digits: it covers all before it."""
    capture: Mapping[str, str]
    """By which means `commands`, `files` and `network` were captured: `SeccompNotify`, `Ptrace` or `None`."""
    suppressed: int
    """Actions without a record of their own, because the run's share of the log was used up."""
    unreadable: int
    """Actions of which the path or arguments could not be read."""
    lost: int
    """Records that could not be written, because the log was stalled when the run ended."""
    evidence: str
    """Who says so."""


@dataclass(frozen=True)
class Status:
    """Where a sandbox stands."""

    phase: str
    """One word for people: `Pending`, `Suspended`, `Queued`, `Starting`, `Running`, `Succeeded` or `Failed`."""
    reason: str
    """The reason that belongs to the phase, for people."""
    run_id: str
    pod_name: str | None
    node_name: str | None
    start_time: datetime | None
    completion_time: datetime | None
    isolation_level: str | None
    """Observed inside the pod and checked against the node: `MicroVM`, `UserspaceKernel` or `Container`."""
    result: Result | None
    usage: Usage | None
    audit: Audit | None
    conditions: Sequence[Condition]

    def condition(self, type_: str) -> Condition | None:
        """Return the condition of this type."""
        return next((condition for condition in self.conditions if condition.type == type_), None)

    def is_true(self, type_: str) -> bool:
        """Whether the condition of this type is true."""
        condition = self.condition(type_)
        return condition is not None and condition.status == "True"

    @property
    def finished(self) -> bool:
        """Whether the run has ended, either way."""
        return self.is_true("Finished") and self.result is not None

    @property
    def ready(self) -> bool:
        """Whether the command runs, or the session takes steps."""
        return self.is_true("Ready") and not self.is_true("Finished")

    def describe(self) -> str:
        """Say in one line where the sandbox stands."""
        unmet = (self.condition(type_) for type_ in ("Accepted", "NetworkIsolated", "Ready"))
        why = next((condition.message for condition in unmet if condition and condition.status != "True"), "")
        reason = f" ({self.reason})" if self.reason else ""
        return f"{self.phase or 'not seen by the operator yet'}{reason}{': ' if why else ''}{why}"


def status_of(sandbox: Json) -> Status:
    """Read the status of an object. That of another run than the one the object asks for has no result yet."""
    status = _object(sandbox.get("status"))
    current = _text(status, "runId") == _text(_object(sandbox.get("spec")), "runId")
    if not current:
        status = {"conditions": []}
    return Status(
        phase=_text(status, "phase"),
        reason=_text(status, "reason"),
        run_id=_text(status, "runId"),
        pod_name=_text(status, "podName") or None,
        node_name=_text(status, "nodeName") or None,
        start_time=_time(status, "startTime"),
        completion_time=_time(status, "completionTime"),
        isolation_level=_text(_object(status.get("isolation")), "level") or None,
        result=_result(status["result"]) if isinstance(status.get("result"), dict) else None,
        usage=_usage(status["usage"]) if isinstance(status.get("usage"), dict) else None,
        audit=_audit(status["audit"]) if isinstance(status.get("audit"), dict) else None,
        conditions=[
            Condition(*(_text(condition, key) for key in ("type", "status", "reason", "message")))
            for condition in status.get("conditions", [])
            if isinstance(condition, dict)
        ],
    )


def _result(json: Json) -> Result:
    output = json.get("output")
    return Result(
        reason=_text(json, "reason"),
        exit_code=_int(json, "exitCode"),
        signal=_int(json, "signal"),
        message=_text(json, "message"),
        output=output if isinstance(output, str) else None,
        evidence=_text(json, "evidence"),
    )


def _usage(json: Json) -> Usage:
    return Usage(
        wall_seconds=_float(json, "wallSeconds"),
        cpu_seconds=_float(json, "cpuSeconds"),
        memory_peak_bytes=_int(json, "memoryPeakBytes"),
        disk_written_bytes=_int(json, "diskWrittenBytes"),
        processes_peak=_int(json, "processesPeak"),
        bytes_sent=_int(json, "bytesSent"),
        bytes_received=_int(json, "bytesReceived"),
        commands=_int(json, "commands"),
        files_changed=_int(json, "filesChanged"),
        steps=_int(json, "steps"),
        model_requests=_int(json, "modelRequests"),
        input_tokens=_int(json, "inputTokens"),
        output_tokens=_int(json, "outputTokens"),
        egress_allowed=_int(json, "egressAllowed"),
        egress_denied=_int(json, "egressDenied"),
        source={key: str(value) for key, value in _object(json.get("source")).items()},
    )


def _audit(json: Json) -> Audit:
    return Audit(
        records=_int(json, "records") or 0,
        head=_text(json, "head") or None,
        capture={key: str(value) for key, value in _object(json.get("capture")).items()},
        suppressed=_int(json, "suppressed") or 0,
        unreadable=_int(json, "unreadable") or 0,
        lost=_int(json, "lost") or 0,
        evidence=_text(json, "evidence"),
    )


def _object(value: Any) -> Json:  # noqa: ANN401 - anything that JSON can hold
    return value if isinstance(value, dict) else {}


def _text(json: Json, key: str) -> str:
    value = json.get(key)
    return value if isinstance(value, str) else ""


def _int(json: Json, key: str) -> int | None:
    value = json.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _float(json: Json, key: str) -> float | None:
    value = json.get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _time(json: Json, key: str) -> datetime | None:
    try:
        return datetime.fromisoformat(_text(json, key))
    except ValueError:
        return None


@dataclass(frozen=True)
class Live:
    """A running sandbox as it stands now: its own account, not to be trusted beyond that."""

    memory_bytes: int | None
    """Memory in use now."""
    processes: int | None
    """Processes and threads now."""
    disk_bytes: int | None
    """Bytes in the workspace and `/tmp` now."""
    steps: int | None
    """Steps that were started, if it is a session."""
    steps_refused: int | None
    """Steps that were refused, if it is a session."""
    records: int
    """Records of the action log so far."""
    json: Json
    """All that it said."""


def live_of(text: bytes) -> Live:
    """Read what `sandbox-supervisor status` prints."""
    try:
        state = _object(json.loads(text))
    except ValueError as error:
        raise ProtocolError("the sandbox's account of itself is no JSON") from error
    steps = _object(state.get("steps"))
    return Live(
        memory_bytes=_int(state, "memoryBytes"),
        processes=_int(state, "processes"),
        disk_bytes=_int(state, "diskBytes"),
        steps=_int(steps, "taken"),
        steps_refused=_int(steps, "refused"),
        records=_int(_object(state.get("audit")), "records") or 0,
        json=state,
    )
