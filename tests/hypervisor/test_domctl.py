"""domctl: the toolstack's hypercall, by itself and as the sequence that builds and destroys a domain."""

from collections.abc import Callable

import pytest

from hypervisor.abi import domctl as abi
from hypervisor.abi import memory, sched
from hypervisor.abi.errno import (
    XEN_EACCES,
    XEN_EEXIST,
    XEN_EFAULT,
    XEN_EINVAL,
    XEN_ENOMEM,
    XEN_ENOSYS,
    XEN_EPERM,
    XEN_ESRCH,
)
from hypervisor.abi.xen import DOMID_SELF
from hypervisor.abi.xen import __HYPERVISOR_domctl as domctl
from hypervisor.abi.xen import __HYPERVISOR_memory_op as memory_op
from hypervisor.abi.xen import __HYPERVISOR_sched_op as sched_op
from hypervisor.continuation import Continuation
from hypervisor.extent import PAGE_SIZE
from hypervisor.guest_memory import PageKind
from hypervisor.lifecycle import Life
from tests.hypervisor.fakes import ARGUMENT, Guest, new_machine

VERSION = abi.XEN_DOMCTL_INTERFACE_VERSION
TRANSLATED = abi.XEN_DOMCTL_CDF_hvm | abi.XEN_DOMCTL_CDF_hap
Fill = Callable[[abi.xen_domctl], None]


@pytest.fixture
def dom0() -> Guest:
    return Guest(new_machine(256 << 20)[0], pages=64)


def nothing(_request: abi.xen_domctl) -> None:
    """An operation without arguments."""


def control(caller: Guest, cmd: int, domid: int, fill: Fill = nothing) -> tuple[int, abi.xen_domctl]:
    request = abi.xen_domctl(cmd=cmd, interface_version=VERSION, domain=domid)
    fill(request)
    memory = caller.domain.memory
    memory.write_struct(ARGUMENT, request)
    result = caller.hypercall(domctl, ARGUMENT)
    assert caller.machine.audit() == []
    return result, memory.read_struct(abi.xen_domctl, ARGUMENT)


def created(caller: Guest, domid: int = 0, **config: object) -> tuple[int, int]:
    """(result, domid) of a createdomain with the usual values, but for `config`."""

    def fill(request: abi.xen_domctl) -> None:
        fields = {
            "flags": TRANSLATED,
            "max_vcpus": 1,
            "max_evtchn_port": 1023,
            "max_grant_frames": -1,
            "max_maptrack_frames": -1,
            "grant_opts": 1,
            "handle": b"h" * 16,
        }
        request.u.createdomain = abi.xen_domctl_createdomain(**(fields | config))  # type: ignore[arg-type]

    result, request = control(caller, abi.XEN_DOMCTL_createdomain, domid, fill)
    return result, request.domain


def max_vcpus(request: abi.xen_domctl) -> None:
    request.u.max_vcpus = abi.xen_domctl_max_vcpus(max=1)


def info(caller: Guest, domid: int) -> abi.xen_domctl_getdomaininfo:
    result, request = control(caller, abi.XEN_DOMCTL_getdomaininfo, domid)
    assert result == 0
    assert request.domain == request.u.getdomaininfo.domain
    found: abi.xen_domctl_getdomaininfo = request.u.getdomaininfo
    return found


def test_a_domain_is_built_runs_and_is_destroyed(dom0: Guest) -> None:
    machine = dom0.machine
    result, domid = created(dom0)
    assert (result, domid) == (0, 1)
    domain = machine.domain(domid)
    assert (domain.life, domain.vcpus, domain.privileged) == (Life.CREATED, [], False)
    assert control(dom0, abi.XEN_DOMCTL_max_vcpus, domid, max_vcpus)[0] == 0

    def limit(request: abi.xen_domctl) -> None:
        request.u.max_mem = abi.xen_domctl_max_mem(max_memkb=64 * 4)

    assert control(dom0, abi.XEN_DOMCTL_max_mem, domid, limit)[0] == 0
    dom0.domain.memory.write(PAGE_SIZE, b"".join(n.to_bytes(8, "little") for n in range(65)))
    reservation = memory.xen_memory_reservation(extent_start=PAGE_SIZE, nr_extents=65, domid=domid)
    assert dom0.operate(memory_op, memory.XENMEM_populate_physmap, reservation)[0] == 64
    assert control(dom0, abi.XEN_DOMCTL_unpausedomain, domid)[0] == 0
    assert domain.executing
    domain.memory.write_struct(0, sched.sched_shutdown(reason=sched.SHUTDOWN_poweroff))
    assert machine.hypercall(domain.vcpus[0], sched_op, (sched.SCHEDOP_shutdown, 0)) == 0
    assert info(dom0, domid).flags & abi.XEN_DOMINF_shutdown
    assert control(dom0, abi.XEN_DOMCTL_destroydomain, domid)[0] == 0
    assert list(machine.domains) == [0]
    assert control(dom0, abi.XEN_DOMCTL_getdomaininfo, domid)[0] == -XEN_ESRCH


@pytest.mark.parametrize("version", [0, VERSION - 1, VERSION + 1, 0xFFFF_FFFF])
def test_another_interface_version_is_refused_before_all_else(dom0: Guest, version: int) -> None:
    request = abi.xen_domctl(cmd=abi.XEN_DOMCTL_destroydomain, interface_version=version, domain=999)
    dom0.domain.memory.write_struct(ARGUMENT, request)
    assert dom0.hypercall(domctl, ARGUMENT) == -XEN_EACCES


def test_guests_are_refused_before_their_memory_is_looked_at(dom0: Guest) -> None:
    guest = Guest(dom0.machine)
    assert guest.hypercall(domctl, 1 << 60) == -XEN_EPERM
    assert dom0.hypercall(domctl, 1 << 60) == -XEN_EFAULT


@pytest.mark.parametrize("cmd", [0, 6, 10, 1000, 0xFFFF_FFFF])
def test_operations_that_are_not_there(dom0: Guest, cmd: int) -> None:
    assert control(dom0, cmd, 0)[0] == -XEN_ENOSYS


def test_ids_that_are_asked_for(dom0: Guest) -> None:
    assert created(dom0, 70) == (0, 70)
    assert created(dom0, 70)[0] == -XEN_EEXIST
    assert created(dom0) == (0, 1)
    assert created(dom0, DOMID_SELF) == (0, 2)


@pytest.mark.parametrize(
    "config",
    [
        {"flags": abi.XEN_DOMCTL_CDF_hap},
        {"flags": abi.XEN_DOMCTL_CDF_hvm},
        {"flags": TRANSLATED | abi.XEN_DOMCTL_CDF_iommu},
        {"flags": TRANSLATED | 1 << 31},
        {"max_vcpus": 0},
        {"max_vcpus": 129},
        {"max_vcpus": 0xFFFF_FFFF},
        {"max_grant_frames": 0},
        {"max_grant_frames": 65},
        {"max_maptrack_frames": 1025},
        {"grant_opts": 0x10},
        {"iommu_opts": 1},
        {"vmtrace_size": 4096},
        {"cpupool_id": 3},
    ],
)
def test_domains_that_there_cannot_be(dom0: Guest, config: dict[str, int]) -> None:
    assert created(dom0, **config)[0] == -XEN_EINVAL
    assert list(dom0.machine.domains) == [0]


def test_what_was_asked_for_is_what_the_domain_has(dom0: Guest) -> None:
    _, domid = created(dom0, max_vcpus=4, max_evtchn_port=0xFFFF_FFFF, max_grant_frames=7)
    traits = dom0.machine.domain(domid).traits
    assert (traits.max_vcpus, traits.max_event_port, traits.max_grant_frames) == (4, 4095, 7)
    assert (traits.max_maptrack_frames, traits.handle) == (1024, b"h" * 16)


def test_a_domain_is_not_made_when_its_id_cannot_be_told(dom0: Guest) -> None:
    peer = Guest(dom0.machine)
    frame = peer.domain.memory.mfn(0)
    assert frame is not None
    request = abi.xen_domctl(cmd=abi.XEN_DOMCTL_createdomain, interface_version=VERSION)
    request.u.createdomain = abi.xen_domctl_createdomain(flags=TRANSLATED, max_vcpus=1, max_grant_frames=1)
    peer.domain.memory.write_struct(0, request)
    dom0.domain.memory.map_foreign(300, frame, False, PageKind.FOREIGN)
    assert dom0.hypercall(domctl, 300 * PAGE_SIZE) == -XEN_EFAULT
    assert len(dom0.machine.domains) == 2


def test_the_machine_is_full(dom0: Guest) -> None:
    dom0.machine.frames.total = dom0.machine.frames.used + 1
    assert created(dom0)[0] == -XEN_ENOMEM


def test_the_number_of_vcpus_was_decided(dom0: Guest) -> None:
    _, domid = created(dom0, max_vcpus=2)
    assert control(dom0, abi.XEN_DOMCTL_max_vcpus, domid, max_vcpus)[0] == -XEN_EINVAL
    assert dom0.machine.domain(domid).vcpus == []


@pytest.mark.parametrize(
    "cmd",
    [
        abi.XEN_DOMCTL_pausedomain,
        abi.XEN_DOMCTL_destroydomain,
        abi.XEN_DOMCTL_resumedomain,
        abi.XEN_DOMCTL_max_vcpus,
    ],
)
def test_not_to_oneself(dom0: Guest, cmd: int) -> None:
    """XSA-127."""
    assert control(dom0, cmd, 0)[0] == -XEN_EINVAL
    assert dom0.domain.executing


def test_pausing(dom0: Guest) -> None:
    guest = Guest(dom0.machine)
    assert control(dom0, abi.XEN_DOMCTL_pausedomain, guest.domid)[0] == 0
    assert not guest.domain.executing
    assert info(dom0, guest.domid).flags & abi.XEN_DOMINF_paused
    assert control(dom0, abi.XEN_DOMCTL_unpausedomain, guest.domid)[0] == 0
    assert control(dom0, abi.XEN_DOMCTL_unpausedomain, guest.domid)[0] == -XEN_EINVAL
    assert guest.domain.executing


def test_resuming(dom0: Guest) -> None:
    guest = Guest(dom0.machine)
    assert control(dom0, abi.XEN_DOMCTL_resumedomain, guest.domid)[0] == -XEN_EINVAL
    guest.domain.shutdown(sched.SHUTDOWN_suspend)
    assert control(dom0, abi.XEN_DOMCTL_resumedomain, guest.domid)[0] == 0
    assert guest.domain.executing


def test_what_is_told_of_a_domain(dom0: Guest) -> None:
    guest = Guest(dom0.machine, pages=9, vcpus=3)
    guest.domain.reservation.max_pages = 11
    guest.vcpu.runstate_ns[0] = 1234
    found = info(dom0, guest.domid)
    assert (found.tot_pages, found.max_pages, found.cpu_time) == (9, 11, 1234)
    assert (found.nr_online_vcpus, found.max_vcpu_id) == (1, 2)
    assert found.shared_info_frame == 0xFFFF_FFFF_FFFF_FFFF
    assert found.flags == abi.XEN_DOMINF_hvm_guest | abi.XEN_DOMINF_hap | 0xFF << 16
    assert found.gpaddr_bits == 44
    guest.domain.memory.map_foreign(77, guest.domain.shared_info_mfn, True, PageKind.SPECIAL)
    guest.vcpu.blocked = True
    found = info(dom0, guest.domid)
    assert found.shared_info_frame == 77
    assert found.flags & abi.XEN_DOMINF_blocked
    guest.domain.shutdown(sched.SHUTDOWN_reboot)
    assert info(dom0, guest.domid).flags >> 16 & 0xFF == sched.SHUTDOWN_reboot


def test_a_zombie_is_shown_as_dying(dom0: Guest) -> None:
    guest = Guest(dom0.machine)
    frame = guest.domain.memory.mfn(2)
    assert frame is not None
    dom0.domain.memory.map_foreign(300, frame, True, PageKind.FOREIGN)
    assert control(dom0, abi.XEN_DOMCTL_destroydomain, guest.domid)[0] == 0
    found = info(dom0, guest.domid)
    assert found.flags & abi.XEN_DOMINF_dying
    assert (found.tot_pages, found.nr_online_vcpus) == (1, 1)
    assert control(dom0, abi.XEN_DOMCTL_destroydomain, guest.domid)[0] == 0, "once more is no error"


def test_getdomaininfo_walks_the_domains(dom0: Guest) -> None:
    created(dom0, 5)
    created(dom0, 900)
    assert [info(dom0, domid).domain for domid in (0, 1, 5, 6, 900)] == [0, 5, 5, 900, 900]
    assert control(dom0, abi.XEN_DOMCTL_getdomaininfo, 901)[0] == -XEN_ESRCH
    assert control(dom0, abi.XEN_DOMCTL_getdomaininfo, DOMID_SELF)[0] == -XEN_EINVAL


def test_what_is_told_of_a_vcpu(dom0: Guest) -> None:
    guest = Guest(dom0.machine, vcpus=2)
    guest.vcpu.runstate_ns[0] = 55

    def ask(vcpu: int) -> tuple[int, abi.xen_domctl_getvcpuinfo]:
        def fill(request: abi.xen_domctl) -> None:
            request.u.getvcpuinfo = abi.xen_domctl_getvcpuinfo(vcpu=vcpu)

        result, request = control(dom0, abi.XEN_DOMCTL_getvcpuinfo, guest.domid, fill)
        return result, request.u.getvcpuinfo

    result, found = ask(0)
    assert (result, found.online, found.blocked, found.running, found.cpu_time) == (0, 1, 0, 0, 55)
    assert ask(1)[1].online == 0
    for vcpu in (2, 1 << 31, 0xFFFF_FFFF):
        assert ask(vcpu)[0] == -XEN_EINVAL


def test_max_mem_is_in_kib_and_32_bits_of_pages(dom0: Guest) -> None:
    """XSA-385."""
    guest = Guest(dom0.machine)
    for kib, pages in ((7, 1), (8, 2), (0, 0), (1 << 40, 0xFFFF_FFFF), ((1 << 64) - 1, 0xFFFF_FFFF)):

        def fill(request: abi.xen_domctl, kib: int = kib) -> None:
            request.u.max_mem = abi.xen_domctl_max_mem(max_memkb=kib)

        assert control(dom0, abi.XEN_DOMCTL_max_mem, guest.domid, fill)[0] == 0
        assert guest.domain.max_pages == pages


def test_the_handle_may_change(dom0: Guest) -> None:
    guest = Guest(dom0.machine)

    def fill(request: abi.xen_domctl) -> None:
        request.u.setdomainhandle = abi.xen_domctl_setdomainhandle(handle=b"z" * 16)

    assert control(dom0, abi.XEN_DOMCTL_setdomainhandle, guest.domid, fill)[0] == 0
    assert info(dom0, guest.domid).handle == b"z" * 16


def test_destroying_is_sliced_and_others_go_on_meanwhile(dom0: Guest) -> None:
    big = Guest(dom0.machine, pages=20_000)
    other = Guest(dom0.machine)
    request = abi.xen_domctl(cmd=abi.XEN_DOMCTL_destroydomain, interface_version=VERSION, domain=big.domid)
    dom0.domain.memory.write_struct(ARGUMENT, request)
    slices = 0
    rest: int | Continuation = Continuation(domctl, (ARGUMENT,))
    while isinstance(rest, Continuation):
        rest = dom0.machine.hypercall(dom0.vcpu, *rest)
        slices += 1
        assert other.hypercall(sched_op, sched.SCHEDOP_yield, 0) == 0
        assert dom0.machine.audit() == []
    assert rest == 0
    assert slices > 1
    assert big.domid not in dom0.machine.domains
