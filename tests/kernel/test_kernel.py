"""Booting: what it costs, what it finds, where its words go."""

import anyio
import pytest
from anyio.lowlevel import checkpoint

from hypervisor.abi.hvm_params import HVM_PARAM_CONSOLE_PFN, HVM_PARAM_STORE_PFN
from kernel.console import MAX_WRITE_BYTES, HypervisorConsole
from kernel.kernel import Kernel
from tests.kernel.guests import BareKernel, BarePlatform, StillHost, bare_machine, running_machine

pytestmark = pytest.mark.anyio


async def test_booting_is_one_multicall(anyio_backend: str) -> None:
    with anyio.fail_after(10):
        async with running_machine() as world:
            domid, guest = await world.boot_guest()
            counters = world.machine.domain(domid).counters
            assert (counters.multicall_batches, counters.multicall_entries) == (1, 5)
            assert guest.store_ring.port != guest.console_ring.port if guest.console_ring else False
            assert guest.grants.ledger is not None
            assert len(guest.grants.ledger) == 0


async def test_a_kernel_that_finds_no_store_makes_its_ring_itself(anyio_backend: str) -> None:
    """The initial domain: the daemon is a program of its own, and binds to the port that the kernel holds
    open.
    """
    with anyio.fail_after(10):
        async with running_machine() as world:
            assert world.dom0.console_ring is None
            assert world.dom0.store_ring.pfn < world.dom0.platform.nr_pages
            assert await world.dom0.store.domain_path(0) == "/local/domain/0"


async def test_pages_of_the_toolstack_are_not_given_out(anyio_backend: str) -> None:
    machine = bare_machine()
    dom0, guest = BareKernel(machine), BarePlatform(machine, pages=32)
    domid = guest.domain.domid
    dom0.hypercalls.hvm_set_param(HVM_PARAM_STORE_PFN, 30, domid)
    dom0.hypercalls.hvm_set_param(HVM_PARAM_CONSOLE_PFN, 31, domid)
    kernel = Kernel(guest)
    assert kernel.console_ring is not None
    taken = set()
    while kernel.pages.free_pages:
        taken.add(kernel.pages.allocate().pfn)
    assert taken
    assert taken.isdisjoint({kernel.store_ring.pfn, kernel.console_ring.pfn})


async def test_requests_of_before_the_daemon_wait_for_it(anyio_backend: str) -> None:
    kernel = Kernel(BareKernel(bare_machine()).platform)
    with anyio.move_on_after(0.001) as scope:
        await kernel.store.read("early")
    assert scope.cancelled_caught
    assert kernel.store.in_flight == 1
    assert kernel.store.broken is None


async def test_a_driver_that_fails_in_its_upcall_is_named(anyio_backend: str) -> None:
    with anyio.fail_after(10):
        async with running_machine() as world:
            domid, guest = await world.boot_guest()
            theirs = world.dom0.events.alloc_unbound(domid)
            ours = guest.events.bind_interdomain(0, theirs.port)

            def fail() -> None:
                raise RuntimeError("no such ring")

            ours.on_event = fail
            theirs.notify()
            while domid not in world.console:
                await checkpoint()
            assert world.console[domid] == f"event port {ours.port} closed: RuntimeError: no such ring\n"
            await guest.store.write("data/alive", "1")


async def test_tasks_end_with_the_kernel(anyio_backend: str) -> None:
    ended: list[str] = []

    async def background() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append("background")

    async def program(kernel: Kernel) -> None:
        kernel.tasks.start_soon(background)
        await checkpoint()

    with anyio.fail_after(10):
        async with running_machine() as world:
            domid = await world.create_guest(program)
            await world.ended(domid)
            assert ended == ["background"]


async def test_the_hypervisors_console_takes_any_text(anyio_backend: str) -> None:
    kernel = BareKernel(bare_machine())
    console = HypervisorConsole(kernel.hypercalls)
    console.write("ü" + "x" * (2 * MAX_WRITE_BYTES))
    console.write(b"\xff\x00")
    console.write("\udcff")
    host = kernel.platform.machine.host
    assert isinstance(host, StillHost)
    written = b"".join(host.console_output)
    assert written.startswith("ü".encode())
    assert len(written) >= MAX_WRITE_BYTES
    kernel.platform.domain.crash()
    console.write("into the void")
