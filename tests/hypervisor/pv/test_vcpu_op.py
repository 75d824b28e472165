"""vcpu_op, the timers, runstate, and time as the guest reads it."""

from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.abi.arch_x86_64 import VGCF_in_kernel, cpu_user_regs, vcpu_guest_context
from hypervisor.abi.errno import XEN_EEXIST, XEN_EFAULT, XEN_EINVAL, XEN_ENOENT, XEN_ENOSYS, XEN_ENXIO
from hypervisor.abi.sched import SCHEDOP_shutdown
from hypervisor.abi.vcpu import (
    XEN_RUNSTATE_UPDATE,
    RUNSTATE_blocked,
    RUNSTATE_offline,
    RUNSTATE_runnable,
    RUNSTATE_running,
    VCPUOP_down,
    VCPUOP_get_physid,
    VCPUOP_get_runstate_info,
    VCPUOP_initialise,
    VCPUOP_is_up,
    VCPUOP_register_runstate_memory_area,
    VCPUOP_register_vcpu_info,
    VCPUOP_register_vcpu_time_memory_area,
    VCPUOP_send_nmi,
    VCPUOP_set_periodic_timer,
    VCPUOP_set_singleshot_timer,
    VCPUOP_stop_periodic_timer,
    VCPUOP_stop_singleshot_timer,
    VCPUOP_up,
    vcpu_runstate_info,
)
from hypervisor.abi.xen import HYPERVISOR_sched_op, shared_info, vcpu_info, vcpu_time_info
from hypervisor.pv import pvclock, runstate, timers, traps
from hypervisor.pv.frames import TypeOfFrame
from hypervisor.pv.layout import SHARED_INFO_MFN
from hypervisor.pv.vcpu import UPCALL_PENDING
from tests.hypervisor.pv.cpu_guest import CODE, DATA, EVENT, GDT, HOLE, STACK_TOP, U64, CpuGuest, booted
from tests.hypervisor.pv.paging import L1, machine_address, mfn, va

MILLISECOND = 1_000_000
AREA = va(CODE) + 64


@pytest.fixture
def guest() -> CpuGuest:
    return booted()


def op(guest: CpuGuest, operation: int, vcpu: int = 0, arg: bytes | None = None, caller: int = 0) -> int:
    if arg is not None:
        guest.put(DATA, arg)
    return guest.call("vcpu_op", operation, vcpu, 0 if arg is None else va(DATA), vcpu=caller)


def second(**changes: object) -> bytes:
    """A context for the second vCPU."""
    context = vcpu_guest_context(
        flags=VGCF_in_kernel,
        user_regs=cpu_user_regs(rip=va(CODE), cs=0xE033, ss=0xE02B, rsp=STACK_TOP, rflags=0x1002),
        kernel_sp=STACK_TOP,
        event_callback_eip=EVENT,
        ctrlreg=(0, 0, 0, mfn(0) << 12, 0, 0, 0, 0),
        gdt_frames=(mfn(GDT), *[0] * 15),
        gdt_ents=16,
        gs_base_kernel=0x9000,
    )
    for name, value in changes.items():
        setattr(context, name, value)
    return context.pack()


# Bringing vCPUs up


def test_another_vcpu_begins(guest: CpuGuest) -> None:
    vcpu = guest.vcpus[1]
    assert op(guest, VCPUOP_up, 1) == -XEN_EINVAL
    guest.put(DATA, second()[:4096])
    guest.put(DATA + 1, second()[4096:])
    assert guest.call("vcpu_op", VCPUOP_initialise, 1, va(DATA)) == 0
    assert (vcpu.initialised, vcpu.online, vcpu.iopl) == (True, False, 0x1000)
    guest.check()
    assert guest.call("vcpu_op", VCPUOP_initialise, 1, va(DATA)) == -XEN_EEXIST
    assert op(guest, VCPUOP_is_up, 1) == 0
    assert op(guest, VCPUOP_up, 1) == 0
    assert op(guest, VCPUOP_up, 1) == 0
    assert (op(guest, VCPUOP_is_up, 1), vcpu.runnable, vcpu.runstate) == (1, True, RUNSTATE_runnable)
    guest.cpu.reset()
    traps.switch_in(vcpu)
    assert (guest.cpu.rip, guest.cpu.rsp, guest.cpu.gs_base) == (va(CODE), STACK_TOP, 0x9000)
    assert guest.cpu.root == mfn(0)
    assert (vcpu.runstate, vcpu.context) == (RUNSTATE_running, None)
    assert op(guest, VCPUOP_down, 1) == 0
    assert (vcpu.online, vcpu.runstate, guest.reschedules) == (False, RUNSTATE_offline, 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"flags": 0},
        {"kernel_sp": 1 << 47},
        {"event_callback_eip": 1 << 63},
        {"fs_base": 1 << 47},
        {"gs_base_user": 1 << 47},
        {"gdt_ents": 1 << 60},
        {"gdt_ents": 0x1C01},
        {"gdt_frames": (mfn(L1), *[0] * 15)},
        {"ctrlreg": (0, 0, 0, 0, 0, 0, 0, 0)},
        {"ctrlreg": (0, 0, 0, mfn(DATA) << 12, 0, 0, 0, 0)},
        {"ctrlreg": (0, 0, 0, mfn(L1) << 12, 0, 0, 0, 0)},
        {"ctrlreg": (0, 0, 0, 1 << 60, 0, 0, 0, 0)},
        {"ctrlreg": (0, mfn(DATA) << 12, 0, mfn(0) << 12, 0, 0, 0, 0)},
        {"ldt_ents": 1},
        {"user_regs": cpu_user_regs(rip=1 << 47)},
        {"user_regs": cpu_user_regs(rsp=1 << 47)},
    ],
    ids=repr,
)
def test_a_context_that_the_guest_could_not_have_set_is_refused(
    guest: CpuGuest, changes: dict[str, object]
) -> None:
    counted = guest.counted(GDT), guest.counted(0)
    guest.put(DATA, second(**changes)[:4096])
    guest.put(DATA + 1, second(**changes)[4096:])
    assert guest.call("vcpu_op", VCPUOP_initialise, 1, va(DATA)) < 0
    assert not guest.vcpus[1].initialised
    assert (guest.counted(GDT), guest.counted(0)) == counted
    guest.check()


def test_the_last_to_go_down_takes_the_domain_along(guest: CpuGuest) -> None:
    assert op(guest, VCPUOP_down, 0) == 0
    assert guest.requests == [(HYPERVISOR_sched_op, (SCHEDOP_shutdown, 0x1000))]
    assert guest.vcpu.online


def test_what_there_is_not(guest: CpuGuest) -> None:
    assert op(guest, VCPUOP_is_up, 2) == -XEN_ENOENT
    assert op(guest, VCPUOP_is_up, 8191) == -XEN_ENOENT
    assert op(guest, 99) == -XEN_ENOSYS
    assert op(guest, VCPUOP_get_physid) == -XEN_EINVAL
    assert op(guest, VCPUOP_send_nmi, 0, b"") == -XEN_EINVAL
    for operation in (4, 5, 6, 8, 10, 13):
        assert guest.call("vcpu_op", operation, 0, va(HOLE)) == -XEN_EFAULT
    assert guest.call("vcpu_op", VCPUOP_initialise, 1, va(HOLE)) == -XEN_EFAULT


# vcpu_info


def test_vcpu_info_moves_once(guest: CpuGuest) -> None:
    guest.vcpu.info[1] = 1
    request = pack("<QII", mfn(CODE), 64, 0)
    assert op(guest, VCPUOP_register_vcpu_info, 0, request) == 0
    info = vcpu_info.unpack(guest.take(CODE, 64, 64))
    assert (info.evtchn_upcall_pending, info.evtchn_upcall_mask, info.evtchn_pending_sel) == (1, 1, U64)
    assert info.time.system_time == guest.time_ns
    guest.vcpu.info[UPCALL_PENDING] = 0
    assert guest.take(CODE, 1, 64) == b"\0"
    assert guest.type_of(mfn(CODE)) is TypeOfFrame.WRITABLE
    assert op(guest, VCPUOP_register_vcpu_info, 0, request) == -XEN_EINVAL
    guest.check()


@pytest.mark.parametrize(
    ("frame", "offset", "errno"),
    [
        (mfn(CODE), 4096 - 56, XEN_ENXIO),
        (mfn(CODE), 4, XEN_ENXIO),
        (mfn(CODE), 1, XEN_ENXIO),
        (mfn(CODE), 0xFFFF_FFF8, XEN_ENXIO),
        (mfn(L1), 0, XEN_EINVAL),
        (mfn(GDT), 0, XEN_EINVAL),
        (SHARED_INFO_MFN, 0, XEN_EINVAL),
        (0, 0, XEN_EINVAL),
        (U64, 0, XEN_EINVAL),
        (1 << 32, 0, XEN_EINVAL),
    ],
)
def test_vcpu_info_lies_in_ordinary_memory(guest: CpuGuest, frame: int, offset: int, errno: int) -> None:
    """XSA-327."""
    request = pack("<QII", frame, offset, 0)
    result = op(guest, VCPUOP_register_vcpu_info, 0, request)
    assert result < 0
    if errno == XEN_ENXIO:
        assert result == -errno
    assert not guest.vcpu.info_mfn
    guest.check()


def test_vcpu_info_of_another_is_registered_while_it_is_down(guest: CpuGuest) -> None:
    request = pack("<QII", mfn(CODE), 128, 0)
    assert op(guest, VCPUOP_register_vcpu_info, 1, request) == 0
    guest.vcpus[1].kernel_root = guest.vcpu.kernel_root
    assert op(guest, VCPUOP_register_vcpu_info, 0, request, caller=1) == -XEN_EINVAL


# Timers


def test_a_singleshot_timer(guest: CpuGuest) -> None:
    due = guest.time_ns + 100 * MILLISECOND
    assert op(guest, VCPUOP_set_singleshot_timer, 0, pack("<QQ", due, 0)) == 0
    assert guest.vcpu.deadline_ns == due
    timers.expire(guest.vcpu, due - 1)
    assert not guest.virqs
    timers.expire(guest.vcpu, due)
    timers.expire(guest.vcpu, due)
    assert guest.virqs == [(0, 0)]
    assert guest.vcpu.deadline_ns is None


def test_a_deadline_that_has_passed_acts_at_once(guest: CpuGuest) -> None:
    for passed in (guest.time_ns, 0, 1 << 63):
        assert op(guest, VCPUOP_set_singleshot_timer, 0, pack("<QQ", passed, 1)) == 0
    assert guest.virqs == [(0, 0)] * 3
    assert guest.vcpu.deadline_ns is None


def test_whoever_executes_the_vcpu_hears_of_deadlines(guest: CpuGuest) -> None:
    """A slice may have to end earlier; the vCPU keeps its turn, or two that tick would let each other do nothing."""
    due = guest.time_ns + 100
    assert guest.call("set_timer_op", due) == 0
    assert op(guest, VCPUOP_set_periodic_timer, 0, pack("<Q", MILLISECOND)) == 0
    assert guest.deadlines == [due, guest.time_ns + MILLISECOND]
    assert not guest.reschedules


def test_timers_are_ones_own(guest: CpuGuest) -> None:
    assert op(guest, VCPUOP_set_singleshot_timer, 1, bytes(16)) == -XEN_EINVAL
    assert op(guest, VCPUOP_stop_singleshot_timer, 1) == -XEN_EINVAL
    assert guest.call("set_timer_op", guest.time_ns + MILLISECOND) == 0
    assert op(guest, VCPUOP_stop_singleshot_timer) == 0
    assert guest.vcpu.deadline_ns is None


@pytest.mark.parametrize("timeout", [1 << 63, U64, 1 << 62, 1_000_000_000 + (1 << 50)])
def test_an_absurd_timeout_is_soon(guest: CpuGuest, timeout: int) -> None:
    assert guest.call("set_timer_op", timeout) == 0
    assert guest.vcpu.deadline_ns == guest.time_ns + 100 * MILLISECOND
    assert guest.call("set_timer_op", 0) == 0
    assert guest.vcpu.deadline_ns is None


def test_a_periodic_timer(guest: CpuGuest) -> None:
    start = guest.time_ns
    assert op(guest, VCPUOP_set_periodic_timer, 0, pack("<Q", 10 * MILLISECOND)) == 0
    assert guest.vcpu.deadline_ns == start + 10 * MILLISECOND
    timers.expire(guest.vcpu, start + 35 * MILLISECOND)
    assert guest.virqs == [(0, 0)], "ticks that were missed come as one"
    assert guest.vcpu.deadline_ns == start + 40 * MILLISECOND
    assert op(guest, VCPUOP_stop_periodic_timer) == 0
    assert guest.vcpu.deadline_ns is None
    for period in (0, MILLISECOND - 1, 1 << 62, U64):
        assert op(guest, VCPUOP_set_periodic_timer, 0, pack("<Q", period)) == -XEN_EINVAL


def test_a_poll_ends_by_time(guest: CpuGuest) -> None:
    vcpu = guest.vcpu
    vcpu.blocked, vcpu.poll_ports = True, (3,)
    vcpu.set_poll_timer(500)
    assert vcpu.deadline_ns == 500
    timers.expire(vcpu, 500)
    assert (vcpu.blocked, vcpu.poll_ports, vcpu.deadline_ns, guest.virqs) == (False, (), None, [])


# Runstate


def test_runstate_is_accounted(guest: CpuGuest) -> None:
    vcpu = guest.vcpu
    vcpu.runstate_entry_ns = guest.time_ns
    runstate.run(vcpu, guest.time_ns)
    runstate.enter(vcpu, RUNSTATE_blocked, guest.time_ns + 5)
    runstate.enter(vcpu, RUNSTATE_running, guest.time_ns + 12)
    guest.time_ns += 20
    guest.put(CODE, bytes(48), 64)
    assert guest.call("vcpu_op", VCPUOP_get_runstate_info, 0, AREA) == 0
    info = vcpu_runstate_info.unpack(guest.take(CODE, 48, 64))
    assert (info.state, info.state_entry_time, info.time) == (0, guest.time_ns - 8, (13, 0, 7, 0))


@pytest.mark.parametrize("flag", [False, True])
def test_the_registered_area_follows(guest: CpuGuest, flag: bool) -> None:
    guest.domain.vm_assist = 1 << 5 if flag else 0
    assert op(guest, VCPUOP_register_runstate_memory_area, 0, pack("<Q", AREA)) == 0
    guest.time_ns += 10
    runstate.run(guest.vcpu, guest.time_ns)
    info = vcpu_runstate_info.unpack(guest.take(CODE, 48, 64))
    assert (info.state, info.state_entry_time) == (RUNSTATE_running, guest.time_ns)
    assert not info.state_entry_time & XEN_RUNSTATE_UPDATE
    assert op(guest, VCPUOP_register_runstate_memory_area, 0, pack("<Q", 0)) == 0
    guest.put(CODE, bytes(48), 64)
    runstate.run(guest.vcpu, guest.time_ns)
    assert guest.take(CODE, 48, 64) == bytes(48)


@pytest.mark.parametrize("area", [va(HOLE), va(L1), 1 << 47, 0xFFFF_8000_0000_0000, U64 - 8])
@pytest.mark.parametrize(
    "operation", [VCPUOP_register_runstate_memory_area, VCPUOP_register_vcpu_time_memory_area]
)
def test_an_area_that_cannot_be_written_is_refused(guest: CpuGuest, operation: int, area: int) -> None:
    assert op(guest, operation, 0, pack("<Q", area)) == -XEN_EFAULT


def test_an_area_that_goes_away_is_the_guests_loss(guest: CpuGuest) -> None:
    assert op(guest, VCPUOP_register_runstate_memory_area, 0, pack("<Q", AREA)) == 0
    assert op(guest, VCPUOP_register_vcpu_time_memory_area, 0, pack("<Q", AREA)) == 0
    guest.map(va(CODE), 0)
    traps.switch_in(guest.vcpu)
    guest.check()


# Time


@given(hertz=st.integers(1_000_000, 20_000_000_000), ticks=st.integers(0, 1 << 44))
def test_the_scale_gives_nanoseconds(hertz: int, ticks: int) -> None:
    multiplier, shift = pvclock.scale(hertz)
    assert 1 << 31 <= multiplier < 1 << 32
    shifted = ticks << shift if shift >= 0 else ticks >> -shift
    nanoseconds = shifted * multiplier >> 32
    assert nanoseconds == pytest.approx(ticks * 1_000_000_000 / hertz, rel=1e-8, abs=64)


def time_record(guest: CpuGuest) -> vcpu_time_info:
    return vcpu_info.unpack(bytes(guest.vcpu.info)).time


def test_time_is_published(guest: CpuGuest) -> None:
    pvclock.publish(guest.vcpu)
    record = time_record(guest)
    assert record.version % 2 == 0
    assert (record.tsc_timestamp, record.system_time) == (2 * guest.time_ns, guest.time_ns)
    assert (record.tsc_to_system_mul, record.tsc_shift) == (1 << 31, 0)
    pvclock.refresh(guest.vcpu, guest.time_ns + 999_999_999)
    assert time_record(guest).version == record.version
    guest.time_ns += 1_000_000_000
    pvclock.refresh(guest.vcpu, guest.time_ns)
    later = time_record(guest)
    assert (later.version, later.system_time) == (record.version + 2, guest.time_ns)


def test_the_registered_time_area_follows(guest: CpuGuest) -> None:
    assert op(guest, VCPUOP_register_vcpu_time_memory_area, 0, pack("<Q", AREA)) == 0
    assert guest.take(CODE, 32, 64) == time_record(guest).pack()
    guest.time_ns += 5
    traps.switch_in(guest.vcpu)
    assert guest.take(CODE, 32, 64) == time_record(guest).pack()
    assert time_record(guest).system_time == guest.time_ns


@pytest.mark.parametrize("version", [0, 1, 0xFFFF_FFFE, 0xFFFF_FFFF])
def test_versions_stay_even_and_wrap(guest: CpuGuest, version: int) -> None:
    offset = vcpu_info.offsets["time"]
    guest.vcpu.info[offset : offset + 4] = version.to_bytes(4, "little")
    pvclock.publish(guest.vcpu)
    assert time_record(guest).version == (version | 1) + 1 & 0xFFFF_FFFF


def test_time_is_published_when_a_timer_is_due(guest: CpuGuest) -> None:
    pvclock.publish(guest.vcpu)
    assert guest.call("set_timer_op", guest.time_ns + 2_000_000_000) == 0
    guest.time_ns += 2_000_000_000
    timers.expire(guest.vcpu, guest.time_ns)
    assert time_record(guest).system_time == guest.time_ns


def test_the_wall_clock_is_the_time_at_which_the_machine_began(guest: CpuGuest) -> None:
    pvclock.publish_wall_clock(guest.domain)
    info = shared_info.unpack(bytes(guest.domain.shared_info[: shared_info.size]))
    assert (info.wc_version % 2, info.wc_sec, info.wc_nsec, info.wc_sec_hi) == (0, 1_700_000_000, 0, 0)


def test_physdev_and_assists(guest: CpuGuest) -> None:
    for level, errno in ((0, 0), (3, 0), (4, -XEN_EINVAL), (0xFFFF_FFFF, -XEN_EINVAL)):
        guest.put(DATA, pack("<I", level))
        assert guest.call("physdev_op", 6, va(DATA)) == errno
    assert guest.vcpu.iopl == 0x3000
    guest.put(DATA, pack("<QI", 0, 65537))
    assert guest.call("physdev_op", 7, va(DATA)) == -XEN_EINVAL
    assert guest.call("physdev_op", 28, va(DATA)) == -XEN_ENOSYS
    assert guest.call("vm_assist", 0, 32) == 0
    assert guest.page_tables.strict_m2p
    assert guest.call("vm_assist", 1, 32) == 0
    assert not guest.page_tables.strict_m2p
    for kind in (6, 31, 33, 64, 0xFFFF_FFFF):
        assert guest.call("vm_assist", 0, kind) == -XEN_EINVAL
    assert guest.call("vm_assist", 2, 2) == -XEN_ENOSYS
    assert machine_address(0) == mfn(0) << 12
