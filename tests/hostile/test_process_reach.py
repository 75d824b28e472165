"""What a guest's process can get at: it keeps every descriptor that it is sent, looks at all that it has, and tries.

Its neighbour, in a process of its own, has granted it two pages out of three that lie side by side.
"""

import os
from pathlib import Path

import pytest

from hypervisor.vcpu.process.address_space import AddressSpace
from hypervisor.vcpu.process.platform import ProcessPlatform
from kernel.kernel import Kernel
from kernel.mapping import GrantError
from tests.hostile.reach import beyond, duplicate, held, overwrite, readable, resized, writes
from tests.rig import running_rig
from tests.steps import State

PAGE = 4096
SECRET = bytes(range(200, 232))
AFTERWARDS = bytes(range(100, 132))

pytestmark = pytest.mark.anyio


# The neighbour


async def grant_two_of_three(kernel: Kernel, state: State, domid: int) -> tuple[int, int]:
    """One to be written, one to be read; the one behind each is not granted, and secret."""
    pages = state["pages"] = kernel.pages.allocate(4)
    for index, content in enumerate((b"written", SECRET, b"read", SECRET)):
        pages.page(index)[:] = content.ljust(PAGE, b"\0")
    writable = kernel.grants.grant(domid, pages.pfn)
    readonly = kernel.grants.grant(domid, pages.pfn + 2, readonly=True)
    state["references"] = [writable, readonly]
    return writable, readonly


async def first_bytes(_kernel: Kernel, state: State) -> list[bytes]:
    return [bytes(state["pages"].page(index)[:8]) for index in range(4)]


async def end_and_use_again(kernel: Kernel, state: State) -> None:
    """The pages go back, and others use them."""
    assert kernel.grants.retire(state["references"], state["pages"])
    state["again"] = kernel.pages.allocate(4)
    assert state["again"].pfn == state["pages"].pfn
    for index in range(4):
        state["again"].page(index)[:] = AFTERWARDS * (PAGE // len(AFTERWARDS))


# The hostile one


async def keep_what_it_is_sent(kernel: Kernel, state: State, domid: int, references: tuple[int, int]) -> None:
    """Map both, and keep the descriptors that the platform would have closed."""
    assert isinstance(kernel.platform, ProcessPlatform)
    kept: list[int] = []
    map_page = AddressSpace.map_page

    def keeping(space: AddressSpace, gpfn: int, fd: int, *, writable: bool) -> None:
        kept.append(os.dup(fd))
        map_page(space, gpfn, fd, writable=writable)

    AddressSpace.map_page = keeping  # type: ignore[method-assign]
    mappings = [
        *kernel.grants.map(domid, references[:1]),
        *kernel.grants.map(domid, references[1:], readonly=True),
    ]
    assert not any(isinstance(mapping, GrantError) for mapping in mappings)
    state["kept"], state["mappings"] = kept, mappings
    base = kernel.platform._connection.space._base
    state["addresses"] = [base + mapping.pfn * PAGE for mapping in mappings]


async def try_everything(_kernel: Kernel, state: State) -> dict[str, object]:
    found: dict[str, object] = {}
    contents = held()
    found["sizes of what it was sent"] = [os.fstat(fd).st_size for fd in state["kept"]]
    found["secret behind a descriptor"] = [fd for fd, content in contents.items() if SECRET in content]
    found["its grants behind descriptors"] = sorted(contents[fd][:4] for fd in state["kept"])
    found["beyond the page"] = sorted({page for address in state["addresses"] for page in beyond(address)})
    found["wrote to the read-only page"] = writes(state["kept"][1])
    found["changed its size"] = [fd for fd in state["kept"] for size in (0, PAGE * 2) if resized(fd, size)]
    state["copies"] = [duplicate(address) for address in state["addresses"]]
    state["mappings"][0].page[:8] = b"by guest"
    return found


async def unmap_and_keep_copies(kernel: Kernel, state: State) -> None:
    kernel.grants.unmap(state["mappings"])


async def look_at_copies(_kernel: Kernel, state: State) -> list[bytes]:
    seen = [readable(address) for address in state["copies"]]
    seen += [os.pread(fd, PAGE, 0) for fd in state["kept"]]
    overwrite(state["copies"][0])
    return [content for content in seen if AFTERWARDS in content]


async def test_a_process_gets_at_what_was_granted_and_no_more(
    tmp_path: Path, quick_fork_servers: None
) -> None:
    async with (
        running_rig(tmp_path, isolation="process") as rig,
        rig.guest(name="neighbour") as neighbour,
        rig.guest(name="hostile") as hostile,
    ):
        references = await neighbour.run(grant_two_of_three, hostile.domid)
        await hostile.run(keep_what_it_is_sent, neighbour.domid, references)
        found = await hostile.run(try_everything)
        assert found == {
            "sizes of what it was sent": [PAGE, PAGE],
            "secret behind a descriptor": [],
            "its grants behind descriptors": [b"read", b"writ"],
            "beyond the page": [b""],
            "wrote to the read-only page": [],
            "changed its size": [],
        }
        assert await neighbour.run(first_bytes) == [b"by guest", SECRET[:8], b"read\0\0\0\0", SECRET[:8]]
        # What it kept is of no use any more when the grants have ended.
        await hostile.run(unmap_and_keep_copies)
        await neighbour.run(end_and_use_again)
        assert await hostile.run(look_at_copies) == []
        assert await neighbour.run(_all_as_it_was)
        assert rig.machine.audit() == []


async def _all_as_it_was(_kernel: Kernel, state: State) -> bool:
    return bytes(state["again"].view) == AFTERWARDS * (4 * PAGE // len(AFTERWARDS))
