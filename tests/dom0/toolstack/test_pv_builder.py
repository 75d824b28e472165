"""The builder of native domains: what it makes on a machine, and that nothing is left of what it cannot finish."""

import gzip
import os
import uuid
from array import array
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from dom0.embedding import RunningMachine, running_machine
from dom0.images.errors import BadImage
from dom0.images.load import parse_kernel
from dom0.toolstack.build_steps import BuiltDomain
from dom0.toolstack.errors import (
    BadMemorySize,
    BuildError,
    CommandLineTooLong,
    OutOfMachineMemory,
    TooLittleMemory,
)
from dom0.toolstack.first_memory import Rings, first_context, first_memory
from dom0.toolstack.pv_builder import MAX_PAGES, PvConfig, build_pv_domain
from dom0.toolstack.start_of_day import plan
from hypervisor.abi import elfnote as abi
from hypervisor.abi.grant_table import GTF_permit_access, grant_entry_v1
from hypervisor.abi.memory import XENMEM_add_to_physmap_batch, XENMEM_remove_from_physmap
from hypervisor.abi.xen import HYPERVISOR_memory_op, HYPERVISOR_multicall, shared_info
from hypervisor.domain import Domain
from hypervisor.hypercall_page import PAGE as HYPERCALL_PAGE
from hypervisor.lifecycle import Life
from hypervisor.pv.layout import RAM_FIRST, SHARED_INFO_MFN
from hypervisor.vcpu.coroutine import GuestPages
from tests.dom0.images.kernels import LINUX_NOTES, START, VIRT_BASE, Load, bzimage, grub, linux, payload
from tests.dom0.toolstack.test_builder import Refusing, free_pages
from tests.guest_images import guest_image

pytestmark = pytest.mark.anyio

MIB = 1 << 20
PAGE = 4096
MEMORY = 64 * MIB
PAGES = MEMORY // PAGE
RAMDISK = os.urandom(3 * MIB + 5)
UUID = uuid.UUID(int=7)


@pytest.fixture
def vmlinux(tmp_path: Path) -> Path:
    path = tmp_path / "vmlinux"
    path.write_bytes(linux())
    return path


@pytest.fixture
def ramdisk(tmp_path: Path) -> Path:
    path = tmp_path / "initramfs"
    path.write_bytes(RAMDISK)
    return path


def expected_memory(config: PvConfig, built: BuiltDomain, p2m: Sequence[int], ramdisk: bytes) -> bytearray:
    """RAM by machine frame, as the plan says."""
    image = parse_kernel(config.kernel.read_bytes(), config.kernel.name)
    start = plan(image, built.pages, config.command_line.encode(), len(ramdisk))
    rings = Rings(built.store_port, built.console_port)
    by_pfn = bytearray(built.pages * PAGE)
    for address, data in first_memory(start, p2m, rings, SHARED_INFO_MFN, ramdisk):
        by_pfn[address : address + len(data)] = data
    by_mfn = bytearray(built.pages * PAGE)
    for pfn, mfn in enumerate(p2m):
        at = (mfn - RAM_FIRST) * PAGE
        by_mfn[at : at + PAGE] = by_pfn[pfn * PAGE : (pfn + 1) * PAGE]
    return by_mfn


def memory_of(domain: Domain, pages: int) -> bytes:
    memory = GuestPages(domain.memory)
    return b"".join(bytes(memory.page(mfn)) for mfn in range(RAM_FIRST, RAM_FIRST + pages))


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("data", [linux(), grub(), bzimage(payload(linux(), "lz4"))])
async def test_a_domain_is_what_was_planned(
    data: bytes, shuffled: bool, tmp_path: Path, ramdisk: Path
) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(data)
    config = PvConfig(path, ramdisk, "console=hvc0 quiet", vcpus=3, shuffled=shuffled)
    async with running_machine(tmp_path) as machine:
        built = build_pv_domain(machine.services.kernel, "g", UUID.bytes, MEMORY, config)
        domain = machine.core.domain(built.domid)
        p2m: Sequence[int] = range(RAM_FIRST, RAM_FIRST + PAGES)
        if shuffled:
            assert built.p2m != array("Q", p2m).tobytes()
            assert sorted(memoryview(built.p2m).cast("Q")) == list(p2m)
            p2m = memoryview(built.p2m).cast("Q").tolist()
        else:
            assert built.p2m == b""
        expected = expected_memory(config, built, p2m, RAMDISK)
        assert memory_of(domain, PAGES) == expected
        image = parse_kernel(data, "kernel")
        start = plan(image, PAGES, b"", len(RAMDISK))
        assert domain.vcpus[0].context == first_context(start, p2m)
        assert [vcpu.online for vcpu in domain.vcpus] == [True, False, False]
        assert (built.store_gfn, built.console_gfn) == (
            p2m[start.layout.store_pfn],
            p2m[start.layout.console_pfn],
        )
        assert machine.core.audit() == []


async def test_what_else_it_has(vmlinux: Path, tmp_path: Path) -> None:
    async with running_machine(tmp_path) as machine:
        built = build_pv_domain(machine.services.kernel, "g", UUID.bytes, MEMORY, PvConfig(vmlinux))
        domain = machine.core.domain(built.domid)
        assert domain.traits.pv
        assert domain.life is Life.CREATED
        assert domain.handle == UUID.bytes
        assert (built.pages, domain.tot_pages, domain.max_pages) == (PAGES, PAGES, PAGES + 256)
        assert domain.memory_map == bytes(8) + MEMORY.to_bytes(8, "little") + (1).to_bytes(4, "little")
        table = machine.core.frames.view(domain.grants.shared_frame(0))
        entries = [grant_entry_v1.unpack(bytes(table), index * grant_entry_v1.size) for index in (0, 1, 2)]
        assert entries == [
            grant_entry_v1(flags=GTF_permit_access, domid=0, frame=built.console_gfn),
            grant_entry_v1(flags=GTF_permit_access, domid=0, frame=built.store_gfn),
            grant_entry_v1(),
        ]
        info = shared_info.unpack(bytes(domain.shared_info))
        assert all(vcpu.evtchn_upcall_mask == 1 for vcpu in info.vcpu_info)


@pytest.mark.parametrize("shuffled", [False, True])
async def test_a_hypercall_page_is_filled_where_the_kernel_wants_it(shuffled: bool, tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    at = START + 0x20_3000
    path.write_bytes(linux(notes=LINUX_NOTES | {abi.XEN_ELFNOTE_HYPERCALL_PAGE: VIRT_BASE + at}))
    async with running_machine(tmp_path) as machine:
        config = PvConfig(path, shuffled=shuffled)
        built = build_pv_domain(machine.services.kernel, "g", UUID.bytes, MEMORY, config)
        pfn = at // PAGE
        mfn = memoryview(built.p2m).cast("Q")[pfn] if shuffled else RAM_FIRST + pfn
        memory = GuestPages(machine.core.domain(built.domid).memory)
        assert bytes(memory.page(mfn)) == HYPERCALL_PAGE


async def test_a_packed_ramdisk_is_unpacked(vmlinux: Path, tmp_path: Path) -> None:
    path = tmp_path / "initramfs.gz"
    cpio = b"070701" * 50000
    path.write_bytes(gzip.compress(cpio))
    config = PvConfig(vmlinux, path)
    async with running_machine(tmp_path) as machine:
        built = build_pv_domain(machine.services.kernel, "g", UUID.bytes, MEMORY, config)
        p2m = range(RAM_FIRST, RAM_FIRST + PAGES)
        expected = expected_memory(config, built, p2m, cpio)
        assert memory_of(machine.core.domain(built.domid), PAGES) == expected


def refusable(calls: list[tuple[int, tuple[int, ...]]]) -> list[int]:
    """The places of calls that can be refused: all but those by which dom0 empties frames of its own, one alone or,
    in multicalls, all that it has mapped.
    """
    emptying = (HYPERVISOR_memory_op, XENMEM_remove_from_physmap)
    mapping = (HYPERVISOR_memory_op, XENMEM_add_to_physmap_batch)
    kinds = [(number, args[0]) for number, args in calls]
    first = kinds.index(mapping)
    return [
        place
        for place, kind in enumerate(kinds)
        if kind != emptying and not (place > first and kind[0] == HYPERVISOR_multicall)
    ]


def open_files(folder: Path) -> list[str]:
    """Those in `folder`."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return sorted(path for path in found if path.startswith(str(folder)))


async def test_a_refusal_of_any_hypercall_leaves_nothing(
    vmlinux: Path, ramdisk: Path, tmp_path: Path
) -> None:
    """Each hypercall of the builder is refused in turn, until there are no more to refuse."""
    config = PvConfig(vmlinux, ramdisk, vcpus=2)
    async with running_machine(tmp_path) as machine:
        kernel = machine.services.kernel
        refusing = Refusing(machine)
        refusing.arm(-1)
        build_pv_domain(kernel, "g", UUID.bytes, MEMORY + PAGE, config)
        places = refusable(refusing.calls)
        refusing.disarm()

        def resources() -> object:
            free = free_pages(machine), kernel.pages.free_pages, kernel.pages._foreign.free
            return free, sorted(machine.core.domains), open_files(tmp_path)

        before = resources()
        steps = set()
        assert len(places) > 15
        for place in places:
            refusing.arm(place)
            with pytest.raises(BuildError) as caught:
                build_pv_domain(kernel, "g", UUID.bytes, MEMORY + PAGE, config)
            refusing.disarm()
            assert caught.value.name == "g"
            steps.add(caught.value.step)
            assert resources() == before, (place, caught.value)
            assert machine.core.audit() == []
        assert steps == {
            "create",
            f"give it {PAGES + 1} pages",
            "open its rings",
            "fill its memory",
            "grant its rings",
            "give its first vCPU its registers",
        }


@pytest.mark.parametrize(
    ("changes", "step", "cause"),
    [
        ({"kernel": "bad"}, "read its kernel", BadImage),
        ({"kernel": "missing"}, "read its kernel", FileNotFoundError),
        ({"ramdisk": "missing"}, "read its ramdisk", FileNotFoundError),
        ({"ramdisk": "large"}, "read its ramdisk", BadImage),
        ({"ramdisk": "too large"}, "plan its memory", TooLittleMemory),
        ({"command_line": "c" * 1024}, "plan its memory", CommandLineTooLong),
        ({"kernel": "wide"}, "plan its memory", TooLittleMemory),
    ],
)
async def test_files_that_will_not_do(
    changes: dict[str, str], step: str, cause: type[Exception], vmlinux: Path, tmp_path: Path
) -> None:
    """Nothing is asked of the machine then."""
    (tmp_path / "bad").write_bytes(b"no kernel")
    (tmp_path / "wide").write_bytes(linux(loads=[Load.of(0x100_0000, b"k", zeros=MEMORY)]))
    (tmp_path / "large").write_bytes(bytes(MEMORY + 1))
    (tmp_path / "too large").write_bytes(bytes(MEMORY - MIB))
    paths = {key: tmp_path / value for key, value in changes.items() if key != "command_line"}
    config = PvConfig(**({"kernel": vmlinux} | changes | paths))  # type: ignore[arg-type]
    async with running_machine(tmp_path) as machine:
        refusing = Refusing(machine)
        refusing.arm(-1)
        with pytest.raises(BuildError) as caught:
            build_pv_domain(machine.services.kernel, "g", UUID.bytes, MEMORY, config)
        assert (caught.value.step, type(caught.value.cause)) == (step, cause)
        assert "domain g could not be built" in str(caught.value)
        assert refusing.calls == []
        refusing.disarm()


@pytest.mark.parametrize("size", [0, PAGE - 1, (MAX_PAGES + 1) * PAGE])
async def test_a_size_that_no_domain_can_have(size: int, vmlinux: Path, tmp_path: Path) -> None:
    async with running_machine(tmp_path) as machine:
        with pytest.raises(BuildError) as caught:
            build_pv_domain(machine.services.kernel, "g", UUID.bytes, size, PvConfig(vmlinux))
        assert isinstance(caught.value.cause, BadMemorySize)


async def test_a_machine_that_is_too_small(vmlinux: Path, tmp_path: Path) -> None:
    async with running_machine(tmp_path, memory="80MiB", dom0_memory="32MiB") as machine:
        before = free_pages(machine)
        with pytest.raises(BuildError) as caught:
            build_pv_domain(machine.services.kernel, "g", UUID.bytes, MEMORY, PvConfig(vmlinux))
        assert isinstance(caught.value.cause, OutOfMachineMemory)
        assert free_pages(machine) == before


def frames_left(machine: RunningMachine) -> int:
    return machine.services.kernel.pages.free_pages


async def test_many_domains_leave_nothing(vmlinux: Path, tmp_path: Path) -> None:
    async with running_machine(tmp_path) as machine:
        kernel = machine.services.kernel
        before = free_pages(machine), frames_left(machine)
        for number in range(40):
            config = PvConfig(vmlinux, shuffled=bool(number % 2))
            built = build_pv_domain(kernel, "g", UUID.bytes, MEMORY, config)
            kernel.hypercalls.destroydomain(built.domid)
        assert (free_pages(machine), frames_left(machine)) == before
        assert machine.core.audit() == []


@pytest.mark.parametrize("name", ["vmlinuz-amd64", "vmlinuz-cloud-amd64", "grub-x86_64-xen.bin"])
async def test_real_kernels(name: str, tmp_path: Path) -> None:
    config = PvConfig(guest_image(name), command_line="console=hvc0")
    async with running_machine(tmp_path) as machine:
        built = build_pv_domain(machine.services.kernel, "g", UUID.bytes, 256 * MIB, config)
        assert built.pages == 256 * MIB // PAGE
        assert machine.core.audit() == []
