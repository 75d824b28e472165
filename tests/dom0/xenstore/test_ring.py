"""A domain's ring: bytes through a real page, notifications, lies in the page, starting anew."""

from collections.abc import Callable
from random import Random

import pytest

from dom0.xenstore.domain import DomainInfo
from dom0.xenstore.ring import Ring
from kernel.errors import KernelError
from ringbuffers.errors import RingMisuse
from ringbuffers.protocols.xs_wire import (
    XENSTORE_CONNECTED,
    XENSTORE_ERROR_COMM,
    XENSTORE_ERROR_NONE,
    XENSTORE_ERROR_PROTO,
    XENSTORE_ERROR_RINGIDX,
    XENSTORE_RECONNECT,
    XENSTORE_RING_SIZE,
    XS_READ,
    XS_WATCH,
    XS_WATCH_EVENT,
    XS_WRITE,
    Message,
    Parser,
    XenstorePage,
)
from tests.dom0.xenstore.clients import FakeMachine

REQ_CONS, REQ_PROD, RSP_CONS, RSP_PROD = 512, 513, 514, 515


class FakePort:
    """Both ends of an event channel in one object."""

    def __init__(self) -> None:
        self.on_event: Callable[[], None] | None = None
        self.notified = 0
        self.is_broken = False

    def notify(self) -> None:
        if self.is_broken:
            raise KernelError("the other end is gone")
        self.notified += 1


class FakeWay:
    """A page and a port, and the guest's side of both."""

    def __init__(self) -> None:
        self.memory = bytearray(4096)
        self.page = memoryview(self.memory)
        self.words = self.page.cast("I")
        self.port = FakePort()
        self.closed = 0
        self.guest = XenstorePage(self.page)
        self.incoming, self.outgoing = self.guest.guest_side()
        self.parser = Parser()

    def close(self) -> None:
        self.closed += 1

    def kick(self) -> None:
        if self.port.on_event is not None:
            self.port.on_event()


class Setting:
    """A daemon and one introduced domain with a ring."""

    def __init__(self, start: int = 0) -> None:
        self.way = FakeWay()
        self.way.words[REQ_CONS : RSP_PROD + 1] = memoryview(
            b"".join(start.to_bytes(4, "little") for _ in range(4))
        ).cast("I")
        self.machine = FakeMachine(connect=lambda domid, _gfn, _port: Ring(domid, self.way))
        self.machine.alive[1] = DomainInfo()
        self.tool = self.machine.tool()
        self.tool.write("/local/domain/1/data")
        self.tool.permit("/local/domain/1/data", "n1")
        assert self.tool.ask("INTRODUCE", "1", "1", "1") == b"OK\0"

    def exchange(self, data: bytes) -> list[Message]:
        """Send through the ring, reading all that comes back."""
        messages: list[Message] = []
        while True:
            sent = self.way.outgoing.write(data)
            data = data[sent:]
            if sent:
                self.way.kick()
            self.machine.serve()
            received = self.way.incoming.read()
            messages += self.way.parser.feed(received)
            if received:
                self.way.kick()
                self.machine.serve()
            if not (sent or received or self.way.incoming.readable):
                return messages


@pytest.fixture(params=[0, 2**32 - 700])
def setting(request: pytest.FixtureRequest) -> Setting:
    return Setting(request.param)


def test_requests_and_answers_larger_than_the_ring(setting: Setting) -> None:
    value = bytes(Random(1).randbytes(2000))
    requests = [Message(XS_WRITE, 7, 0, b"data/x\0" + value), Message(XS_READ, 8, 0, b"data/x\0")]
    answers = setting.exchange(b"".join(message.pack() for message in requests))
    assert answers == [Message(XS_WRITE, 7, 0, b"OK\0"), Message(XS_READ, 8, 0, value)]
    setting.machine.require_consistency()


def test_many_requests_at_once(setting: Setting) -> None:
    requests = b"".join(Message(XS_READ, number, 0, b"data\0").pack() for number in range(300))
    answers = setting.exchange(requests)
    assert [answer.req_id for answer in answers] == list(range(300))


def test_one_notification_for_all_of_a_turn(setting: Setting) -> None:
    setting.machine.serve()
    before = setting.way.port.notified
    setting.way.outgoing.write(b"".join(Message(XS_READ, n, 0, b"data\0").pack() for n in range(10)))
    setting.way.kick()
    setting.machine.serve()
    assert setting.way.port.notified == before + 1
    setting.way.kick()
    setting.machine.serve()
    assert setting.way.port.notified == before + 1


def test_events_fill_the_ring_and_go_on_when_it_is_read(setting: Setting) -> None:
    setting.exchange(Message(XS_WATCH, 1, 0, b"data\0token\0").pack())
    for number in range(100):
        setting.tool.write(f"/local/domain/1/data/{number}")
    assert setting.way.incoming.readable == XENSTORE_RING_SIZE
    events = setting.exchange(b"")
    assert [e.payload for e in events] == [b"data/%d\0token\0" % n for n in range(100)]
    assert {e.type for e in events} == {XS_WATCH_EVENT}


@pytest.mark.parametrize("distance", [XENSTORE_RING_SIZE + 1, 2**31, 2**32 - 1])
@pytest.mark.parametrize("index", [REQ_PROD, RSP_CONS])
def test_indices_that_cannot_be(setting: Setting, index: int, distance: int) -> None:
    """XSA-38."""
    setting.way.outgoing.write(Message(XS_READ, 1, 0, b"data\0").pack())
    sign = 1 if index == REQ_PROD else -1
    base = setting.way.words[REQ_CONS if index == REQ_PROD else RSP_PROD]
    setting.way.words[index] = (base + sign * distance) % 2**32
    setting.way.kick()
    setting.machine.serve()
    assert setting.way.guest.error == XENSTORE_ERROR_RINGIDX
    assert setting.tool.ask("IS_DOMAIN_INTRODUCED", "1") == b"T\0"
    setting.way.kick()
    setting.machine.serve()
    assert sum("ignored" in line for line in setting.machine.log) == 1
    setting.machine.require_consistency()


@pytest.mark.parametrize("length", [4097, 0x40000000, 2**32 - 1])
def test_a_header_that_announces_too_much(setting: Setting, length: int) -> None:
    """XSA-420: noticed once, and the domain is left alone."""
    header = Message(XS_READ, 1, 0, b"").pack()[:12] + length.to_bytes(4, "little")
    setting.way.outgoing.write(header + b"x" * 500)
    setting.way.kick()
    setting.machine.serve()
    assert setting.way.guest.error == XENSTORE_ERROR_PROTO
    setting.way.outgoing.write(b"x" * 100)
    setting.way.kick()
    setting.machine.serve()
    assert sum("ignored" in line for line in setting.machine.log) == 1
    assert setting.way.closed == 0


def test_a_domain_that_asks_for_it_starts_anew(setting: Setting) -> None:
    setting.exchange(Message(XS_WATCH, 1, 0, b"data\0token\0").pack())
    setting.way.outgoing.write(Message(XS_READ, 1, 0, b"data\0").pack()[:9])
    setting.way.kick()
    setting.machine.serve()
    setting.tool.write("/local/domain/1/data/x")
    setting.way.guest.connection = XENSTORE_RECONNECT
    setting.way.kick()
    setting.machine.serve()
    assert setting.way.guest.connection == XENSTORE_CONNECTED
    setting.way.parser = Parser()
    setting.tool.write("/local/domain/1/data/x")
    assert setting.exchange(Message(XS_READ, 5, 0, b"data/x\0").pack()) == [Message(XS_READ, 5, 0, b"")]
    setting.machine.require_consistency()


def test_a_domain_that_was_given_up_can_start_anew(setting: Setting) -> None:
    setting.way.outgoing.write(b"\xff" * 100)
    setting.way.kick()
    setting.machine.serve()
    assert setting.way.guest.error == XENSTORE_ERROR_PROTO
    setting.way.guest.connection = XENSTORE_RECONNECT
    setting.way.kick()
    setting.machine.serve()
    assert setting.way.guest.error == XENSTORE_ERROR_NONE
    assert setting.exchange(Message(XS_READ, 5, 0, b"data\0").pack()) == [Message(XS_READ, 5, 0, b"")]


def test_a_domain_cannot_fill_the_log(setting: Setting) -> None:
    for _ in range(100):
        setting.way.outgoing.write(b"\xff" * 100)
        setting.way.kick()
        setting.machine.serve()
        setting.way.guest.connection = XENSTORE_RECONNECT
        setting.way.kick()
        setting.machine.serve()
    assert len(setting.machine.log) == 10


def test_an_event_channel_that_does_not_work(setting: Setting) -> None:
    setting.way.port.is_broken = True
    setting.way.outgoing.write(Message(XS_READ, 5, 0, b"data\0").pack())
    setting.way.kick()
    setting.machine.serve()
    assert setting.way.guest.error == XENSTORE_ERROR_COMM
    assert setting.tool.ask("IS_DOMAIN_INTRODUCED", "1") == b"T\0"
    setting.machine.destroy(1)
    assert setting.way.closed == 1


def test_death_lets_go_of_the_page(setting: Setting) -> None:
    connection = setting.machine.core.domains.known[1].connection
    assert connection is not None
    setting.way.kick()  # its turn comes when it is gone
    setting.machine.destroy(1)
    assert setting.way.closed == 1
    assert setting.way.port.on_event is None
    assert setting.machine.log == []
    ring = connection.transport
    assert ring is not None
    with pytest.raises(RingMisuse):
        ring.fill()
    setting.machine.require_consistency()


def test_a_guest_that_floods_its_ring_is_slowed_down_and_nobody_else(setting: Setting) -> None:
    way = setting.way
    for _ in range(1000):
        way.outgoing.write(Message(XS_WRITE, 1, 0, b"data/x\0v").pack() * 40)
        way.kick()
    assert setting.tool.value("/tool") == b""
    connection = setting.machine.core.domains.known[1].connection
    assert connection is not None
    assert connection.outstanding <= setting.machine.core.quotas.outstanding
    assert way.incoming.readable <= XENSTORE_RING_SIZE
    setting.machine.require_consistency()
