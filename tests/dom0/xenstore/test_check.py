"""CONTROL check finds what is wrong; else it would prove nothing in all other tests."""

from collections.abc import Callable

import pytest

from dom0.xenstore.check import problems
from dom0.xenstore.core import XenStore
from tests.dom0.xenstore.clients import FakeMachine


def lose_node(core: XenStore) -> None:
    del core.store.nodes[b"/a/b"]


def lose_name(core: XenStore) -> None:
    core.store.nodes[b"/a"].drop_child(b"b")


def miscount_names(core: XenStore) -> None:
    core.store.nodes[b"/a"].children_size += 1


def miscount_nodes(core: XenStore) -> None:
    core.domains.known[1].nodes += 1


def miscount_memory(core: XenStore) -> None:
    core.domains.known[1].memory -= 1


def forget_owned(core: XenStore) -> None:
    core.domains.known[1].owned.popitem()


def own_by_the_dead(core: XenStore) -> None:
    core.domains.known[1].alive = False


def forget_reader(core: XenStore) -> None:
    core.store.readers.clear()


def keep_reader(core: XenStore) -> None:
    for connection in core.connections:
        connection.transactions.clear()


@pytest.mark.parametrize(
    "damage",
    [
        lose_node,
        lose_name,
        miscount_names,
        miscount_nodes,
        miscount_memory,
        forget_owned,
        own_by_the_dead,
        forget_reader,
        keep_reader,
    ],
)
def test_damage_is_found(damage: Callable[[XenStore], None]) -> None:
    machine = FakeMachine()
    tool, guest = machine.tool(), machine.guest(1)
    tool.write("/a/b")
    guest.write("data/x", "v")
    tx = tool.start()
    tool.value("/a/b", tx=tx)
    assert problems(machine.core) == []
    damage(machine.core)
    assert problems(machine.core) != []
    other = machine.tool()
    machine.log.clear()
    assert other.ask("CONTROL", "check") == b"OK\0"
    assert len(machine.log) > 2
