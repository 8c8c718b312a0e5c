"""A client of a real cluster, in the namespace that the caller made."""

import os
from collections.abc import Iterator

import pytest

from agentsandbox import Client

IMAGE = "agent-sandbox.local/agent:1"


@pytest.fixture
def client() -> Iterator[Client]:
    with Client(os.environ["AGENTSANDBOX_NAMESPACE"]) as client:
        yield client
