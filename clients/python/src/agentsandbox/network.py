"""What both ways of doing I/O share."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

import httpx2

from agentsandbox.errors import ConnectionFailed


@contextlib.contextmanager
def network_errors() -> Generator[None]:
    """Raise in this package's own words that the network failed."""
    try:
        yield
    except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
        raise ConnectionFailed(f"{type(error).__name__}: {error}") from error
