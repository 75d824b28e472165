"""A store is held to what it said at opening, and one that says nonsense is closed again."""

from typing import Any

import pytest
from pydantic import ByteSize

from backends.block.memory import MemoryStore, MemoryStoreConfig
from backends.block.opened import OpenedStore
from backends.contract import Capabilities
from backends.errors import BrokenStore
from tests.backends.block.stores import GatedStore

MIB = 1 << 20

pytestmark = pytest.mark.anyio


class Odd(MemoryStore):
    """Says what the test wants of itself."""

    said: dict[str, Any]
    closed = False

    def open(self) -> None:
        super().open()
        for name, value in self.said.items():
            setattr(self, name, value)

    def close(self) -> None:
        self.closed = True
        super().close()


def odd(**said: Any) -> Odd:
    store = Odd(MemoryStoreConfig(size=ByteSize(MIB)))
    store.said = said
    return store


@pytest.mark.parametrize(
    "said",
    [
        {"sector_size": 0},
        {"sector_size": 513},
        {"sector_size": 8192},
        {"sector_size": 4096, "physical_sector_size": 512},
        {"physical_sector_size": 1000},
        {"physical_sector_size": 0},
        {"sectors": 0},
        {"sectors": -8},
        {"sectors": 9, "sector_size": 4096, "physical_sector_size": 4096},
        {"capabilities": Capabilities(discard=True, discard_granularity=100)},
        {"capabilities": Capabilities(discard=True, discard_granularity=0)},
    ],
    ids=str,
)
async def test_nonsense_is_refused_and_the_store_closed(said: dict[str, Any]) -> None:
    store = odd(**said)
    with pytest.raises(BrokenStore, match="breaks the contract") as refused:
        await OpenedStore.open(store)
    assert refused.value.store is Odd
    assert store.closed


async def test_a_read_only_store_offers_nothing_whatever_it_says() -> None:
    store = odd(capabilities=Capabilities(flush=True, discard=True), read_only=True)
    disk = await OpenedStore.open(store)
    assert disk.read_only
    assert disk.capabilities == Capabilities()


async def test_what_waits_is_asked_once() -> None:
    gated = await OpenedStore.open(GatedStore(MemoryStoreConfig(size=ByteSize(MIB))))
    assert gated.waits == {"read", "write", "flush"}
    plain = await OpenedStore.open(MemoryStore(MemoryStoreConfig(size=ByteSize(MIB))))
    assert plain.waits == frozenset()


async def test_a_new_size() -> None:
    store = odd()
    disk = await OpenedStore.open(store)
    assert not await disk.refresh()
    store.sectors = 4096
    assert await disk.refresh()
    assert disk.sectors == 4096
    store.sectors = 0
    with pytest.raises(BrokenStore):
        await disk.refresh()
    assert disk.sectors == 4096
