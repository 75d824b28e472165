"""Two domains that are processes of their own: memory by grants, events by bells, no crossing between."""

from pathlib import Path
from threading import Lock

import anyio
import pytest
from pydantic import BaseModel

from dom0.embedding import RunningMachine, running_machine
from dom0.programs import ProgramError
from frontends.console.attach import attached_console
from kernel.kernel import Kernel
from kernel.mapping import GrantError

ROUNDS = 200


class Peer(BaseModel):
    """Who is at the other end."""

    domid: int


async def granter(kernel: Kernel, peer: Peer) -> int:
    """Grants a page, and counts in it in turns with the other domain."""
    page = kernel.pages.allocate()
    word = page.view[:4].cast("I")
    (reference,) = kernel.grants.grant_many(peer.domid, [page.pfn])
    port = kernel.events.alloc_unbound(peer.domid)
    await kernel.store.write("data/offer", f"{reference} {port.port}")
    for turn in range(ROUNDS):
        while word[0] != 2 * turn + 1:
            await port.wait()
        word[0] = 2 * turn + 2
        port.notify()
    while word[0] != 2 * ROUNDS + 1 or kernel.grants.is_mapped(reference):
        await port.wait()
    kernel.grants.end(reference)
    kernel.pages.free(page)
    async with attached_console(kernel) as console:
        console.write(f"counted to {word[0]}\n")
    return 0


async def mapper(kernel: Kernel) -> int:
    """Maps what it is offered, and counts in turns."""
    async with kernel.store.watch("data/offer") as watch:
        async for _ in watch:
            if (offer := await kernel.store.read("data/offer")) != "-":
                break
    domid, reference, remote_port = map(int, offer.split())
    (mapping,) = kernel.grants.map(domid, [reference])
    assert not isinstance(mapping, GrantError), mapping
    port = kernel.events.bind_interdomain(domid, remote_port)
    word = mapping.page[:4].cast("I")
    for turn in range(ROUNDS):
        word[0] = 2 * turn + 1
        port.notify()
        while word[0] != 2 * turn + 2:
            await port.wait()
    word[0] = 2 * ROUNDS + 1
    word.release()
    kernel.grants.unmap([mapping])
    port.notify()
    return 0


async def introduce(machine: RunningMachine, granter_domid: int, mapper_domid: int) -> None:
    """Tell the mapper what the granter offers, as a toolstack would."""
    path = f"/local/domain/{granter_domid}/data/offer"
    async with machine.store.watch(path) as watch:
        async for _ in watch:
            if await machine.store.exists(path):
                break
    offer = await machine.store.read(path)
    await machine.store.write(f"/local/domain/{mapper_domid}/data/offer", f"{granter_domid} {offer}")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("one", "other"), [("process", "process"), ("process", "coroutine"), ("coroutine", "process")]
)
async def test_two_domains_share_a_page(tmp_path: Path, one: str, other: str) -> None:
    async with running_machine(tmp_path) as machine:
        second = await machine.start(mapper, isolation=other)
        await machine.store.write(f"/local/domain/{second.domid}/data/offer", "-")
        await machine.store.set_perms(f"/local/domain/{second.domid}/data/offer", [f"n{second.domid}"])
        first = await machine.start(granter, {"domid": second.domid}, isolation=one)
        with anyio.fail_after(60):
            await introduce(machine, first.domid, second.domid)
            ends = [await second.wait(), await first.wait()]
        assert [(end.outcome, end.exit_code, end.leaks) for end in ends] == [("poweroff", 0, ())] * 2, ends
        assert first.console == f"counted to {2 * ROUNDS + 1}\n"
        assert machine.core.audit() == []


@pytest.mark.anyio
async def test_a_program_that_cannot_be_sent_is_refused(tmp_path: Path) -> None:
    lock = Lock()

    async def program(_kernel: Kernel) -> int:
        with lock:
            return 0

    async with running_machine(tmp_path) as machine:
        with pytest.raises(ProgramError, match="can be sent to a process of its own: cannot pickle"):
            await machine.start(program, isolation="process")
        assert list(machine.core.domains) == [0]
