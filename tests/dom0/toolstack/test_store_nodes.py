"""Writing and removing descriptions."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from dom0.embedding import RunningMachine, running_machine
from dom0.toolstack.layout import Node
from dom0.toolstack.store_nodes import remove_tree, write_nodes
from kernel.xenstore.transaction import Transaction
from tests.dom0.stores import dumped

pytestmark = pytest.mark.anyio


async def removed(machine: RunningMachine, path: str) -> set[str]:
    """The nodes that removing `path` has removed."""
    before = await dumped(machine.store)
    remove: Callable[[Transaction], Awaitable[None]] = lambda transaction: remove_tree(transaction, path)  # noqa: E731
    await machine.store.transact(remove)
    return before.keys() - (await dumped(machine.store)).keys()


async def test_what_follows_below_a_node_inherits_its_permissions(tmp_path: Path) -> None:
    async with running_machine(tmp_path) as machine:
        readable, writable = ("n0", "r1"), ("n0", "w2")
        nodes = [
            Node("/t", permissions=readable),
            Node("/t/a", "x"),
            Node("/t/b", "y", writable),
            Node("/t/b/c", "z"),
        ]
        await machine.store.transact(lambda transaction: write_nodes(transaction, nodes))
        assert await dumped(machine.store, "/t") == {
            "/t/a": ("x", "n0,r1"),
            "/t/b": ("y", "n0,w2"),
            "/t/b/c": ("z", "n0,w2"),
        }


async def test_parents_that_are_left_empty_go_too_but_for_those_of_domains(tmp_path: Path) -> None:
    async with running_machine(tmp_path) as machine:
        for path in (
            "/local/domain/0/backend/vbd/1/51712/state",
            "/local/domain/0/backend/vbd/1/51728/state",
            "/libxl/1/device/vbd/51712/x",
            "/vm/uuid/name",
        ):
            await machine.store.write(path, "1")
        backend = "/local/domain/0/backend"
        assert await removed(machine, f"{backend}/vbd/1/51712") == {
            f"{backend}/vbd/1/51712",
            f"{backend}/vbd/1/51712/state",
        }
        assert await removed(machine, f"{backend}/vbd/1/51728") == {
            backend,
            f"{backend}/vbd",
            f"{backend}/vbd/1",
            f"{backend}/vbd/1/51728",
            f"{backend}/vbd/1/51728/state",
        }
        assert await removed(machine, "/libxl/1/device/vbd/51712") == {
            "/libxl/1/device",
            "/libxl/1/device/vbd",
            "/libxl/1/device/vbd/51712",
            "/libxl/1/device/vbd/51712/x",
        }
        assert await removed(machine, "/libxl/1") == {"/libxl/1"}
        assert await removed(machine, "/vm/uuid") == {"/vm/uuid", "/vm/uuid/name"}


async def test_what_is_not_there_is_removed(tmp_path: Path) -> None:
    async with running_machine(tmp_path) as machine:
        for path in ("/nowhere", "/nowhere/at/all", "/local/domain/0/backend/vbd/7/1"):
            assert await removed(machine, path) == set()
