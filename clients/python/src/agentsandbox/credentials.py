"""Bearer tokens: fixed, from a file that is rotated, or from a plugin (`client.authentication.k8s.io`)."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from agentsandbox.errors import ConfigError
from agentsandbox.models import Json

_REREAD_SECONDS = 60.0
"""A projected token is rotated long before it expires; client-go rereads as often."""
_EARLY_SECONDS = 10.0
"""A plugin's token is replaced so long before it expires."""
_PLUGIN_SECONDS = 120.0
"""Longest run of a plugin: it may wait for a person at a browser."""
_VERSIONS = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")


class Credentials:
    """A fixed bearer token, or none. `token` may block: it may read a file or run a program."""

    def __init__(self, token: str | None = None) -> None:
        self._token = token

    def token(self) -> str | None:
        """Return the token to send now."""
        return self._token

    def certificate(self) -> tuple[bytes | None, bytes | None]:
        """Return the client certificate and its key, if these credentials are one."""
        return None, None

    def fresh(self) -> bool:
        """Whether `token` answers at once."""
        return True

    def refused(self) -> bool:
        """Take note that the API server did not know the token; return whether another may help."""
        return False

    def __repr__(self) -> str:
        """Show no secret."""
        return f"{type(self).__name__}()"


class TokenFile(Credentials):
    """A token in a file that somebody rotates."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._read_at = float("-inf")

    def token(self) -> str | None:
        """Read it again once in a while."""
        if time.monotonic() - self._read_at > _REREAD_SECONDS:
            try:
                self._token = self._path.read_text().strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"token file {self._path}: {error}") from error
            if not self._token:
                raise ConfigError(f"token file {self._path} is empty")
            self._read_at = time.monotonic()
        return self._token

    def refused(self) -> bool:
        """Read it again at the next request."""
        self._read_at = float("-inf")
        return True


class ExecPlugin(Credentials):
    """A program that prints an `ExecCredential`."""

    def __init__(self, plugin: Json, folder: Path, cluster: Json) -> None:
        super().__init__()
        self._version = str(plugin.get("apiVersion"))
        if self._version not in _VERSIONS:
            raise ConfigError(f"exec plugin: apiVersion {self._version!r} is none of {', '.join(_VERSIONS)}")
        command = str(plugin.get("command") or "")
        if not command:
            raise ConfigError("exec plugin: no command")
        if plugin.get("interactiveMode") == "Always":
            raise ConfigError(f"exec plugin {command}: it needs a terminal, which a client library does not have")
        # As in kubectl: a name is looked up in PATH, a path is relative to the kubeconfig.
        self._command = [command if os.sep not in command else str(folder / command)]
        self._command += [str(argument) for argument in plugin.get("args") or []]
        self._env = {str(entry["name"]): str(entry["value"]) for entry in plugin.get("env") or []}
        spec: Json = {"interactive": False}
        if plugin.get("provideClusterInfo"):
            spec["cluster"] = cluster
        self._info = json.dumps({"apiVersion": self._version, "kind": "ExecCredential", "spec": spec})
        self._expires = float("-inf")
        self._certificate: tuple[bytes | None, bytes | None] = (None, None)
        self._lock = threading.Lock()

    def token(self) -> str | None:
        """Run the program if its last token is spent."""
        with self._lock:
            if not self.fresh():
                self._run()
            return self._token

    def certificate(self) -> tuple[bytes | None, bytes | None]:
        """Run the program: it may give a certificate instead of a token."""
        self.token()
        return self._certificate

    def fresh(self) -> bool:
        """Whether the last token holds for a while."""
        return time.time() < self._expires - _EARLY_SECONDS

    def refused(self) -> bool:
        """Run the program again at the next request."""
        self._expires = float("-inf")
        return True

    def _run(self) -> None:
        env = os.environ | self._env | {"KUBERNETES_EXEC_INFO": self._info}
        name = self._command[0]
        try:
            done = subprocess.run(  # noqa: S603 - the user's kubeconfig names it, as for kubectl
                self._command,
                env=env,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=True,
                timeout=_PLUGIN_SECONDS,
            )
            answer = json.loads(done.stdout)
        except subprocess.CalledProcessError as error:
            said = error.stderr.decode(errors="replace").strip()
            raise ConfigError(f"exec plugin {name}: exit code {error.returncode}: {said}") from error
        except (OSError, subprocess.TimeoutExpired, ValueError) as error:
            raise ConfigError(f"exec plugin {name}: {error}") from error
        status = _status(answer, self._version)
        if status is None:
            raise ConfigError(f"exec plugin {name}: it did not print an ExecCredential of {self._version}")
        token, certificate, key = (
            value if isinstance(value, str) and value else None
            for value in (status.get(part) for part in ("token", "clientCertificateData", "clientKeyData"))
        )
        if token is None and (certificate is None or key is None):
            raise ConfigError(f"exec plugin {name}: neither a token nor a certificate")
        self._token = token
        if certificate and key:
            self._certificate = (certificate.encode(), key.encode())
        self._expires = _expiry(status.get("expirationTimestamp"))


def _status(answer: Any, version: str) -> Json | None:  # noqa: ANN401 - whatever the program printed
    if not isinstance(answer, dict) or answer.get("kind") != "ExecCredential" or answer.get("apiVersion") != version:
        return None
    status = answer.get("status")
    return status if isinstance(status, dict) else None


def _expiry(timestamp: object) -> float:
    try:
        return datetime.fromisoformat(str(timestamp)).timestamp() if timestamp else float("inf")
    except ValueError as error:
        raise ConfigError(f"exec plugin: expirationTimestamp: {error}") from error
