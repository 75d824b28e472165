"""The client against the real daemon: what it does."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from kernel.xenstore import StoreError, Transaction
from tests.kernel.guests import RunningMachine, running_machine
from tests.kernel.xenstore.daemons import limited_tasks

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def machine() -> AsyncIterator[RunningMachine]:
    with anyio.fail_after(10):
        async with running_machine() as found:
            yield found


async def test_nodes(anyio_backend: str) -> None:
    async with machine() as world:
        store = world.dom0.store
        await store.write("/t/a", "text ü")
        await store.write("/t/b", b"\x00\xff\x00")
        await store.mkdir("/t/c")
        assert await store.read("/t/a") == "text ü"
        assert await store.read_bytes("/t/b") == b"\x00\xff\x00"
        assert (await store.read("/t/b")).encode("utf-8", "surrogateescape") == b"\x00\xff\x00"
        assert await store.read("/t/c") == ""
        assert sorted(await store.directory("/t")) == ["a", "b", "c"]
        assert await store.read_many(["/t/a", "/t/x", "/t/c"]) == ["text ü", None, ""]
        assert await store.exists("/t/a")
        await store.rm("/t/a")
        assert not await store.exists("/t/a")
        await store.set_perms("/t/b", ["n0", "r5"])
        assert await store.get_perms("/t/b") == ["n0", "r5"]
        with pytest.raises(StoreError) as caught:
            await store.read("/t/a")
        assert (caught.value.name, caught.value.op, caught.value.path) == ("ENOENT", "READ", "/t/a")
        with pytest.raises(StoreError, match="EINVAL"):
            await store.read("/t//a")


async def test_long_lists(anyio_backend: str) -> None:
    async with machine() as world:
        store = world.dom0.store
        names = {f"{'n' * 60}-{number:03}" for number in range(200)}
        await store.write_many(dict.fromkeys((f"/many/{name}" for name in names), ""))
        assert set(await store.directory("/many")) == names


async def test_values_of_the_largest_size(anyio_backend: str) -> None:
    async with machine() as world:
        store = world.dom0.store
        value = bytes(range(256)) * 15
        await store.write("/big", value)
        assert await store.read_bytes("/big") == value


async def test_write_many_tells_of_a_failure_after_all_were_answered(anyio_backend: str) -> None:
    async with machine() as world:
        store = world.dom0.store
        with pytest.raises(StoreError, match="EINVAL"):
            await store.write_many({"/w/1": "a", "/w//": "b", "/w/2": "c"})
        assert await store.read_many(["/w/1", "/w/2"]) == ["a", "c"]


async def test_transactions_take_effect_together_or_not(anyio_backend: str) -> None:
    async with machine() as world:
        store = world.dom0.store
        await store.write("/n", "0")

        async def increment(transaction: Transaction) -> int:
            value = int(await transaction.read("/n")) + 1
            await transaction.write("/n", str(value))
            return value

        results: list[int] = []

        async def worker() -> None:
            results.extend([await store.transact(increment) for _ in range(5)])

        async with limited_tasks() as tasks:
            for _ in range(4):
                tasks.start_soon(worker)
        assert await store.read("/n") == "20"
        assert sorted(results) == list(range(1, 21))

        async def fail(transaction: Transaction) -> None:
            await transaction.write("/n", "lost")
            raise LookupError

        with pytest.raises(LookupError):
            await store.transact(fail)
        assert await store.read("/n") == "20"


async def test_two_domains_and_their_permissions(anyio_backend: str) -> None:
    async with machine() as world:
        domid, guest = await world.boot_guest()
        await guest.store.write("data/word", "hello")
        assert await world.dom0.store.read(f"/local/domain/{domid}/data/word") == "hello"
        with pytest.raises(StoreError, match="EACCES"):
            await guest.store.write("/local/domain/0/name", "mine")
        with pytest.raises(StoreError, match="EACCES"):
            await guest.store.introduce(5, 1, 1)
        assert await world.dom0.store.is_introduced(domid)
        assert not await world.dom0.store.is_introduced(4000)
        assert await guest.store.domain_path(domid) == f"/local/domain/{domid}"


async def test_releasing_a_domain(anyio_backend: str) -> None:
    async with machine() as world:
        domid, _ = await world.boot_guest()
        await world.dom0.store.release(domid)
        assert not await world.dom0.store.is_introduced(domid)


async def test_watches_see_what_happens_below_them(anyio_backend: str) -> None:
    async with machine() as world:
        store = world.dom0.store
        async with store.watch("/w") as watch:
            assert await watch.batch() == ["/w"]
            await store.write("/w/a", "1")
            await store.write("/w/a", "2")
            await store.write("/elsewhere", "x")
            await store.write("/w/b/c", "3")
            seen: set[str] = set()
            async for path in watch:
                seen.add(path)
                if seen >= {"/w/a", "/w/b/c"}:
                    break
            assert "/elsewhere" not in seen
        await store.write("/w/a", "4")
        await store.read("/w/a")
        assert all(found.path != "/w" for found in store._watches.values())


async def test_relative_watches_give_relative_paths(anyio_backend: str) -> None:
    async with machine() as world:
        domid, guest = await world.boot_guest()
        async with guest.store.watch("data") as watch:
            await watch.batch()
            await world.dom0.store.write(f"/local/domain/{domid}/data/x", "1")
            assert await watch.batch() == ["data/x"]


async def test_a_callback_is_called_for_each_event(anyio_backend: str) -> None:
    async with machine() as world:
        store = world.dom0.store
        calls: list[bool] = []
        async with store.watch("/w", lambda: calls.append(True)):
            await store.write("/w", "1")
            await store.write("/w", "2")
            await store.read("/w")
        assert len(calls) == 3
