"""A client of a real cluster, in the namespace that the caller made."""

import os
from collections.abc import Iterator

import pytest

from agentsandbox import Client, PolicyRejected, ProtocolError, Session

IMAGE = "agent-sandbox.local/agent:1"


@pytest.fixture
def client() -> Iterator[Client]:
    with Client(os.environ["AGENTSANDBOX_NAMESPACE"]) as client:
        yield client


@pytest.fixture(scope="session")
def sessions() -> None:
    """Skip, with the operator's own words, where it has no sessions."""
    with Client(os.environ["AGENTSANDBOX_NAMESPACE"]) as client:
        asked = client.create(image=IMAGE, policy="container", session=Session(idle_timeout_seconds=30))
        with asked as sandbox:
            try:
                sandbox.wait_ready(120)
                if sandbox.status.finished:
                    sandbox.wait()
            except PolicyRejected as error:
                if error.message == "spec.session is not supported by this version":
                    pytest.skip(error.message)
                raise


@pytest.fixture(scope="session")
def copies(sessions: None) -> None:  # noqa: ARG001 - nothing is copied without a session
    """Skip where the supervisor copies no files: it then answers with its own help."""
    with Client(os.environ["AGENTSANDBOX_NAMESPACE"]) as client:
        asked = client.create(image=IMAGE, policy="container", session=Session(idle_timeout_seconds=30))
        with asked as sandbox:
            try:
                sandbox.write_file("probe", b"")
            except ProtocolError as error:
                if "sandbox-supervisor --version" in str(error):
                    pytest.skip("this supervisor copies no files")
                raise
