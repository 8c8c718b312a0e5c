"""A client of a real cluster, in the namespace that the caller made."""

import os
from collections.abc import Iterator

import pytest

from agentsandbox import Client
from faces import FACES, open_client

IMAGE = "agent-sandbox.local/agent:1"


@pytest.fixture(params=FACES)
def client(request: pytest.FixtureRequest) -> Iterator[Client]:
    with open_client(request.param, os.environ["AGENTSANDBOX_NAMESPACE"]) as client:
        yield client
