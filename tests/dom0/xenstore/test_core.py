"""Turns, time and failures of the core."""

import pytest

from dom0.xenstore import dispatch
from dom0.xenstore.core import REQUESTS_PER_TURN
from dom0.xenstore.dispatch import Request
from ringbuffers.protocols.xs_wire import XS_READ, Message
from tests.dom0.xenstore.clients import FakeMachine

READ_DATA = Message(XS_READ, 1, 0, b"data\0").pack()
ANSWER_BYTES = 16


def test_everybody_gets_a_turn() -> None:
    machine = FakeMachine()
    flood, polite = machine.tool(), machine.tool()
    machine.core.receive(flood.connection, Message(XS_READ, 1, 0, b"/tool\0").pack() * 1000)
    machine.core.receive(polite.connection, Message(XS_READ, 1, 0, b"/tool\0").pack())
    machine.core.turn()
    assert flood.connection.output.size == REQUESTS_PER_TURN * ANSWER_BYTES
    machine.core.turn()
    assert polite.connection.output.size == ANSWER_BYTES


def test_ready_is_said_once_until_all_are_served() -> None:
    machine = FakeMachine()
    machine.serve()
    calls: list[bool] = []
    machine.core.on_ready = lambda: calls.append(machine.core.ready)
    one, two = machine.tool(), machine.tool()
    machine.core.receive(one.connection, READ_DATA)
    machine.core.receive(two.connection, READ_DATA)
    assert calls == [True]
    machine.serve()
    machine.core.receive(two.connection, READ_DATA)
    assert calls == [True, True]


def test_an_error_of_ours_ends_one_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = FakeMachine()
    guest, tool = machine.guest(1), machine.tool()
    broken = Request("READ", lambda *_: 1 // 0)
    with monkeypatch.context() as patch:
        patch.setitem(dispatch._REQUESTS, XS_READ, broken)
        guest.send("READ", b"data\0")
    assert guest.connection.failure is not None
    assert not guest.connection.closed
    assert any("ZeroDivisionError" in line for line in machine.log)
    assert tool.value("/tool") == b""
    assert tool.ask("IS_DOMAIN_INTRODUCED", "1") == b"T\0"
    guest.send("READ", b"data\0")
    assert not guest.connection.output
    machine.require_consistency()


def test_an_error_of_ours_does_not_cut_off_the_control_domain(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = FakeMachine()
    tool = machine.tool()
    tx = tool.start()
    with monkeypatch.context() as patch:
        patch.setitem(dispatch._REQUESTS, XS_READ, Request("READ", lambda *_: 1 // 0))
        assert tool.value("/tool", tx=tx) == b"EIO"
    assert any("ZeroDivisionError" in line for line in machine.log)
    assert tool.value("/tool") == b""
    assert tool.end(tx) == b"ENOMEM"
    machine.require_consistency()


def test_an_error_of_ours_leaves_no_request_outstanding(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = FakeMachine()
    guest = machine.guest(1)
    with monkeypatch.context() as patch:
        patch.setitem(dispatch._REQUESTS, XS_READ, Request("READ", lambda *_: 1 // 0))
        guest.send("READ", b"data\0")
    assert guest.connection.outstanding == 0


def test_an_ignored_connection_has_nothing_left() -> None:
    machine = FakeMachine()
    guest, tool = machine.guest(1), machine.tool()
    guest.ask("WATCH", "data", "t")
    tx = guest.start()
    guest.write("data/x", "v", tx=tx)
    guest.send("READ", b"data\0")
    machine.core.receive(guest.connection, READ_DATA + b"\xff" * 16)
    machine.serve()
    connection = guest.connection
    left = [connection.watches, connection.transactions, connection.output, connection.inbox]
    assert not any(left)
    tool.write("/local/domain/1/data/y")
    assert not connection.output
    assert machine.core.store.readers == {}
    machine.require_consistency()


def test_what_came_before_a_violation_is_still_done() -> None:
    machine = FakeMachine()
    guest = machine.guest(1)
    write = Message(11, 1, 0, b"data/x\0v").pack()
    machine.core.receive(guest.connection, write * 20 + b"\xff" * 16)
    machine.serve()
    assert machine.tool().value("/local/domain/1/data/x") == b"v"
    assert guest.connection.failure is not None


def test_a_guest_that_does_not_read_is_not_served() -> None:
    machine = FakeMachine()
    guest = machine.guest(1)
    limit = machine.core.quotas.outstanding
    machine.core.receive(guest.connection, READ_DATA * (limit + 5))
    machine.serve()
    assert guest.connection.outstanding == limit
    assert len(guest.connection.inbox) == 5
    guest.read(2 * ANSWER_BYTES)
    assert len(guest.connection.inbox) == 3
    guest.read()
    guest.read()
    assert guest.connection.outstanding == 0
    assert len(guest.answers) == limit + 5
    machine.require_consistency()


def test_a_request_is_outstanding_until_its_events_are_read() -> None:
    """XSA-326: a guest that makes others' events waits for them to be read."""
    machine = FakeMachine()
    guest, tool = machine.guest(1), machine.tool()
    tool.ask("WATCH", "/local/domain/1/data", "t")
    tool.take_events()
    for number in range(machine.core.quotas.outstanding + 5):
        guest.send("WRITE", b"data/%d\0v" % number)
        guest.read()
    assert len(guest.answers) == machine.core.quotas.outstanding
    tool.read(1)
    assert len(guest.answers) == machine.core.quotas.outstanding
    tool.read()
    guest.read()
    assert len(guest.answers) == machine.core.quotas.outstanding + 5
    machine.core.disconnect(tool.connection)
    assert guest.connection.outstanding == 0
    machine.require_consistency()


def test_events_that_a_guest_does_not_read_are_dropped_in_time() -> None:
    machine = FakeMachine()
    watcher, writer, tool = machine.guest(1), machine.guest(2), machine.tool()
    tool.write("/shared")
    tool.permit("/shared", "b0")
    watcher.ask("WATCH", "/shared", "t")
    watcher.take_events()
    for number in range(5):
        writer.write(f"/shared/{number}")
    watcher.send("READ", b"data\0")
    assert writer.connection.outstanding == 5
    machine.pass_time(19)
    assert writer.connection.outstanding == 5
    watcher.read(3)
    machine.pass_time(2)
    assert writer.connection.outstanding == 1
    assert watcher.connection.output.dropped == 4
    assert machine.core.next_deadline_ns is None
    watcher.read()
    assert writer.connection.outstanding == 0
    machine.require_consistency()


def test_memory_of_a_guest_is_bounded() -> None:
    machine = FakeMachine()
    machine.core.quotas.memory = 20_000
    guest, tool = machine.guest(1), machine.tool()
    answers = [guest.write(f"data/{number}", "x" * 1000) for number in range(30)]
    assert answers.count(b"OK\0") in range(15, 20)
    assert set(answers) == {b"OK\0", b"ENOSPC"}
    assert machine.core.domains.known[1].memory <= 20_000
    assert guest.ask("WATCH", "data", "t" * 2000) == b"ENOSPC"
    assert guest.permit("data", "n1", *["r0"] * 4) == b"OK\0"
    assert guest.value("data/0") == b"x" * 1000
    assert tool.write("/local/domain/1/data/0", "y" * 1500) == b"OK\0"
    assert guest.ask("RM", "data/1") == b"OK\0"
    assert guest.ask("RM", "data/2") == b"OK\0"
    assert guest.write("data/more", "x" * 100) == b"OK\0"
    machine.require_consistency()


def test_memory_of_transactions_is_the_guests() -> None:
    machine = FakeMachine()
    machine.core.quotas.memory = 50_000
    guest, tool = machine.guest(1), machine.tool()
    for number in range(100):
        tool.write(f"/public/{number}", "x" * 1000)
        tool.permit(f"/public/{number}", "r0")
    looked = 0
    transactions = [guest.start() for _ in range(5)]
    for tx in transactions:
        looked += sum(guest.value(f"/public/{number}", tx=tx) != b"ENOSPC" for number in range(100))
    assert looked < 50
    assert machine.core.domains.known[1].memory <= 50_000
    assert {guest.end(tx) for tx in transactions} == {b"ENOMEM"}
    machine.require_consistency()


def test_much_memory_is_reported_once() -> None:
    machine = FakeMachine()
    machine.core.soft_quotas.memory = 5000
    guest = machine.guest(1)
    for number in range(6):
        guest.write(f"data/{number}", "x" * 1000)
    assert sum("domain 1 holds" in line for line in machine.log) == 1


def test_a_tool_that_does_not_read_is_not_served() -> None:
    machine = FakeMachine()
    tool = machine.tool()
    tool.write("/big", "x" * 4000)
    for _ in range(200):
        tool.send("READ", b"/big\0")
    assert tool.connection.output.size < 300 * 1024
    assert tool.connection.inbox
    tool.read()
    tool.read()
    tool.read()
    tool.read()
    assert len(tool.answers) == 200
    machine.require_consistency()


def test_deadlines_are_said_when_they_come_nearer() -> None:
    machine = FakeMachine()
    calls: list[int | None] = []
    machine.core.on_deadline = lambda: calls.append(machine.core.next_deadline_ns)
    guest = machine.guest(1)
    guest.ask("WATCH", "data", "t")
    assert calls == [20 * 10**9]
    guest.ask("WATCH", "data", "u")
    assert calls == [20 * 10**9]
    machine.pass_time(30)
    assert machine.core.next_deadline_ns is None
