"""Guests that send anything: nobody else's nodes change, nobody else waits, and the store adds up."""

from random import Random

import pytest

from dom0.xenstore.output import Output
from ringbuffers.protocols.xs_wire import HEADER
from tests.dom0.xenstore.clients import Client, FakeMachine

REQUESTS = 20_000
PATHS = b"/ data data/a data/a/b data//x /local/domain/0 /local/domain/2/data /tool".split()
WORDS = [
    *PATHS,
    *b"@releaseDomain @introduceDomain @x n1 b0 r2 T F 0 1 2 77 -1 4294967296 token check".split(),
    *[b"", b"x" * 300, b"x" * 3000, b"/a" * 1000, b"data" + b"/d" * 300, b"\xff\xfe"],
]


def random_payload(random: Random) -> bytes:
    match random.randrange(8):
        case 0:
            return random.randbytes(random.randrange(64))
        case 1:
            return b"\0".join(random.choices(WORDS, k=random.randrange(4)))[:4096]
        case _:
            words = random.choices(WORDS, k=random.randrange(1, 4))
            return b"".join(word + b"\0" for word in words)[:4096]


def state_of_others(machine: FakeMachine) -> dict[bytes, tuple[bytes, bytes, list[bytes]]]:
    """All nodes but those at home of domain 1."""
    return {
        path: (node.value, node.permissions.wire, list(node.children))
        for path, node in machine.core.store.nodes.items()
        if not path.startswith(b"/local/domain/1")
    }


@pytest.mark.parametrize("seed", range(3))
def test_random_requests(seed: int) -> None:
    random = Random(seed)
    machine = FakeMachine()
    guest, other, tool = machine.guest(1), machine.guest(2), machine.tool()
    tool.write("/secret", "x")
    other.write("data/mine", "y")
    other.ask("WATCH", "data", "t")
    other.take_events()
    before = state_of_others(machine)
    connection = guest.connection
    for number in range(REQUESTS):
        payload = random_payload(random)
        tx = random.choice([0, 0, 0, *connection.transactions, random.randrange(2**32)])
        kind = random.choice([*range(24), 2, 11, 12, 13, 14, 4, 6, random.randrange(2**32)])
        machine.core.receive(connection, HEADER.pack(kind, number % 2**32, tx, len(payload)) + payload)
        machine.serve()
        if random.random() < 0.9:
            connection.output.take(1 << 20)
            connection.relieved()
            machine.serve()
        if number % 1000 == 0:
            machine.require_consistency()
            assert len(connection.inbox) < 1000
    assert machine.log == []
    assert not other.take_events()
    assert state_of_others(machine) == before
    assert machine.core.domains.known[1].memory < 4 << 20
    machine.require_consistency()
    assert other.value("data/mine") == b"y"
    machine.destroy(1)
    machine.require_consistency()


@pytest.mark.parametrize("seed", range(20))
def test_random_streams(seed: int) -> None:
    """Bytes that are no messages: the connection is given up, once, and everybody else is served."""
    random = Random(seed)
    machine = FakeMachine()
    guest, tool = machine.guest(1), machine.tool()
    for _ in range(50):
        machine.core.receive(guest.connection, random.randbytes(random.randrange(1, 1024)))
        machine.serve()
        assert tool.value("/tool") == b""
    assert len(machine.log) <= 1
    machine.require_consistency()


def flood(guest: Client, kind: str, payload: bytes, count: int) -> None:
    for _ in range(count):
        guest.send(kind, payload)


def test_memory_stays_flat_while_a_guest_reads_nothing() -> None:
    """XSA-326, XSA-416: big answers, events and transactions that are never taken."""
    machine = FakeMachine()
    guest, tool = machine.guest(1), machine.tool()
    for number in range(300):
        tool.write(f"/local/domain/1/data/{number:06}", "x" * 1000)
    for number in range(128):
        guest.ask("WATCH", "data", f"token{number}")
    for number in range(1000):
        tool.write(f"/local/domain/1/data/{number % 300:06}", "y" * 1000)
    most = guest.connection.output.size
    assert most <= 128 * 300 * 60
    flood(guest, "DIRECTORY", b"data\0", 500)
    assert len(guest.connection.inbox) <= 500
    assert guest.connection.outstanding <= 20
    assert guest.connection.output.size <= most + 20 * 4200
    for number in range(1000):
        tool.write(f"/local/domain/1/data/{number % 300:06}", "z" * 1000)
    assert guest.connection.output.size <= most + 20 * 4200
    machine.pass_time(60)
    assert guest.connection.output.size <= 20 * 4200
    machine.require_consistency()


def test_watches_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """XSA-330: nothing is left of what was reset."""
    machine = FakeMachine()
    guest = machine.guest(1)
    memory = machine.core.domains.known[1].memory
    for _ in range(50):
        for number in range(machine.core.quotas.watches):
            assert guest.ask("WATCH", "data", str(number)) == b"OK\0"
        assert guest.ask("RESET_WATCHES", "") == b"OK\0"
    assert machine.core.domains.known[1].memory == memory
    guest.take_events()
    guest.write("data", "x")
    assert guest.take_events() == []


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("limit", range(1, 12))
def test_deep_creation_that_runs_into_a_quota_at_any_level(limit: int, within: bool) -> None:
    """XSA-414, XSA-415, XSA-421: all or nothing, and the counters say so."""
    machine = FakeMachine()
    guest = machine.guest(1)
    machine.core.quotas.nodes = limit
    tx = guest.start() if within else 0
    first = guest.ask("WRITE", "data/a/b/c/d", value=b"v", tx=tx)
    second = guest.ask("MKDIR", "data/x/y/z/w", tx=tx)
    assert (first, second) == (
        b"OK\0" if limit >= 5 else b"ENOSPC",
        b"OK\0" if limit >= 9 else b"ENOSPC",
    )
    machine.require_consistency()
    if within:
        assert guest.end(tx) == (b"OK\0" if limit >= 9 else b"ENOMEM")
    expected = {b"a", b"x"} if limit >= 9 else {b"a"} if limit >= 5 and not within else set()
    assert set(machine.core.store.nodes[b"/local/domain/1/data"].children) == expected
    machine.require_consistency()


@pytest.mark.parametrize("limit", range(100, 3000, 97))
def test_memory_that_runs_out_at_any_point(limit: int) -> None:
    machine = FakeMachine()
    guest = machine.guest(1)
    machine.core.quotas.memory = limit
    tx = guest.start()
    answers = [guest.write(f"data/{n}/{n}/{n}", "x" * 100, tx=tx) for n in range(8)]
    machine.require_consistency()
    assert guest.end(tx) == (b"OK\0" if set(answers) == {b"OK\0"} else b"ENOMEM")
    machine.require_consistency()
    assert machine.core.domains.known[1].memory <= max(limit, 100)


def test_removing_a_wide_and_deep_tree_of_many_owners() -> None:
    machine = FakeMachine()
    tool, one, two = machine.tool(), machine.guest(1), machine.guest(2)
    tool.write("/shared")
    tool.permit("/shared", "b0")
    for number in range(150):
        one.write(f"/shared/one/{number}/a/b")
        tool.permit("/shared/one", "b1")
        two.write(f"/shared/one/{number}/two/{number}")
    machine.require_consistency()
    assert one.ask("RM", "/shared/one") == b"OK\0"
    assert tool.children("/shared") == []
    assert machine.core.domains.known[2].nodes == 1
    machine.require_consistency()


def test_the_root_is_not_for_guests() -> None:
    """XSA-353."""
    machine = FakeMachine()
    guest = machine.guest(1)
    before = dict(machine.core.store.nodes)
    for kind, rest in [
        ("READ", ()),
        ("WRITE", ("x",)),
        ("MKDIR", ()),
        ("RM", ()),
        ("DIRECTORY", ()),
        ("GET_PERMS", ()),
        ("SET_PERMS", ("n1",)),
        ("DIRECTORY_PART", ("0",)),
    ]:
        assert guest.ask(kind, "/", *rest) == b"EACCES", kind
    assert machine.core.store.nodes == before


def test_an_output_that_nobody_takes_is_bounded_for_control_domains_too() -> None:
    machine = FakeMachine()
    tool = machine.tool()
    tool.write("/big", "x" * 4000)
    flood(tool, "READ", b"/big\0", 300)
    assert isinstance(tool.connection.output, Output)
    assert tool.connection.output.size < 300 * 1024


def test_events_for_a_stuck_tool_hold_up_only_who_causes_them() -> None:
    machine = FakeMachine()
    stuck, busy, calm = machine.tool(), machine.guest(1), machine.guest(2)
    stuck.ask("WATCH", "/", "t")
    for number in range(200):
        busy.send("WRITE", b"data/%d\0v" % number)
        busy.connection.output.take(1 << 20)
    assert stuck.connection.output.size < 21 * 100
    assert calm.value("data") == b""
    machine.core.disconnect(stuck.connection)
    for _ in range(200):
        busy.read()
    assert not busy.connection.inbox
    machine.require_consistency()
