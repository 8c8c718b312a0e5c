"""Client of the Agent Sandbox Operator: run an agent's commands in isolated, bounded Kubernetes sandboxes.

It does nothing that the custom resources and `pods/exec` do not offer.
"""

from agentsandbox.aio import AsyncClient, AsyncSandbox
from agentsandbox.async_transport import AsyncStepStream
from agentsandbox.client import Client, Sandbox
from agentsandbox.config import Config
from agentsandbox.errors import (
    AgentSandboxError,
    AlreadyExists,
    ApiError,
    ClientClosed,
    ConfigError,
    Conflict,
    ConnectionFailed,
    Forbidden,
    Invalid,
    LogAltered,
    NotFinished,
    NotFound,
    OutputTooLarge,
    PolicyRejected,
    ProtocolError,
    RunFailed,
    StepFailed,
    StepRefused,
    StepTimeout,
    Unauthorized,
    UnexpectedTar,
    WaitTimeout,
)
from agentsandbox.exec import Chunk
from agentsandbox.models import File, Limits, Resources, SandboxSpec, Session
from agentsandbox.records import LogRecord
from agentsandbox.status import Audit, Condition, Live, Result, Status, Usage
from agentsandbox.steps import StepResult
from agentsandbox.stream import StepStream

__all__ = [
    "AgentSandboxError",
    "AlreadyExists",
    "ApiError",
    "AsyncClient",
    "AsyncSandbox",
    "AsyncStepStream",
    "Audit",
    "Chunk",
    "Client",
    "ClientClosed",
    "Condition",
    "Config",
    "ConfigError",
    "Conflict",
    "ConnectionFailed",
    "File",
    "Forbidden",
    "Invalid",
    "Limits",
    "Live",
    "LogAltered",
    "LogRecord",
    "NotFinished",
    "NotFound",
    "OutputTooLarge",
    "PolicyRejected",
    "ProtocolError",
    "Resources",
    "Result",
    "RunFailed",
    "Sandbox",
    "SandboxSpec",
    "Session",
    "Status",
    "StepFailed",
    "StepRefused",
    "StepResult",
    "StepStream",
    "StepTimeout",
    "Unauthorized",
    "UnexpectedTar",
    "Usage",
    "WaitTimeout",
]
