"""Quotas in transactions: what one may look at, and what holds when it commits."""

from tests.dom0.xenstore.clients import FakeMachine


def test_a_guest_has_a_number_of_transactions() -> None:
    machine = FakeMachine()
    guest = machine.guest(1)
    open_now = [guest.start() for _ in range(machine.core.quotas.transactions)]
    assert guest.ask("TRANSACTION_START", "") == b"ENOSPC"
    assert guest.end(open_now[3]) == b"OK\0"
    assert guest.start() == 11
    machine.require_consistency()


def test_a_request_that_ran_into_a_quota_fails_the_transaction() -> None:
    """XSA-415: what was refused in the middle is not committed in part."""
    machine = FakeMachine()
    guest = machine.guest(1)
    tx = guest.start()
    assert guest.write("data/a", "1", tx=tx) == b"OK\0"
    assert guest.write("data/b", "x" * 3000, tx=tx) == b"ENOSPC"
    assert guest.write("data/c", "1", tx=tx) == b"OK\0"
    machine.require_consistency()
    assert guest.end(tx) == b"ENOMEM"
    assert guest.children("data") == []
    machine.require_consistency()


def test_a_guest_looks_at_a_number_of_nodes_in_a_transaction() -> None:
    machine = FakeMachine()
    guest, tool = machine.guest(1), machine.tool()
    machine.core.quotas.transaction_nodes = 20
    for number in range(30):
        tool.write(f"/local/domain/1/data/{number}")
    tx = guest.start()
    answers = [guest.value(f"data/{number}", tx=tx) for number in range(30)]
    assert answers == [b""] * 20 + [b"ENOSPC"] * 10
    machine.require_consistency()
    assert guest.end(tx) == b"ENOMEM"
    tx = guest.start()
    assert guest.ask("RM", "data", tx=tx) == b"ENOSPC"
    assert guest.end(tx) == b"ENOMEM"
    assert len(guest.children("data")) == 30
    machine.require_consistency()


def test_nodes_are_counted_at_commit_by_owner() -> None:
    """XSA-272, XSA-421: exactly the quota, in and out of transactions, with nodes made and removed again."""
    machine = FakeMachine()
    machine.core.quotas.nodes = 10
    guest = machine.guest(1)  # owns `data`
    tx = guest.start()
    for number in range(5):
        assert guest.write(f"data/t{number}", tx=tx) == b"OK\0"
    assert guest.ask("RM", "data/t4", tx=tx) == b"OK\0"
    for number in range(3):
        assert guest.write(f"data/d{number}") == b"OK\0"
    assert guest.end(tx) == b"EAGAIN"
    tx = guest.start()
    for number in range(6):
        assert guest.write(f"data/d0/{number}", tx=tx) == b"OK\0"
    assert guest.write("data/d0/6", tx=tx) == b"ENOSPC"
    assert guest.end(tx) == b"ENOMEM"
    tx = guest.start()
    assert guest.write("data/d0/a/b/c/d/e/f", tx=tx) == b"OK\0"
    assert guest.end(tx) == b"OK\0"
    assert machine.core.domains.known[1].nodes == 10
    assert guest.write("data/more") == b"ENOSPC"
    assert guest.ask("MKDIR", "data/more/and/more") == b"ENOSPC"
    machine.require_consistency()


def test_quotas_that_others_used_up_meanwhile_hold_at_commit() -> None:
    machine = FakeMachine()
    guest, tool = machine.guest(1), machine.tool()
    machine.core.quotas.nodes = 5
    tx = guest.start()
    for number in range(3):
        guest.write(f"data/{number}", tx=tx)
    tool.write("/elsewhere/a")
    tool.permit("/elsewhere/a", "n1")
    tool.permit("/elsewhere", "n1")
    assert guest.end(tx) == b"ENOSPC"
    assert guest.children("data") == []
    machine.require_consistency()
