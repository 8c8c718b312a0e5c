"""What a sandbox is made of: the parts of `AgentSandbox.spec`, as in the API reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Required, TypeAlias, TypedDict

Json: TypeAlias = dict[str, Any]

GROUP = "agentsandbox.dev"
VERSION = "v1alpha1"
KIND = "AgentSandbox"
PLURAL = "agentsandboxes"
WORKSPACE = "/workspace"

_FILE_MODE = 0o644


@dataclass(frozen=True, kw_only=True)
class Session:
    """A sandbox that takes steps instead of running one command."""

    idle_timeout_seconds: int
    """The session ends after so many seconds without a step."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Ceilings of a run, enforced outside the agent. The policy fills in what is `None`."""

    runtime_seconds: int | None = None
    """Wall-clock seconds, from the start of the command."""
    tokens: int | None = None
    """Model tokens, input and output together."""
    model_requests: int | None = None
    """Model requests."""
    steps: int | None = None
    """Steps: model requests and commands of a session together."""
    egress_bytes: int | None = None
    """Bytes through the egress gateway, both ways together."""

    def to_json(self) -> Json:
        """As it stands in the object."""
        return _present(
            runtimeSeconds=self.runtime_seconds,
            tokens=self.tokens,
            modelRequests=self.model_requests,
            steps=self.steps,
            egressBytes=self.egress_bytes,
        )


@dataclass(frozen=True, kw_only=True)
class Resources:
    """CPU, memory, disk and processes; each is both request and limit. The policy fills in what is `None`."""

    cpu: str | None = None
    """CPUs, such as `500m` or `2`."""
    memory: str | None = None
    """Memory, such as `512Mi`."""
    ephemeral_storage: str | None = None
    """Everything the run may write to disk, such as `1Gi`."""
    processes: int | None = None
    """Most processes and threads at once."""

    def to_json(self) -> Json:
        """As it stands in the object."""
        return _present(
            cpu=self.cpu,
            memory=self.memory,
            ephemeralStorage=self.ephemeral_storage,
            processes=self.processes,
        )


@dataclass(frozen=True)
class File:
    """One file of the run, or the files of one `ConfigMap`; set exactly one of `content` and `config_map`."""

    path: str
    """Where it goes: relative to the workspace, or absolute below `/workspace` or `/tmp`."""
    content: str | bytes | None = None
    """The content: text, or bytes of UTF-8. At most 64 KiB in all; for more, or other bytes, use `write_file`."""
    config_map: str | None = None
    """A `ConfigMap` that is labelled for sandboxes; `path` is then a folder, and each key a file in it."""
    mode: int = _FILE_MODE
    """Permission bits."""

    def to_json(self) -> Json:
        """As it stands in the object."""
        if (self.content is None) == (self.config_map is None):
            raise ValueError(f"file {self.path!r}: set exactly one of content and config_map")
        json: Json = {"path": self.path, "mode": self.mode}
        if self.config_map is not None:
            json["configMapRef"] = {"name": self.config_map}
            return json
        try:
            json["content"] = self.content.decode() if isinstance(self.content, bytes) else self.content
        except UnicodeDecodeError:
            raise ValueError(f"file {self.path!r} is not UTF-8: write it into a session with write_file") from None
        return json


Files: TypeAlias = Mapping[str, str | bytes] | Sequence[File]


class SandboxSpec(TypedDict, total=False):
    """The fields of a new sandbox. `image` and either `command` or `session` are required."""

    image: Required[str]
    """Container image that holds the program."""
    command: Sequence[str]
    """Program and arguments. No shell is involved."""
    args: Sequence[str]
    """Further arguments."""
    session: Session
    """Take steps instead of running a command."""
    policy: str
    """The `SandboxPolicy` of the namespace that bounds the sandbox; `default` if absent."""
    env: Mapping[str, str]
    """Environment. Secrets do not belong here."""
    working_dir: str
    """Working directory; the workspace if absent."""
    resources: Resources
    """CPU, memory, disk and processes."""
    limits: Limits
    """Ceilings of the run."""
    files: Files
    """Code and input of the run: contents by path, or a list of `File`."""
    workspace_size: str
    """Most bytes in the workspace, such as `1Gi`."""
    workspace_claim: str
    """A `PersistentVolumeClaim` to use as the workspace."""
    keep_text: bool
    """Whether output and the end of standard error are kept in status; true if absent."""
    ttl_seconds_after_finished: int
    """How long the pod is kept once the run has finished, in seconds."""
    run_id: str
    """Any string. A finished sandbox runs again only when this changes."""
    suspend: bool
    """Do not start yet."""
    labels: Mapping[str, str]
    """Labels of the object."""
    annotations: Mapping[str, str]
    """Annotations of the object."""


def sandbox_object(namespace: str, name: str, fields: SandboxSpec) -> Json:
    """Return the object that the API server gets."""
    command, args, session = fields.get("command"), fields.get("args"), fields.get("session")
    if isinstance(command, str) or isinstance(args, str):
        raise TypeError("command and args are lists: no shell splits a string")
    if (command is None) == (session is None):
        raise ValueError("set either command (the program to run) or session, not both")
    resources, limits = fields.get("resources"), fields.get("limits")
    claim = {"claimName": fields["workspace_claim"]} if "workspace_claim" in fields else None
    workspace = _present(size=fields.get("workspace_size"), persistentVolumeClaim=claim)
    spec = _present(
        image=fields["image"],
        policyRef={"name": fields.get("policy", "default")},
        command=None if command is None else list(command),
        args=list(args) if args else None,
        session=None if session is None else {"idleTimeoutSeconds": session.idle_timeout_seconds},
        env=[{"name": key, "value": value} for key, value in fields.get("env", {}).items()] or None,
        workingDir=fields.get("working_dir"),
        resources=(resources.to_json() if resources else None) or None,
        limits=(limits.to_json() if limits else None) or None,
        files=[file.to_json() for file in _file_list(fields.get("files", []))] or None,
        workspace=workspace or None,
        result=None if fields.get("keep_text", True) else {"capture": "None"},
        ttlSecondsAfterFinished=fields.get("ttl_seconds_after_finished"),
        runId=fields.get("run_id") or None,
        suspend=fields.get("suspend") or None,
    )
    metadata = _present(
        name=name,
        namespace=namespace,
        labels=dict(fields.get("labels", {})) or None,
        annotations=dict(fields.get("annotations", {})) or None,
    )
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": KIND, "metadata": metadata, "spec": spec}


def same_run(wanted: Json, found: Json) -> list[str]:
    """Return the fields in which two specs ask for different runs; those that may change during a run are left out."""
    ours, theirs = _with_defaults(wanted), _with_defaults(found)
    return sorted(field for field in ours.keys() | theirs.keys() if ours.get(field) != theirs.get(field))


def _with_defaults(spec: Json) -> Json:
    """Fill in a spec what the API server does (the defaults of the CRD), less what may change during a run."""
    changeable = ("suspend", "stop", "ttlSecondsAfterFinished")
    full = {key: value for key, value in spec.items() if key not in changeable}
    full.setdefault("policyRef", {"name": "default"})
    full.setdefault("workingDir", WORKSPACE)
    full.setdefault("runId", "")
    full["result"] = {"capture": "Text"} | full.get("result", {})
    full["files"] = [{"mode": _FILE_MODE} | file for file in full.get("files", [])]
    full["env"] = [{"value": ""} | entry for entry in full.get("env", [])]
    return full


def _file_list(files: Files) -> Sequence[File]:
    if isinstance(files, Mapping):
        return [File(path, content) for path, content in files.items()]
    return files


def _present(**fields: object) -> Json:
    return {key: value for key, value in fields.items() if value is not None}
