"""How to reach the API server: a kubeconfig, or the account of the pod that this program runs in.

What kubectl accepts is accepted here, but for the legacy `auth-provider` and passwords, which are refused with the
reason rather than ignored.
"""

from __future__ import annotations

import base64
import binascii
import os
import ssl
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, urlsplit

import yaml

from agentsandbox.credentials import Credentials, ExecPlugin, TokenFile
from agentsandbox.errors import ConfigError
from agentsandbox.models import Json

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True, kw_only=True)
class Config:
    """An API server, how to trust it, and as whom to speak."""

    server: str
    """URL, without a slash at its end."""
    namespace: str = "default"
    """Where sandboxes live unless the client says otherwise."""
    tls: ssl.SSLContext | None = None
    """Whom to trust, and the client's certificate; `None` for plain HTTP."""
    tls_server_name: str | None = None
    """Name that the server's certificate must bear, if it is not the host's."""
    proxy: str | None = None
    """URL of an HTTP proxy; the environment's holds if absent."""
    credentials: Credentials = field(default_factory=Credentials)
    """Bearer tokens, fresh at each request."""
    headers: Sequence[tuple[str, str]] = ()
    """Headers of every request: impersonation."""

    @classmethod
    def load(cls, kubeconfig: str | os.PathLike[str] | None = None, context: str | None = None) -> Config:
        """Read what kubectl would: the file named, `$KUBECONFIG`, `~/.kube/config`, or the account of the pod."""
        if kubeconfig is not None:
            return cls.from_kubeconfig([Path(kubeconfig)], context)
        paths = [Path(path) for path in os.environ.get("KUBECONFIG", "").split(os.pathsep) if path]
        paths = paths or [Path.home() / ".kube" / "config"]
        existing = [path for path in paths if path.exists()]
        if existing or "KUBERNETES_SERVICE_HOST" not in os.environ:
            return cls.from_kubeconfig(existing or paths, context)
        if context is not None:
            raise ConfigError(f"context {context!r}: there is no kubeconfig")
        return cls.in_cluster()

    @classmethod
    def in_cluster(cls, account: Path = _ACCOUNT) -> Config:
        """Use the service account of the pod that this program runs in."""
        try:
            host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
            namespace = (account / "namespace").read_text().strip()
            tls = ssl.create_default_context(cafile=account / "ca.crt")
        except (KeyError, OSError) as error:
            raise ConfigError(f"this is no pod with a service account: {error}") from error
        host = f"[{host}]" if ":" in host else host
        credentials = TokenFile(account / "token")
        return cls(server=f"https://{host}:{port}", namespace=namespace, tls=tls, credentials=credentials)

    @classmethod
    def from_kubeconfig(cls, paths: list[Path], context: str | None = None) -> Config:
        """Read kubeconfigs; of several, the first that names something wins."""
        merged = _merge(paths)
        name = context or merged.current
        if not name:
            raise ConfigError(f"{_names(paths)}: no current-context; name a context")
        chosen = merged.get("contexts", name)
        cluster = merged.get("clusters", _text(chosen.json, "cluster"))
        user = merged.get("users", _text(chosen.json, "user")) if chosen.json.get("user") else _Entry({}, chosen.folder)
        return _config(_text(chosen.json, "namespace") or "default", cluster, user)


@dataclass(frozen=True)
class _Entry:
    """A named part of a kubeconfig, and the folder that its relative paths start from."""

    json: Json
    folder: Path

    def path(self, key: str) -> Path | None:
        text = _text(self.json, key)
        return self.folder / text if text else None

    def bytes(self, name: str) -> bytes | None:
        """Return the content of `NAME-data` or of the file `NAME`."""
        data = _text(self.json, f"{name}-data")
        path = self.path(name)
        try:
            if data:
                return base64.b64decode(data, validate=True)
            return path.read_bytes() if path else None
        except (OSError, binascii.Error) as error:
            raise ConfigError(f"{name}: {error}") from error


@dataclass
class _Merged:
    current: str
    named: dict[str, dict[str, _Entry]]

    def get(self, kind: str, name: str) -> _Entry:
        try:
            return self.named[kind][name]
        except KeyError:
            raise ConfigError(f"the kubeconfig has no {kind.removesuffix('s')} {name!r}") from None


def _merge(paths: list[Path]) -> _Merged:
    merged = _Merged("", {"clusters": {}, "contexts": {}, "users": {}})
    for path in paths:
        try:
            json = yaml.safe_load(path.read_bytes())
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(f"kubeconfig {path}: {error}") from error
        if not isinstance(json, dict):
            raise ConfigError(f"kubeconfig {path} is not a mapping")
        merged.current = merged.current or _text(json, "current-context")
        for kind, entries in merged.named.items():
            for entry in json.get(kind) or []:
                inner = entry.get(kind.removesuffix("s")) if isinstance(entry, dict) else None
                if not isinstance(inner, dict):
                    raise ConfigError(f"kubeconfig {path}: {kind} holds something else than named entries")
                entries.setdefault(_text(entry, "name"), _Entry(inner, path.absolute().parent))
    return merged


def _config(namespace: str, cluster: _Entry, user: _Entry) -> Config:
    server = _text(cluster.json, "server").rstrip("/")
    scheme = urlsplit(server).scheme
    if scheme not in ("https", "http"):
        raise ConfigError(f"server {server!r} is no URL of http or https")
    for unsupported in ("auth-provider", "username", "password"):
        if user.json.get(unsupported):
            raise ConfigError(f"the kubeconfig's user has {unsupported!r}, which is not supported: use exec or a token")
    proxy = _text(cluster.json, "proxy-url") or None
    if proxy and urlsplit(proxy).scheme not in ("http", "https"):
        raise ConfigError(f"proxy-url {proxy!r} is no URL of http or https")
    credentials = _credentials(cluster, user)
    certificate, key = user.bytes("client-certificate"), user.bytes("client-key")
    if (certificate is None) != (key is None):
        raise ConfigError("client-certificate and client-key go together")
    if certificate is None:
        certificate, key = credentials.certificate()
    return Config(
        server=server,
        namespace=namespace,
        tls=_tls(cluster, certificate, key) if scheme == "https" else None,
        tls_server_name=_text(cluster.json, "tls-server-name") or None,
        proxy=proxy,
        credentials=credentials,
        headers=_impersonation(user.json),
    )


def _credentials(cluster: _Entry, user: _Entry) -> Credentials:
    if path := user.path("tokenFile"):
        return TokenFile(path)
    if token := _text(user.json, "token"):
        return Credentials(token)
    plugin = user.json.get("exec")
    if plugin is None:
        return Credentials()
    if not isinstance(plugin, dict):
        raise ConfigError("the kubeconfig's exec is not a mapping")
    about = {key: value for key, value in cluster.json.items() if key in ("server", "tls-server-name", "proxy-url")}
    authority = cluster.bytes("certificate-authority")
    if authority:
        about["certificate-authority-data"] = base64.b64encode(authority).decode()
    if cluster.json.get("insecure-skip-tls-verify"):
        about["insecure-skip-tls-verify"] = True
    return ExecPlugin(plugin, user.folder, about)


def _tls(cluster: _Entry, certificate: bytes | None, key: bytes | None) -> ssl.SSLContext:
    authority = cluster.bytes("certificate-authority")
    try:
        context = ssl.create_default_context(cadata=authority.decode("ascii") if authority else None)
        if cluster.json.get("insecure-skip-tls-verify"):
            if authority:
                raise ConfigError("insecure-skip-tls-verify and certificate-authority exclude each other")
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if certificate and key:
            # The ssl module reads them from files only. This one is readable by this user alone, and gone right after.
            with tempfile.NamedTemporaryFile() as file:
                file.write(certificate + b"\n" + key)
                file.flush()
                context.load_cert_chain(file.name)
    except (ssl.SSLError, UnicodeDecodeError) as error:
        raise ConfigError(f"certificates of the kubeconfig: {error}") from error
    return context


def _impersonation(user: Json) -> list[tuple[str, str]]:
    headers = [
        (f"Impersonate-{header}", _text(user, key))
        for header, key in (("User", "as"), ("Uid", "as-uid"))
        if user.get(key)
    ]
    headers += [("Impersonate-Group", str(group)) for group in user.get("as-groups") or []]
    for key, values in (user.get("as-user-extra") or {}).items():
        headers += [(f"Impersonate-Extra-{quote(str(key).lower(), safe='')}", str(value)) for value in values]
    return headers


def _text(json: Json, key: str) -> str:
    value = json.get(key)
    return value if isinstance(value, str) else ""


def _names(paths: list[Path]) -> str:
    return ", ".join(str(path) for path in paths)
