"""The running daemon: kernels' stores over rings on the real core, sockets, deaths, on both event loops."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from anyio.abc import SocketStream
from anyio.lowlevel import checkpoint

from dom0.xenstore import unix_socket
from dom0.xenstore.clock import MonotonicClock
from dom0.xenstore.daemon import XenStoreDaemon
from dom0.xenstore.domain import DomainInfo
from dom0.xenstore.errors import CannotConnect, Invalid
from dom0.xenstore.ring import Port, RingTransport
from kernel.xenstore.errors import StoreError
from ringbuffers.protocols.xs_wire import (
    HEADER,
    XS_DIRECTORY,
    XS_READ,
    XS_WATCH,
    XS_WATCH_EVENT,
    XS_WRITE,
    Message,
    Parser,
)
from tests.kernel.guests import running_machine

pytestmark = pytest.mark.anyio


async def test_dom0_finds_its_own_description() -> None:
    async with running_machine() as machine:
        store = machine.dom0.store
        assert await store.read("name") == "Domain-0"
        assert await store.read("/local/pool/0/name") == "Pool-0"


async def test_guests_talk_to_each_other_through_the_store() -> None:
    async with running_machine() as machine:
        one, first = await machine.boot_guest()
        _, second = await machine.boot_guest()
        async with machine.dom0.store.watch(f"/local/domain/{one}/data") as watch:
            with anyio.fail_after(10):
                async for path in watch:
                    if path.endswith("/greeting"):
                        break
                    await first.store.write("data/greeting", "hello")
        assert await machine.dom0.store.read(f"/local/domain/{one}/data/greeting") == "hello"
        with pytest.raises(StoreError) as refusal:
            await second.store.read(f"/local/domain/{one}/data/greeting")
        assert "EACCES" in str(refusal.value)


async def test_release_is_announced_and_frees_everything() -> None:
    async with running_machine() as machine:
        domid, guest = await machine.boot_guest()
        await guest.store.write("data/x", "1")
        core = machine.daemon.core
        assert core.domains.known[domid].nodes > 0
        async with machine.dom0.store.watch("@releaseDomain") as watch:
            await watch.__anext__()
            await machine.dom0.store.release(domid)
            with anyio.fail_after(10):
                await watch.__anext__()
        assert domid not in core.domains.known


class Domains:
    """What a hypervisor would know."""

    def __init__(self) -> None:
        self.alive: dict[int, DomainInfo] = {}
        self.looks = 0

    def __call__(self, domid: int) -> DomainInfo | None:
        self.looks += 1
        return self.alive.get(domid)


def no_ring(domid: int, gfn: int, port: int) -> RingTransport:
    raise CannotConnect(domid, "no rings here")


class Socket:
    """A raw client."""

    def __init__(self, stream: SocketStream) -> None:
        self.stream = stream
        self.parser = Parser()
        self.messages: list[Message] = []

    async def receive(self) -> Message:
        with anyio.fail_after(10):
            while not self.messages:
                self.messages += self.parser.feed(await self.stream.receive())
        return self.messages.pop(0)

    async def ask(self, kind: int, payload: bytes) -> bytes:
        await self.stream.send(Message(kind, 1, 0, payload).pack())
        return (await self.receive()).payload


class Setting:
    """A daemon that serves a socket."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "socket"
        self.domains = Domains()
        self.log: list[str] = []
        self.daemon = XenStoreDaemon(
            clock=MonotonicClock(), info=self.domains, connect_domain=no_ring, log=self.log.append
        )

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Socket]:
        async with await anyio.connect_unix(self.path) as stream:
            yield Socket(stream)

    async def until_clients_are(self, count: int) -> None:
        with anyio.fail_after(10):
            while len(self.daemon.core.connections) != count:
                await checkpoint()


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[Setting]:
    setting = Setting(folder)
    async with anyio.create_task_group() as tasks:
        await tasks.start(setting.daemon.run, [setting.path])
        yield setting
        tasks.cancel_scope.cancel()


async def test_requests_of_any_size_in_any_pieces(tmp_path: Path) -> None:
    async with serving(tmp_path) as setting, setting.client() as client:
        for byte in Message(XS_WRITE, 1, 0, b"/x\0" + b"v" * 50).pack():
            await client.stream.send(bytes([byte]))
        assert (await client.receive()).payload == b"OK\0"
        await client.stream.send(Message(XS_READ, 2, 0, b"/x\0").pack() * 500)
        for _ in range(500):
            assert (await client.receive()).payload == b"v" * 50


async def test_a_client_that_floods_and_never_reads_harms_nobody(tmp_path: Path) -> None:
    async with serving(tmp_path) as setting, setting.client() as flood, setting.client() as polite:
        await polite.ask(XS_WRITE, b"/big\0" + b"x" * 4000)
        request = Message(XS_READ, 1, 0, b"/big\0").pack() * 100

        async def pour() -> None:
            while True:
                await flood.stream.send(request)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pour)
            for _ in range(50):
                assert await polite.ask(XS_DIRECTORY, b"/tool\0") == b"xenstored\0"
            for connection in setting.daemon.core.connections:
                assert connection.output.size < 1 << 20
                assert len(connection.inbox) < 1000
            tasks.cancel_scope.cancel()


async def test_a_client_that_reads_nothing_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unix_socket, "_SLOW_READER_SECONDS", 0.05)
    async with serving(tmp_path) as setting, setting.client() as sleeper, setting.client() as writer:
        assert await sleeper.ask(XS_WATCH, b"/\0t\0") == b"OK\0"
        with anyio.fail_after(20):
            number = 0
            while len(setting.daemon.core.connections) == 2:
                number += 1
                await writer.ask(XS_WRITE, b"/x/%d\0" % number + b"v" * 100)
        assert await writer.ask(XS_READ, b"/x\0") == b""


async def test_a_violation_closes_the_socket(tmp_path: Path) -> None:
    async with serving(tmp_path) as setting, setting.client() as liar:
        await liar.stream.send(HEADER.pack(XS_READ, 1, 0, 5000))
        with anyio.fail_after(10), pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
            await liar.stream.receive()
        await setting.until_clients_are(0)
        assert any("ignored" in line for line in setting.log)


async def test_a_client_that_says_it_is_done_still_gets_its_answers(tmp_path: Path) -> None:
    async with serving(tmp_path) as setting, setting.client() as client:
        await client.ask(XS_WRITE, b"/big\0" + b"x" * 4000)
        await client.stream.send(Message(XS_READ, 1, 0, b"/big\0").pack() * 120)
        await client.stream.send_eof()
        for _ in range(120):
            assert (await client.receive()).type == XS_READ
        await setting.until_clients_are(0)


async def test_deaths_are_looked_for_once_however_many_are_said(tmp_path: Path) -> None:
    async with serving(tmp_path) as setting, setting.client() as client:
        core = setting.daemon.core
        await client.ask(XS_WATCH, b"@releaseDomain\0t\0")
        assert (await client.receive()).type == XS_WATCH_EVENT
        for domid in range(1, 51):
            setting.domains.alive[domid] = DomainInfo()
            domain = core.domains.find(domid)
            assert domain is not None
            domain.connection = core.connect(domain)
        setting.domains.looks = 0
        del setting.domains.alive[7]
        for _ in range(100):
            setting.daemon.domains_changed()
        assert (await client.receive()).payload == b"@releaseDomain\0t\0"
        assert setting.domains.looks == 50
        del setting.domains.alive[9]
        setting.daemon.domains_changed(9)
        assert (await client.receive()).payload == b"@releaseDomain\0t\0"
        assert setting.domains.looks == 51
        assert set(core.domains.known) == {0, *range(1, 51)} - {7, 9}


async def test_a_look_that_fails_is_logged_and_the_next_one_works(tmp_path: Path) -> None:
    async with serving(tmp_path) as setting, setting.client() as client:
        core = setting.daemon.core
        setting.domains.alive[1] = DomainInfo()
        core.domains.find(1)
        alive, setting.domains.alive = setting.domains.alive, None  # type: ignore[assignment]
        setting.daemon.domains_changed()
        with anyio.fail_after(10):
            while not setting.log:
                await checkpoint()
        setting.domains.alive = alive
        alive.clear()
        setting.daemon.domains_changed()
        with anyio.fail_after(10):
            while 1 in core.domains.known:
                await checkpoint()
        assert await client.ask(XS_READ, b"/tool\0") == b""


async def test_events_expire_while_nothing_else_happens(tmp_path: Path) -> None:
    async with serving(tmp_path) as setting:
        core = setting.daemon.core
        setting.domains.alive[1] = DomainInfo()
        domain = core.domains.find(1)
        guest = core.connect(domain)
        core.receive(guest, Message(XS_WATCH, 1, 0, b"x\0t\0").pack())
        with anyio.fail_after(10):
            while not guest.ticking:
                await checkpoint()
        assert core.next_deadline_ns is not None
        core._arm(guest, 0)
        with anyio.fail_after(10):
            while core.next_deadline_ns == 0:
                await checkpoint()
        assert guest.output


class ReadOnlyWay:
    """A mapping that cannot be a ring."""

    def __init__(self) -> None:
        self.page = memoryview(bytes(4096))
        self.closed = False

    @property
    def port(self) -> Port:
        raise AssertionError("not used")

    def close(self) -> None:
        self.closed = True


async def test_a_page_that_cannot_be_a_ring_is_let_go() -> None:
    way = ReadOnlyWay()
    domains = Domains()
    domains.alive[1] = DomainInfo()
    log: list[str] = []
    daemon = XenStoreDaemon(
        clock=MonotonicClock(), info=domains, connect_domain=lambda *_: way, log=log.append
    )
    with pytest.raises(Invalid):
        daemon.introduce(1, 0, 1)
    assert way.closed
    assert len(log) == 1


async def test_introduce_without_a_ring(tmp_path: Path) -> None:
    setting = Setting(tmp_path)
    setting.domains.alive[1] = DomainInfo()
    with pytest.raises(Invalid):
        setting.daemon.introduce(1, 0, 1)
    assert any("no rings here" in line for line in setting.log)
