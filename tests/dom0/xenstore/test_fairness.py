"""XSA-206: whoever writes all the time cannot keep others' transactions from committing."""

from dom0.xenstore.fairness import HOLD_FOR_CONTROL_NS, HOLD_FOR_GUEST_NS
from tests.dom0.xenstore.clients import SECOND, Client, FakeMachine


def spoil(machine: FakeMachine, victim: Client, culprit: Client, path: str = "/shared") -> None:
    """One transaction of the victim that the culprit lets fail."""
    tx = victim.start()
    victim.value(path, tx=tx)
    assert culprit.write(path, "spoilt") == b"OK\0"
    assert victim.end(tx) == b"EAGAIN"


def shared(*guests: int) -> tuple[FakeMachine, Client, list[Client]]:
    machine = FakeMachine()
    tool = machine.tool()
    clients = [machine.guest(domid) for domid in guests]
    tool.write("/shared", "0")
    tool.permit("/shared", "b0")
    return machine, tool, clients


def is_held(client: Client) -> bool:
    return bool(client.connection.holds)


def test_who_spoilt_a_transaction_waits_for_the_next_one() -> None:
    machine, tool, (guest, other) = shared(1, 2)
    spoil(machine, tool, guest)
    guest.send("WRITE", b"/shared\0again")
    assert other.write("/shared", "the other may") == b"OK\0"
    tx = tool.start()
    assert tool.value("/shared", tx=tx) == b"the other may"
    assert tool.write("/shared", "mine", tx=tx) == b"OK\0"
    assert tool.end(tx) == b"OK\0"
    assert tool.value("/shared") == b"again"
    guest.read()
    assert len(guest.answers) == 1


def test_only_a_transaction_that_looked_there_sets_it_free() -> None:
    machine, tool, (guest,) = shared(1)
    spoil(machine, tool, guest)
    tx = tool.start()
    tool.value("/tool", tx=tx)
    assert tool.end(tx) == b"OK\0"
    assert is_held(guest)
    tx = tool.start()
    tool.value("/shared", tx=tx)
    assert tool.end(tx, "F") == b"OK\0"
    assert not is_held(guest)


def test_nobody_waits_for_ever() -> None:
    machine, tool, (guest,) = shared(1)
    spoil(machine, tool, guest)
    guest.send("READ", b"data\0")
    machine.pass_time(HOLD_FOR_CONTROL_NS / SECOND / 2)
    guest.read()
    assert not guest.answers
    machine.pass_time(HOLD_FOR_CONTROL_NS / SECOND / 2)
    guest.read()
    assert len(guest.answers) == 1
    assert not is_held(guest)


def test_a_victim_that_goes_away_is_waited_for_no_more() -> None:
    machine, tool, (guest,) = shared(1)
    spoil(machine, tool, guest)
    machine.core.disconnect(tool.connection)
    assert not is_held(guest)
    machine.require_consistency()


def test_a_culprit_that_goes_away_leaves_nothing() -> None:
    machine, tool, (guest,) = shared(1)
    spoil(machine, tool, guest)
    machine.destroy(1)
    assert not tool.connection.holding


def test_a_culprit_does_not_free_itself() -> None:
    machine, tool, (guest,) = shared(1)
    tx = guest.start()
    spoil(machine, tool, guest)
    guest.send("RESET_WATCHES", b"\0")
    guest.send("TRANSACTION_END", b"F\0", tx)
    assert is_held(guest)


def test_control_domains_wait_for_nobody() -> None:
    machine, tool, (guest,) = shared(1)
    spoil(machine, guest, tool)
    assert not is_held(tool)
    spoil(machine, tool, machine.tool())


def test_own_writes_hold_nobody() -> None:
    machine, _, (guest,) = shared(1)
    spoil(machine, guest, guest)
    assert not is_held(guest)


def test_a_guest_cannot_use_it_as_a_weapon() -> None:
    """Whoever made another wait cannot do so again for ten times as long."""
    machine, _, (victim, culprit) = shared(1, 2)
    waited = 0
    for _ in range(1000):
        if is_held(culprit):
            waited += 1
        elif not victim.connection.transactions:
            tx = victim.start()
            victim.value("/shared", tx=tx)
            culprit.write("/shared", "x")
            assert victim.end(tx) == b"EAGAIN"
        machine.pass_time(0.01)
    assert 0 < waited <= 1000 // 8
    assert machine.now >= 100 * HOLD_FOR_GUEST_NS


def test_pardons_do_not_pile_up() -> None:
    machine, _, (victim, culprit) = shared(1, 2)
    spoil(machine, victim, culprit)
    machine.pass_time(10)
    machine.pass_time(2)
    assert not culprit.connection.pardons
    assert not culprit.connection.holds


def test_the_toolstack_commits_within_one_try_more_than_there_are_guests_that_disturb() -> None:
    machine, tool, guests = shared(1, 2, 3, 4, 5)
    for guest in guests:
        guest.send("WRITE", b"/shared\0x")
    tries = 0
    while tries < 20:
        tries += 1
        tx = tool.start()
        tool.value("/shared", tx=tx)
        for number in range(100):
            tool.write(f"/toolstack/{number}", "x", tx=tx)
            for guest in guests:
                if len(guest.connection.inbox) < 3:
                    guest.send("WRITE", b"/shared\0x")
                    guest.connection.output.take(1000)
        if tool.end(tx) == b"OK\0":
            break
    assert tries <= len(guests) + 1
    machine.require_consistency()
