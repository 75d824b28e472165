"""Introduction, release, shutdown and death; what a domain leaves behind, which is nothing."""

import pytest

from dom0.xenstore.connection import Failure
from dom0.xenstore.domain import DomainInfo
from dom0.xenstore.errors import CannotConnect, Invalid
from dom0.xenstore.output import Output
from tests.dom0.xenstore.clients import FakeMachine
from tests.dom0.xenstore.conversation import Conversation


class FakeRing:
    """A transport that remembers what was done with it."""

    def __init__(self, domid: int, gfn: int, port: int) -> None:
        self.where = (domid, gfn, port)
        self.closed = 0
        self.failure: Failure | None = None

    def attach(self, wake: object) -> None: ...

    def restarted(self) -> bool:
        return False

    def fill(self) -> bytes:
        return b""

    def flush(self, output: Output) -> bool:
        return False

    def fail(self, failure: Failure) -> None:
        self.failure = failure

    def close(self) -> None:
        self.closed += 1


class Rings:
    """Makes rings; domain 66 has none."""

    def __init__(self) -> None:
        self.made: list[FakeRing] = []

    def __call__(self, domid: int, gfn: int, port: int) -> FakeRing:
        if domid == 66:
            raise CannotConnect(domid, "no grant")
        if domid == 67:
            raise ZeroDivisionError("an error of who handed this in")
        ring = FakeRing(domid, gfn, port)
        self.made.append(ring)
        return ring


@pytest.fixture
def rings() -> Rings:
    return Rings()


@pytest.fixture
def machine(rings: Rings) -> FakeMachine:
    machine = FakeMachine(connect=rings)
    for domid in (5, 66, 67):
        machine.alive[domid] = DomainInfo(identity="first")
    return machine


def test_introduce_connects_and_announces(machine: FakeMachine, rings: Rings) -> None:
    tool = machine.tool()
    tool.ask("WATCH", "@introduceDomain", "t")
    tool.take_events()
    assert tool.ask("IS_DOMAIN_INTRODUCED", "5") == b"F\0"
    assert tool.ask("INTRODUCE", "5", "1234", "3") == b"OK\0"
    assert rings.made[0].where == (5, 1234, 3)
    assert tool.take_events() == ["@introduceDomain t"]
    assert tool.ask("IS_DOMAIN_INTRODUCED", "5") == b"T\0"


@pytest.mark.parametrize("arguments", [("5", "1"), ("5", "1", "0"), ("5", "1", "-1"), ("6", "1", "1")])
def test_introduce_refuses_what_is_not_there(machine: FakeMachine, arguments: tuple[str, ...]) -> None:
    assert machine.tool().ask("INTRODUCE", *arguments) == b"EINVAL"


@pytest.mark.parametrize("domid", ["66", "67"])
def test_introduce_of_a_ring_that_cannot_be_reached_changes_nothing(machine: FakeMachine, domid: str) -> None:
    tool = machine.tool()
    assert tool.ask("INTRODUCE", domid, "1", "1") == b"EINVAL"
    assert tool.ask("IS_DOMAIN_INTRODUCED", domid) == b"F\0"
    assert any(f"domain {domid}" in line for line in machine.log)
    machine.require_consistency()


def test_introducing_again_connects_anew(machine: FakeMachine, rings: Rings) -> None:
    tool = machine.tool()
    tool.ask("WATCH", "@introduceDomain", "t")
    tool.ask("INTRODUCE", "5", "1", "1")
    first = machine.core.domains.known[5].connection
    assert first is not None
    tool.write("/mine")
    tool.permit("/mine", "n5")
    first.start_transaction()
    tool.take_events()
    assert tool.ask("INTRODUCE", "5", "1", "2") == b"OK\0"
    assert tool.take_events() == []
    assert first.closed
    assert rings.made[0].closed == 1
    assert machine.core.domains.known[5].connection is not first
    assert tool.value("/mine") == b""
    machine.require_consistency()


def test_the_control_domain_is_introduced_by_itself_alone(machine: FakeMachine, rings: Rings) -> None:
    machine.core.domains.introduce(machine.core, 0, 7, 1)
    assert rings.made[0].where == (0, 7, 1)
    assert machine.core.domains.control.connection is not None
    assert machine.tool().ask("RELEASE", "0") == b"EINVAL"
    with pytest.raises(Invalid):
        machine.core.domains.introduce(machine.core, 0x7FF0, 7, 1)


def test_release_takes_nodes_ring_and_permissions(machine: FakeMachine, rings: Rings) -> None:
    tool = machine.tool()
    for event in ("@introduceDomain", "@releaseDomain", "/x"):
        tool.ask("WATCH", event, "t")
    tool.ask("INTRODUCE", "5", "1", "1")
    tool.write("/x/y/z")
    tool.permit("/x/y", "n5")
    tool.take_events()
    assert tool.ask("RELEASE", "5") == b"OK\0"
    assert tool.take_events() == ["/x/y t", "@releaseDomain t"]
    assert tool.children("/x") == []
    assert rings.made[0].closed == 1
    assert tool.ask("RELEASE", "5") == b"ENOENT"
    machine.require_consistency()


def test_a_shutdown_is_announced_once_and_again_after_resume(machine: FakeMachine) -> None:
    tool = machine.tool()
    tool.ask("WATCH", "@releaseDomain", "t")
    tool.ask("INTRODUCE", "5", "1", "1")
    tool.take_events()
    machine.alive[5] = DomainInfo(shutdown=True, identity="first")
    for _ in range(3):
        machine.core.domains.check(machine.core)
    assert tool.take_events() == ["@releaseDomain t"]
    assert tool.ask("RESUME", "5") == b"OK\0"
    machine.core.domains.check(machine.core)
    assert tool.take_events() == ["@releaseDomain t"]
    machine.alive[5] = DomainInfo(shutdown=True, dying=True, identity="first")
    machine.core.domains.check(machine.core, {5})
    assert tool.take_events() == ["@releaseDomain t"]
    assert tool.ask("IS_DOMAIN_INTRODUCED", "5") == b"F\0"


def test_a_broken_connection_is_not_a_dead_domain(machine: FakeMachine, rings: Rings) -> None:
    """XSA-325."""
    tool = machine.tool()
    tool.ask("WATCH", "@releaseDomain", "t")
    tool.ask("INTRODUCE", "5", "1", "1")
    connection = machine.core.domains.known[5].connection
    assert connection is not None
    tool.take_events()
    machine.core.receive(connection, b"\xff" * 64)
    machine.serve()
    assert rings.made[0].failure is Failure.PROTOCOL
    assert tool.take_events() == []
    assert tool.ask("IS_DOMAIN_INTRODUCED", "5") == b"T\0"
    assert rings.made[0].closed == 0
    machine.destroy(5)
    assert tool.take_events() == ["@releaseDomain t"]
    assert rings.made[0].closed == 1
    machine.require_consistency()


def test_a_number_that_was_reused_unseen_is_noticed(machine: FakeMachine) -> None:
    tool = machine.tool()
    tool.ask("INTRODUCE", "5", "1", "1")
    tool.write("/mine")
    tool.permit("/mine", "n5")
    machine.alive[5] = DomainInfo(identity="second")
    assert tool.ask("INTRODUCE", "5", "1", "1") == b"OK\0"
    assert tool.value("/mine") == b"ENOENT"
    machine.require_consistency()


def test_what_a_domain_owned_before_its_introduction_goes_too(machine: FakeMachine) -> None:
    tool = machine.tool()
    tool.write("/x")
    tool.permit("/x", "n5")
    machine.destroy(5)
    assert tool.value("/x") == b"ENOENT"
    machine.require_consistency()


def test_the_root_is_never_removed() -> None:
    machine = FakeMachine()
    tool = machine.tool()
    machine.guest(5)
    tool.permit("/", "r5", "b5")
    machine.destroy(5)
    assert tool.ask("GET_PERMS", "/") == b"r0\0b5\0"
    machine.require_consistency()


def test_a_domain_and_its_helper_die_at_once() -> None:
    """XSA-233."""
    machine = FakeMachine()
    tool = machine.tool()
    machine.guest(5), machine.guest(6)
    tool.ask("SET_TARGET", "6", "5")
    tool.ask("WATCH", "@releaseDomain", "t")
    tool.take_events()
    machine.alive.clear()
    machine.core.domains.check(machine.core)
    machine.serve()
    assert tool.take_events() == ["@releaseDomain t"] * 2
    assert set(machine.core.domains.known) == {0}
    machine.require_consistency()


@pytest.mark.parametrize("released", [1, 2, 3])
def test_a_turn_that_releases_another_connection(released: int) -> None:
    """XSA-425: whoever waits for a turn and is gone by then does not get one."""
    machine = FakeMachine()
    tool = machine.tool()
    guests = {domid: machine.guest(domid) for domid in (1, 2, 3)}
    machine.core.receive(guests[1].connection, b"\x02" + bytes(11) + b"\x05\0\0\0data\0")
    machine.core.receive(tool.connection, b"\x09" + bytes(11) + b"\x02\0\0\0%d\0" % released)
    for domid in (2, 3):
        machine.core.receive(guests[domid].connection, b"\x02" + bytes(11) + b"\x05\0\0\0data\0")
    machine.serve()
    for domid, guest in guests.items():
        assert guest.connection.closed == (domid == released)
        assert len(guest.connection.output.take(1000)) == (0 if domid == released else 16)
    machine.require_consistency()


def test_who_is_asked_of_domains() -> None:
    Conversation().play("""
        tool  GET_DOMAIN_PATH 5                  -> /local/domain/5|
        tool  IS_DOMAIN_INTRODUCED 32752         -> T|
        tool  IS_DOMAIN_INTRODUCED 1             -> T|
        tool  IS_DOMAIN_INTRODUCED 2             -> F|
        tool  RESUME 2                           -> ENOENT
        tool  SET_TARGET 1                       -> EINVAL
        dom1  GET_DOMAIN_PATH 0                  -> /local/domain/0|
    """)
