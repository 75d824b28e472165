"""The first state of a vCPU: what its registers are when it begins."""

import pytest

from hypervisor.abi.arch_x86_64 import (
    VGCF_failsafe_disables_events,
    VGCF_in_kernel,
    VGCF_online,
    VGCF_syscall_disables_events,
    cpu_user_regs,
    trap_info,
    vcpu_guest_context,
)
from hypervisor.errors import InvalidArgument, XenError
from hypervisor.pv import traps
from hypervisor.pv.cpu import Segment
from hypervisor.pv.crash import DomainCrash
from hypervisor.pv.start_of_day import start_of_day
from tests.hypervisor.pv.cpu_guest import (
    CODE,
    DATA,
    EVENT,
    FAILSAFE,
    GDT,
    NOT_PRESENT,
    SELECTOR_DATA,
    STACK_TOP,
    SYSCALL,
    USER_L4,
    CpuGuest,
)
from tests.hypervisor.pv.paging import L1, mfn, va

BASES = {"fs_base": 0x1000, "gs_base_kernel": 0x2000, "gs_base_user": 0x3000}


def context(**changes: object) -> vcpu_guest_context:
    registers = cpu_user_regs(
        **{
            name: 0x100 + number
            for number, name in enumerate(("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp"))
        },
        r15=0x1F,
        rip=va(CODE),
        cs=0xE033,
        ss=0xE02B,
        ds=SELECTOR_DATA,
        rsp=STACK_TOP,
        rflags=0x3202,
    )
    made = vcpu_guest_context(
        flags=VGCF_in_kernel | VGCF_online,
        user_regs=registers,
        kernel_ss=0xE02B,
        kernel_sp=STACK_TOP,
        gdt_frames=(mfn(GDT), *[0] * 15),
        gdt_ents=16,
        ctrlreg=(8, 0, 0, mfn(0) << 12, 4, 0, 0, 0),
        debugreg=(0x1234, 1 << 63, 0, 0, 0, 0, 0xF, 0x401),
        event_callback_eip=EVENT,
        failsafe_callback_eip=FAILSAFE,
        syscall_callback_eip=SYSCALL,
        **BASES,
    )
    for name, value in changes.items():
        setattr(made, name, value)
    return made


@pytest.fixture
def guest() -> CpuGuest:
    """Whose builder has made a vCPU, and nothing more."""
    guest = CpuGuest()
    guest.page_tables.release_vcpu(guest.vcpu)
    assert guest.call("set_gdt", 0, 0) == 0
    guest.vcpu.initialised = guest.vcpu.online = False
    guest.cpu.reset()
    return guest


def begin(guest: CpuGuest, **changes: object) -> None:
    start_of_day(guest.vcpu, context(**changes))
    traps.switch_in(guest.vcpu)


def test_all_registers_are_loaded(guest: CpuGuest) -> None:
    begin(guest)
    cpu, vcpu = guest.cpu, guest.vcpu
    assert (cpu.rax, cpu.rbp, cpu.r15) == (0x100, 0x106, 0x1F)
    assert (cpu.rip, cpu.rsp, cpu.rflags) == (va(CODE), STACK_TOP, 0x202)
    assert (vcpu.iopl, cpu.task_switched, cpu.time_stamps_disabled) == (0x3000, True, True)
    assert cpu.selectors[Segment.CS] == 0xE033
    assert cpu.selectors[Segment.SS] == 0xE02B
    assert cpu.selectors[Segment.DS] == SELECTOR_DATA
    assert cpu.selectors[Segment.ES] == 0
    assert (cpu.fs_base, cpu.gs_base, vcpu.gs_base_user) == (0x1000, 0x2000, 0x3000)
    assert (cpu.dr[0], cpu.dr[1], cpu.dr[6], cpu.dr[7]) == (0x1234, 0, 0xFFFF_0FFF, 0x401)
    assert (cpu.root, vcpu.in_kernel, vcpu.online) == (mfn(0), True, True)


def test_callbacks_and_traps_are_set(guest: CpuGuest) -> None:
    trap_ctxt = [trap_info()] * 256
    trap_ctxt[14] = trap_info(14, 4, 0x10, 0x5000)
    flags = VGCF_in_kernel | VGCF_syscall_disables_events | VGCF_failsafe_disables_events
    begin(guest, trap_ctxt=tuple(trap_ctxt), flags=flags, vm_assist=(1 << 64) - 1)
    vcpu = guest.vcpu
    assert (vcpu.trap_addresses[14], vcpu.trap_flags[14]) == (0x5000, 4)
    assert (vcpu.event.address, vcpu.failsafe.address, vcpu.syscall.address) == (EVENT, FAILSAFE, SYSCALL)
    assert vcpu.failsafe.masks_events
    assert vcpu.syscall.masks_events
    assert not vcpu.online, "VGCF_online"
    assert guest.domain.vm_assist == 0x1_0000_003F


def test_segments_that_cannot_be_loaded_are_null(guest: CpuGuest) -> None:
    begin(
        guest,
        user_regs=cpu_user_regs(rip=va(CODE), cs=0xE033, ss=0, rsp=STACK_TOP, ds=NOT_PRESENT << 3, fs=0xFFF8),
    )
    assert guest.cpu.selectors[Segment.DS] == 0
    assert guest.cpu.selectors[Segment.FS] == 0
    assert guest.cpu.selectors[Segment.SS] == 0xE02B
    assert guest.cpu.fs_base == 0x1000


def test_a_code_segment_that_cannot_be_loaded_goes_to_the_failsafe_callback(guest: CpuGuest) -> None:
    begin(guest, user_regs=cpu_user_regs(rip=va(CODE), cs=8, ss=0xE02B, rsp=STACK_TOP))
    assert guest.cpu.rip == va(CODE), "entry 1 is code"
    guest.page_tables.release_vcpu(guest.vcpu)
    begin(guest, user_regs=cpu_user_regs(rip=va(CODE), cs=0x10, ss=0xE02B, rsp=STACK_TOP))
    assert guest.cpu.rip == FAILSAFE
    guest.page_tables.release_vcpu(guest.vcpu)
    with pytest.raises(DomainCrash):
        begin(guest, failsafe_callback_eip=0, user_regs=cpu_user_regs(cs=0x10, rsp=STACK_TOP))


def test_a_first_vcpu_has_no_user_mode_yet(guest: CpuGuest) -> None:
    with pytest.raises(InvalidArgument, match="user mode"):
        begin(guest, ctrlreg=(0, mfn(USER_L4) << 12, 0, mfn(0) << 12, 0, 0, 0, 0))


@pytest.mark.parametrize("root", [L1, DATA])
def test_page_tables_that_are_none_are_refused_and_the_gdt_given_back(guest: CpuGuest, root: int) -> None:
    counted = guest.counted(GDT)
    with pytest.raises(XenError):
        begin(guest, ctrlreg=(0, 0, 0, mfn(root) << 12, 0, 0, 0, 0))
    assert guest.counted(GDT) == counted
    assert (guest.vcpu.initialised, guest.vcpu.gdt_entries, guest.vcpu.context) == (False, 0, None)
    guest.check()
