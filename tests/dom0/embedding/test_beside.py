"""Services beside a body: who ends whom, and whose error comes out."""

import anyio
import pytest
from anyio.lowlevel import checkpoint

from dom0.embedding.beside import beside

pytestmark = pytest.mark.anyio


class Failed(Exception):
    """Of a service."""


class BodyFailed(BaseException):
    """Of a body, as pytest's own outcomes: no Exception."""


class Service:
    """Notes what happens to it."""

    def __init__(self, *, fails: bool = False, comes_up: bool = True) -> None:
        self.fails = fails
        self.comes_up = comes_up
        self.said: list[str] = []
        self.told = anyio.Event()

    async def run(self, up: anyio.Event) -> None:
        self.said.append("begins")
        if not self.comes_up:
            if self.fails:
                raise Failed
            return
        up.set()
        await self.told.wait()
        await checkpoint()
        self.said.append("ends")
        if self.fails:
            raise Failed

    def stop(self) -> None:
        self.said.append("told")
        self.told.set()


async def test_the_service_runs_as_long_as_the_body() -> None:
    service = Service()
    async with beside(service.run, service.stop):
        assert service.said == ["begins"]
    assert service.said == ["begins", "told", "ends"]


async def test_an_error_of_the_body_passes_as_it_is_when_the_service_has_ended() -> None:
    service = Service(fails=True)
    with pytest.raises(BodyFailed):
        async with beside(service.run, service.stop):
            raise BodyFailed
    assert service.said == ["begins", "told", "ends"]


async def test_an_error_of_the_service_comes_out_at_the_end() -> None:
    service = Service(fails=True)
    with pytest.raises(Failed):
        async with beside(service.run, service.stop):
            service.said.append("body")
    assert service.said == ["begins", "body", "told", "ends"]


async def test_a_service_that_does_not_come_up_has_no_body() -> None:
    service = Service(fails=True, comes_up=False)
    with pytest.raises(Failed):
        async with beside(service.run, service.stop):
            raise AssertionError("there is nothing to run beside")


async def test_a_service_may_return_before_the_body_ends() -> None:
    service = Service(comes_up=False)
    async with beside(service.run, service.stop):
        service.said.append("body")
    assert service.said == ["begins", "body", "told"]


async def test_a_body_that_is_cancelled_stops_the_service_in_order() -> None:
    service = Service()
    with anyio.CancelScope() as scope:
        async with beside(service.run, service.stop):
            scope.cancel()
            await anyio.sleep_forever()
    assert service.said == ["begins", "told", "ends"]


async def test_it_is_cancelled_before_it_is_up() -> None:
    ended = anyio.Event()
    told = anyio.Event()

    async def slow(_up: anyio.Event) -> None:
        await told.wait()
        ended.set()

    with anyio.CancelScope() as scope:
        scope.cancel()
        async with beside(slow, told.set):
            raise AssertionError("it never comes up")
    assert ended.is_set()
