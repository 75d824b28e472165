"""Every async test runs on both event loops."""

import pytest


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """The loop that a test marked `anyio` runs on: each such test runs once on asyncio and once on trio."""
    backend: str = request.param
    return backend
