"""A client of a real cluster, in the namespace that the caller made."""

import os
from collections.abc import Iterator

import pytest

from agentsandbox import Client, PolicyRejected, Session

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
