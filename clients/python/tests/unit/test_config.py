"""Kubeconfigs, plugins and service accounts."""

import base64
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml

from agentsandbox.config import Config
from agentsandbox.credentials import ExecPlugin, TokenFile
from agentsandbox.errors import ConfigError


def write(folder: Path, user: dict[str, Any], cluster: dict[str, Any] | None = None, name: str = "c") -> Path:
    path = folder / name
    kubeconfig = {
        "current-context": name,
        "contexts": [{"name": name, "context": {"cluster": name, "user": name, "namespace": f"ns-{name}"}}],
        "clusters": [{"name": name, "cluster": {"server": "http://127.0.0.1:1/"} | (cluster or {})}],
        "users": [{"name": name, "user": user}],
    }
    path.write_text(yaml.safe_dump(kubeconfig))
    return path


def script(folder: Path, text: str) -> str:
    path = folder / "plugin"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return "./plugin"


def plugin(folder: Path, status: dict[str, str], before: str = "") -> dict[str, Any]:
    version = "client.authentication.k8s.io/v1"
    answer = json.dumps({"apiVersion": version, "kind": "ExecCredential", "status": status})
    return {"exec": {"apiVersion": version, "command": script(folder, f"{before}\necho '{answer}'")}}


def test_a_token_and_the_namespace_are_read(tmp_path: Path) -> None:
    config = Config.load(write(tmp_path, {"token": "secret"}))
    assert (config.server, config.namespace, config.credentials.token()) == ("http://127.0.0.1:1", "ns-c", "secret")
    assert "secret" not in repr(config)


def test_of_several_files_the_first_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = write(tmp_path, {"token": "1"}, name="a"), write(tmp_path, {"token": "2"}, name="b")
    monkeypatch.setenv("KUBECONFIG", f"{first}{os.pathsep}{tmp_path / 'missing'}{os.pathsep}{second}")
    assert Config.load().credentials.token() == "1"
    assert Config.load(context="b").credentials.token() == "2"
    with pytest.raises(ConfigError, match="no context 'c'"):
        Config.load(context="c")


def test_relative_paths_start_at_the_kubeconfig(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from-file\n")
    assert Config.load(write(tmp_path, {"tokenFile": "token"})).credentials.token() == "from-file"


def test_a_token_file_is_read_again_when_refused(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("old")
    credentials = TokenFile(path)
    assert credentials.token() == "old"
    path.write_text("new")
    assert credentials.token() == "old"
    assert credentials.refused()
    assert credentials.token() == "new"


def test_a_plugin_gives_a_token_until_it_expires(tmp_path: Path) -> None:
    count = f"echo x >> {tmp_path}/runs"
    user = plugin(tmp_path, {"token": "t", "expirationTimestamp": "2999-01-01T00:00:00Z"}, count)
    config = Config.load(write(tmp_path, user))
    assert [config.credentials.token() for _ in range(3)] == ["t"] * 3
    assert (tmp_path / "runs").read_text() == "x\n"
    config.credentials.refused()
    config.credentials.token()
    assert (tmp_path / "runs").read_text() == "x\nx\n"


def test_a_plugin_that_fails_says_why(tmp_path: Path) -> None:
    user = {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": script(tmp_path, "echo no login >&2; exit 3"),
        }
    }
    with pytest.raises(ConfigError, match="exit code 3: no login"):
        Config.load(write(tmp_path, user))


@pytest.mark.parametrize(
    "entry",
    [
        {"apiVersion": "client.authentication.k8s.io/v1alpha1", "command": "true"},
        {"apiVersion": "client.authentication.k8s.io/v1"},
        {"apiVersion": "client.authentication.k8s.io/v1", "command": "true", "interactiveMode": "Always"},
        {"apiVersion": "client.authentication.k8s.io/v1", "command": "true"},
        {"apiVersion": "client.authentication.k8s.io/v1", "command": "/nonexistent"},
    ],
)
def test_other_plugins_are_refused(tmp_path: Path, entry: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ExecPlugin(entry, tmp_path, {}).token()


@pytest.mark.parametrize(
    ("user", "cluster"),
    [
        ({"auth-provider": {"name": "gcp"}}, {}),
        ({"username": "u", "password": "p"}, {}),
        ({"client-certificate-data": base64.b64encode(b"x").decode()}, {}),
        ({"client-certificate-data": "%%%", "client-key-data": "%%%"}, {}),
        ({}, {"server": "ftp://x"}),
        ({}, {"server": ""}),
        ({}, {"proxy-url": "socks5://x"}),
        ({}, {"server": "https://x", "certificate-authority": "missing"}),
        ({}, {"server": "https://x", "certificate-authority-data": base64.b64encode(b"no PEM").decode()}),
    ],
)
def test_what_is_not_supported_is_refused(tmp_path: Path, user: dict[str, Any], cluster: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Config.load(write(tmp_path, user, cluster))


@pytest.mark.parametrize("text", ["", "[]", "a: [", "current-context: x\nusers: [1]", "contexts: []"])
def test_a_broken_kubeconfig_is_an_error_of_ours(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(ConfigError):
        Config.load(path)


def test_impersonation_is_sent(tmp_path: Path) -> None:
    user = {"as": "jane", "as-groups": ["a", "b"], "as-user-extra": {"Scopes/x": ["1"]}}
    assert list(Config.load(write(tmp_path, user)).headers) == [
        ("Impersonate-User", "jane"),
        ("Impersonate-Group", "a"),
        ("Impersonate-Group", "b"),
        ("Impersonate-Extra-scopes%2Fx", "1"),
    ]


def test_outside_of_a_pod_there_is_no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ConfigError):
        Config.in_cluster(tmp_path)
