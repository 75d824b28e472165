"""The domain builder: what it makes, and that nothing is left of what it could not finish."""

import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from dom0.embedding import RunningMachine, running_machine
from dom0.toolstack.builder import CONSOLE_GFN, MAX_PAGES, SCRATCH_GFN, STORE_GFN, build_domain
from dom0.toolstack.errors import BadMemorySize, BuildError, ForeignMapRefused, OutOfMachineMemory
from hypervisor.abi.errno import XEN_EINVAL, XEN_ENOMEM
from hypervisor.abi.grant_table import GTF_permit_access, grant_entry_v1
from hypervisor.abi.hvm_params import (
    HVM_PARAM_CONSOLE_EVTCHN,
    HVM_PARAM_CONSOLE_PFN,
    HVM_PARAM_STORE_EVTCHN,
    HVM_PARAM_STORE_PFN,
)
from hypervisor.abi.memory import XENMEM_remove_from_physmap
from hypervisor.abi.xen import HYPERVISOR_memory_op
from hypervisor.continuation import Continuation
from hypervisor.lifecycle import Life
from hypervisor.vcpu.coroutine import CoroutineVcpu, GuestPages
from kernel.hypercalls import HypercallOutOfMemory
from kernel.platform import PAGE_SIZE

pytestmark = pytest.mark.anyio

MIB = 1 << 20
UUID = uuid.UUID(int=5)

Enter = Callable[..., object]


class Refusing:
    """Stands before the hypervisor and refuses one of dom0's hypercalls, by its place in the order.

    A call that goes on in a continuation counts once: how many slices it takes depends on the time.
    """

    def __init__(self, machine: RunningMachine) -> None:
        platform = machine.services.kernel.platform
        assert isinstance(platform, CoroutineVcpu)
        self._platform = platform
        self._enter: Enter = platform._enter
        self.calls: list[tuple[int, tuple[int, ...]]] = []

    def arm(self, place: int, errno: int = XEN_ENOMEM) -> None:
        """Refuse the call with that place from now on, counted from 0; -1: none."""
        self.calls.clear()
        result: object = None

        def enter(vcpu: object, number: int, args: tuple[int, ...]) -> object:
            nonlocal result
            if not isinstance(result, Continuation):
                self.calls.append((number, args))
                if len(self.calls) == place + 1:
                    return -errno
            result = self._enter(vcpu, number, args)
            return result

        self._platform._enter = enter  # type: ignore[assignment]

    def disarm(self) -> None:
        self._platform._enter = self._enter  # type: ignore[assignment]


def free_pages(machine: RunningMachine) -> int:
    return machine.services.kernel.hypercalls.physinfo().free_pages


@pytest.mark.parametrize("pages", [1, 7, 1024, 1025, 512 * 3 + 17, 512 * 513 + 3])
async def test_ram_begins_at_frame_0_without_a_gap(pages: int, tmp_path: Path) -> None:
    async with running_machine(tmp_path, memory="4GiB") as machine:
        built = build_domain(machine.services.kernel, "g", UUID.bytes, pages * PAGE_SIZE)
        domain = machine.core.domain(built.domid)
        assert (built.pages, GuestPages(domain.memory).count_from_zero()) == (pages, pages)
        assert domain.max_pages == pages + 2
        assert domain.handle == UUID.bytes
        assert domain.life is Life.CREATED
        assert len(domain.vcpus) == 1
        assert machine.core.audit() == []


async def test_the_rings_are_where_the_parameters_and_the_grants_say(tmp_path: Path) -> None:
    async with running_machine(tmp_path) as machine:
        built = build_domain(machine.services.kernel, "g", UUID.bytes, 4 * MIB)
        domain = machine.core.domain(built.domid)
        assert domain.hvm_params == {
            HVM_PARAM_STORE_PFN: STORE_GFN,
            HVM_PARAM_STORE_EVTCHN: built.store_port,
            HVM_PARAM_CONSOLE_PFN: CONSOLE_GFN,
            HVM_PARAM_CONSOLE_EVTCHN: built.console_port,
        }
        table = machine.core.frames.view(domain.grants.shared_frame(0))
        entries = [
            grant_entry_v1.unpack(bytes(table), offset=index * grant_entry_v1.size) for index in (0, 1)
        ]
        assert entries == [
            grant_entry_v1(flags=GTF_permit_access, domid=0, frame=CONSOLE_GFN),
            grant_entry_v1(flags=GTF_permit_access, domid=0, frame=STORE_GFN),
        ]
        for gfn in (STORE_GFN, CONSOLE_GFN):
            assert bytes(GuestPages(domain.memory).page(gfn)) == bytes(PAGE_SIZE)
        with pytest.raises(LookupError):
            GuestPages(domain.memory).page(SCRATCH_GFN)


def refusable(calls: list[tuple[int, tuple[int, ...]]]) -> list[int]:
    """The places of calls that can be refused: all but the one by which dom0 empties a frame of its own."""
    emptying = (HYPERVISOR_memory_op, XENMEM_remove_from_physmap)
    own = next(place for place, (number, args) in enumerate(calls) if (number, args[0]) == emptying)
    return [place for place in range(len(calls)) if place != own]


async def test_a_refusal_of_any_hypercall_leaves_nothing(tmp_path: Path) -> None:
    """Each hypercall of the builder is refused in turn, until there are no more to refuse."""
    async with running_machine(tmp_path) as machine:
        kernel = machine.services.kernel
        refusing = Refusing(machine)
        refusing.arm(-1)
        build_domain(kernel, "g", UUID.bytes, 5 * MIB + PAGE_SIZE)
        places = refusable(refusing.calls)
        refusing.disarm()

        def resources() -> object:
            gpfn = kernel.pages.reserve_gpfns(1)
            kernel.pages.release_gpfns(gpfn, 1)
            return free_pages(machine), kernel.pages.free_pages, gpfn, sorted(machine.core.domains)

        before = resources()
        steps = set()
        assert len(places) > 10
        for place in places:
            refusing.arm(place)
            with pytest.raises(BuildError) as caught:
                build_domain(kernel, "g", UUID.bytes, 5 * MIB + PAGE_SIZE)
            refusing.disarm()
            assert caught.value.name == "g"
            assert len(str(caught.value)) < 150
            assert isinstance(caught.value.cause, HypercallOutOfMemory | OutOfMachineMemory)
            steps.add(caught.value.step)
            assert resources() == before, place
            assert machine.core.audit() == []
        assert steps == {"create", "give it 1281 pages", "open its rings", "grant its rings"}


async def test_a_machine_that_is_too_small_is_named(tmp_path: Path) -> None:
    async with running_machine(tmp_path, memory="80MiB", dom0_memory="16MiB") as machine:
        before = free_pages(machine)
        with pytest.raises(BuildError) as caught:
            build_domain(machine.services.kernel, "big", UUID.bytes, 96 * MIB)
        cause = caught.value.cause
        assert isinstance(cause, OutOfMachineMemory)
        assert cause.made < cause.wanted
        assert "domain big could not be built: give it 24576 pages" in str(caught.value)
        assert free_pages(machine) == before
        build_domain(machine.services.kernel, "small", UUID.bytes, 32 * MIB)


@pytest.mark.parametrize("size", [0, PAGE_SIZE - 1, (MAX_PAGES + 1) * PAGE_SIZE])
async def test_a_size_that_no_domain_can_have(size: int, tmp_path: Path) -> None:
    async with running_machine(tmp_path) as machine:
        with pytest.raises(BuildError) as caught:
            build_domain(machine.services.kernel, "g", UUID.bytes, size)
        assert isinstance(caught.value.cause, BadMemorySize)
        assert caught.value.cause.found_bytes == size
        assert sorted(machine.core.domains) == [0]


async def test_a_frame_that_cannot_be_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_machine(tmp_path) as machine:
        kernel = machine.services.kernel
        monkeypatch.setattr(kernel.hypercalls, "map_foreign", lambda *_args: [-XEN_EINVAL])
        with pytest.raises(BuildError, match="grant its rings") as caught:
            build_domain(kernel, "g", UUID.bytes, 4 * MIB)
        assert isinstance(caught.value.cause, ForeignMapRefused)
        assert (caught.value.cause.gfn, caught.value.cause.errno) == (SCRATCH_GFN, XEN_EINVAL)
        assert sorted(machine.core.domains) == [0]


async def test_an_error_of_ours_leaves_nothing_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unforeseen(Exception): ...

    def fail(*_args: object) -> None:
        raise Unforeseen

    async with running_machine(tmp_path) as machine:
        monkeypatch.setattr("dom0.toolstack.builder.open_ports", fail)
        with pytest.raises(Unforeseen):
            build_domain(machine.services.kernel, "g", UUID.bytes, 4 * MIB)
        assert sorted(machine.core.domains) == [0]
        assert machine.core.audit() == []
