"""What can go wrong. Every exception of this package is an `AgentSandboxError`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentsandbox.status import Result
    from agentsandbox.steps import StepResult


class AgentSandboxError(Exception):
    """Anything that this package raises."""


class ConfigError(AgentSandboxError):
    """The kubeconfig, or the account of the pod, can't be used."""


class ConnectionFailed(AgentSandboxError):
    """The API server could not be reached, or the connection to it broke."""


class ClientClosed(AgentSandboxError):
    """The client was closed, before the call or during it."""


class ProtocolError(AgentSandboxError):
    """An answer is not what the protocol allows."""


class ApiError(AgentSandboxError):
    """The API server said no.

    `status` is the HTTP status, `reason` the machine-readable reason of Kubernetes, such as `Forbidden`.
    """

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message or reason or f"HTTP status {status}")
        self.status = status
        self.reason = reason
        self.message = message


class Unauthorized(ApiError):
    """The API server does not know who asks."""


class Forbidden(ApiError):
    """The account may not do this."""


class NotFound(ApiError):
    """The object is not there."""


class AlreadyExists(ApiError):
    """An object of this name is there, and it is another one."""


class Conflict(ApiError):
    """The object was changed or replaced in the meantime."""


class Invalid(ApiError):
    """The API server refuses the object's content; the message names the fields."""


class PolicyRejected(AgentSandboxError):
    """The sandbox asks for what its policy does not allow; the message names each field, its value and the ceiling."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class NotFinished(AgentSandboxError):
    """The sandbox has no result yet."""


class RunFailed(AgentSandboxError):
    """The run ended without success. Its text, the sandbox's own in part, is not to be trusted."""

    def __init__(self, result: Result) -> None:
        super().__init__(f"{result.reason}: {result.message}" if result.message else result.reason)
        self.result = result


class WaitTimeout(AgentSandboxError, TimeoutError):
    """What was waited for did not come in time; the message says where the sandbox stands."""


class StepRefused(AgentSandboxError):
    """A step was refused, or could not be had to its end.

    `reason` is one word, such as `StepBudgetExceeded` or `SessionEnded`; `result` what came before the refusal, if
    anything did. A command that ends with code 125 and prints the same line looks the same.
    """

    def __init__(self, reason: str, message: str, result: StepResult | None = None) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message
        self.result = result


class StepFailed(AgentSandboxError):
    """A step's command ended with another exit code than 0."""

    def __init__(self, result: StepResult) -> None:
        super().__init__(f"exit code {result.exit_code}")
        self.result = result


class StepTimeout(AgentSandboxError, TimeoutError):
    """A step's end was not reported in time, or a file took too long. The sandbox ends a step at its own time limit."""


class OutputTooLarge(AgentSandboxError):
    """A step wrote more than the caller wants to hold.

    Its connection is closed. That ends the step and all it started; of a step with standard input it ends only that.
    """


class UnexpectedTar(AgentSandboxError):
    """What the sandbox sent in place of a file is not one regular file within the bound."""


class LogAltered(AgentSandboxError):
    """A record of the action log is missing, was changed, or does not fit what status says."""
