"""Every async test runs on both event loops; those that have guests run with both kinds of them."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.fork_servers import quick_servers

# How long an example takes says what else the machine does.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """The loop that a test marked `anyio` runs on: each such test runs once on asyncio and once on trio."""
    backend: str = request.param
    return backend


@pytest.fixture(scope="session")
def quick_fork_servers() -> Iterator[None]:
    """Processes of guests start in milliseconds, on every machine."""
    with quick_servers():
        yield


@pytest.fixture(params=["coroutine", "process"])
def isolation(request: pytest.FixtureRequest) -> str:
    """How the guests of a test are executed: each test that asks for this runs once with each."""
    mode: str = request.param
    if mode == "process":
        request.getfixturevalue("quick_fork_servers")
    return mode
