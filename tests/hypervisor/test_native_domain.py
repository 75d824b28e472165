"""Native domains as the toolstack makes them, and what is the hypervisor's in them from the start."""

import pytest

from hypervisor.abi import domctl as abi
from hypervisor.abi import grant_table, hvm_op, memory, version, xen
from hypervisor.abi.arch_x86_64 import (
    VGCF_in_kernel,
    VGCF_online,
    cpu_user_regs,
    trap_info,
    vcpu_guest_context,
)
from hypervisor.abi.errno import (
    XEN_EACCES,
    XEN_EBUSY,
    XEN_EFAULT,
    XEN_EINVAL,
    XEN_ENODATA,
    XEN_ENOSYS,
    XEN_EOPNOTSUPP,
    XEN_EPERM,
    XEN_ESRCH,
)
from hypervisor.abi.xen import DOMID_SELF
from hypervisor.domain import Domain, Traits
from hypervisor.errors import BadGpfn, OutOfMemory
from hypervisor.guest_memory import PageKind
from hypervisor.lifecycle import Life
from hypervisor.pv import layout
from hypervisor.pv.layout import ARGUMENT_MFN, GRANT_TABLE_FIRST, MFN_END, RAM_FIRST, SHARED_INFO_MFN
from tests.hypervisor.fakes import Guest, new_machine
from tests.hypervisor.grant_guests import GrantGuest
from tests.hypervisor.native_guest import ARGUMENT_VA, KERNEL_BASE, NativeGuest
from tests.hypervisor.test_domctl import control, created, info

CONTEXT = 0x1000
"""where dom0 has prepared a context"""
CR3 = (RAM_FIRST + 3) << 12


@pytest.fixture
def dom0() -> Guest:
    return GrantGuest(new_machine(256 << 20)[0], pages=64)


def native(dom0: Guest, *, pages: int = 16, **config: int) -> Domain:
    """A native domain as a toolstack makes it, up to its memory."""
    result, domid = created(dom0, flags=0, **config)
    assert result == 0
    domain = dom0.machine.domain(domid)

    def max_mem(request: abi.xen_domctl) -> None:
        request.u.max_mem = abi.xen_domctl_max_mem(max_memkb=pages * 4)

    def max_vcpus(request: abi.xen_domctl) -> None:
        request.u.max_vcpus = abi.xen_domctl_max_vcpus(max=config.get("max_vcpus", 1))

    assert control(dom0, abi.XEN_DOMCTL_max_mem, domid, max_mem)[0] == 0
    assert control(dom0, abi.XEN_DOMCTL_max_vcpus, domid, max_vcpus)[0] == 0
    domain.populate(RAM_FIRST, pages)
    return domain


# ---- what is there


def test_the_toolstack_makes_one(dom0: Guest) -> None:
    domain = native(dom0)
    found = info(dom0, domain.domid)
    assert not found.flags & (abi.XEN_DOMINF_hvm_guest | abi.XEN_DOMINF_hap)
    assert found.shared_info_frame == SHARED_INFO_MFN
    assert found.tot_pages == found.max_pages == 16
    assert domain.memory.mfn(SHARED_INFO_MFN) == domain.shared_info_mfn
    assert domain.memory.mfn(GRANT_TABLE_FIRST) == domain.grants.shared_mfns[0]
    assert domain.memory.mapped(ARGUMENT_MFN).kind is PageKind.PRIVATE  # type: ignore[union-attr]
    assert domain.ledger is not None


def test_it_is_no_more_than_the_frames_that_it_has(dom0: Guest) -> None:
    domain = native(dom0)
    for gpfn, count in (
        (0, 1),
        (RAM_FIRST - 1, 2),
        (MFN_END - 1, 2),
        (MFN_END, 1),
        (layout.FOREIGN_FIRST, 1),
    ):
        with pytest.raises(BadGpfn):
            domain.populate(gpfn, count)
    assert domain.memory.max_gpfn == RAM_FIRST + 15


def test_a_machine_that_is_full_makes_none() -> None:
    machine, _ = new_machine(16 << 12)
    dom0 = Guest(machine, pages=12)
    with pytest.raises(OutOfMemory):
        machine.create_domain(Traits(pv=True))
    assert machine.audit() == []
    assert list(machine.domains) == [dom0.domid]


def test_it_goes_without_a_trace(dom0: Guest) -> None:
    used = dom0.machine.frames.used
    domain = native(dom0)
    ledger = domain.ledger
    assert ledger is not None
    while control(dom0, abi.XEN_DOMCTL_destroydomain, domain.domid)[0]:
        pass
    assert domain.domid not in dom0.machine.domains
    assert dom0.machine.frames.used == used
    assert not ledger._close.alive
    assert dom0.machine.audit() == []


# ---- what it is told


def test_features_are_those_of_a_native_guest() -> None:
    machine, _ = new_machine()
    Guest(machine)
    guest = NativeGuest(machine)
    result, answer = guest.operate(
        xen.__HYPERVISOR_xen_version, version.XENVER_get_features, version.xen_feature_info(submap_idx=0)
    )
    assert (result, answer.submap) == (0, 0x220F0)  # as Xen 4.17 tells a PV guest


def test_grant_frames_have_their_places() -> None:
    guest = NativeGuest(new_machine()[0])
    request = grant_table.gnttab_setup_table(
        dom=DOMID_SELF, nr_frames=4, frame_list=KERNEL_BASE + 0x800, status=-1
    )
    page = guest.domain.memory.page(RAM_FIRST)
    page[0x100 : 0x100 + len(request.pack())] = request.pack()
    call = xen.__HYPERVISOR_grant_table_op
    assert guest.hypercall(call, grant_table.GNTTABOP_setup_table, ARGUMENT_VA, 1) == 0
    assert type(request).unpack(page, 0x100).status == 0
    assert list(page[0x800:0x820].cast("Q")) == [GRANT_TABLE_FIRST + index for index in range(4)]
    for index, mfn in enumerate(guest.domain.grants.shared_mfns):
        assert guest.domain.memory.mfn(GRANT_TABLE_FIRST + index) == mfn
    assert guest.machine.audit() == []


def test_its_highest_frame_is_always_the_same() -> None:
    guest = NativeGuest(new_machine()[0])
    assert guest.hypercall(xen.__HYPERVISOR_memory_op, memory.XENMEM_maximum_ram_page, 0) == MFN_END - 1


def test_nobody_changes_its_physmap_for_it(dom0: Guest) -> None:
    domain = native(dom0)
    add = memory.xen_add_to_physmap(
        domid=domain.domid, space=memory.XENMAPSPACE_shared_info, gpfn=RAM_FIRST + 1
    )
    call = xen.__HYPERVISOR_memory_op
    assert dom0.operate(call, memory.XENMEM_add_to_physmap, add)[0] == -XEN_EACCES
    remove = memory.xen_remove_from_physmap(domid=domain.domid, gpfn=RAM_FIRST + 1)
    assert dom0.operate(call, memory.XENMEM_remove_from_physmap, remove)[0] == -XEN_EACCES
    assert domain.memory.ram_page(RAM_FIRST + 1) is not None


# ---- memory map


ENTRIES = bytes(range(60))


def _memory_map(guest: NativeGuest, room: int) -> tuple[int, memory.xen_memory_map]:
    return guest.operate(
        xen.__HYPERVISOR_memory_op,
        memory.XENMEM_memory_map,
        memory.xen_memory_map(nr_entries=room, buffer=KERNEL_BASE + 0x400),
    )


def _set_memory_map(guest: Guest | NativeGuest, domid: int, entries: int, buffer: int) -> int:
    fmap = memory.xen_foreign_memory_map(domid, memory.xen_memory_map(nr_entries=entries, buffer=buffer))
    return guest.operate(xen.__HYPERVISOR_memory_op, memory.XENMEM_set_memory_map, fmap)[0]


def test_the_toolstack_sets_a_memory_map() -> None:
    machine, _ = new_machine()
    dom0 = Guest(machine)
    guest = NativeGuest(machine)
    assert _memory_map(guest, 10)[0] == -XEN_ENOSYS
    dom0.domain.memory.write(0x800, ENTRIES)
    assert _set_memory_map(dom0, guest.domid, 3, 0x800) == 0
    page = guest.domain.memory.page(RAM_FIRST)
    for room, told in ((10, 3), (3, 3), (2, 2), (0, 0)):
        page[0x400:0x480] = b"\xee" * 0x80
        result, answer = _memory_map(guest, room)
        assert (result, answer.nr_entries) == (0, told)
        assert bytes(page[0x400:0x440]) == ENTRIES[: told * 20].ljust(64, b"\xee")
    assert _set_memory_map(dom0, guest.domid, 1025, 0x800) == -XEN_EINVAL
    assert _set_memory_map(dom0, guest.domid, 1024, 0x7FF0) == -XEN_EFAULT
    assert _set_memory_map(dom0, 77, 3, 0x800) == -XEN_ESRCH
    assert _memory_map(guest, 10)[1].nr_entries == 3
    assert _set_memory_map(guest, 0, 3, KERNEL_BASE) == -XEN_EPERM
    assert _set_memory_map(guest, DOMID_SELF, 1, KERNEL_BASE) == 0
    assert _memory_map(guest, 10)[1].nr_entries == 1


# ---- contexts


def context(**fields: object) -> vcpu_guest_context:
    wanted = {
        "flags": VGCF_in_kernel | VGCF_online,
        "user_regs": cpu_user_regs(rip=KERNEL_BASE, rsp=KERNEL_BASE + 0x1000),
        "ctrlreg": (0, 0, 0, CR3, 0, 0, 0, 0),
    }
    return vcpu_guest_context(**(wanted | fields))  # type: ignore[arg-type]


def set_context(
    dom0: Guest, domid: int, value: vcpu_guest_context | None, *, vcpu: int = 0, ctxt: int = CONTEXT
) -> int:
    if value is not None:
        dom0.domain.memory.write_struct(CONTEXT, value)

    def fill(request: abi.xen_domctl) -> None:
        request.u.vcpucontext = abi.xen_domctl_vcpucontext(vcpu=vcpu, ctxt=ctxt if value is not None else 0)

    return control(dom0, abi.XEN_DOMCTL_setvcpucontext, domid, fill)[0]


def get_context(dom0: Guest, domid: int, *, vcpu: int = 0, ctxt: int = 0x4000) -> int:
    def fill(request: abi.xen_domctl) -> None:
        request.u.vcpucontext = abi.xen_domctl_vcpucontext(vcpu=vcpu, ctxt=ctxt)

    return control(dom0, abi.XEN_DOMCTL_getvcpucontext, domid, fill)[0]


def test_a_vcpu_starts_with_the_context_that_it_is_given(dom0: Guest) -> None:
    domain = native(dom0, max_vcpus=2)
    vcpu = domain.vcpus[0]
    assert (vcpu.initialised, vcpu.online, vcpu.context) == (False, False, None)
    assert get_context(dom0, domain.domid) == -XEN_ENODATA
    wanted = context(gdt_ents=512, gdt_frames=(RAM_FIRST + 1, *[0] * 15), kernel_sp=0xFFFF_8800_0000_1000)
    assert set_context(dom0, domain.domid, wanted) == 0
    assert (vcpu.initialised, vcpu.online, vcpu.context) == (True, True, wanted)
    assert get_context(dom0, domain.domid) == 0
    assert dom0.domain.memory.read_struct(vcpu_guest_context, 0x4000) == wanted
    assert not domain.vcpus[1].initialised
    assert set_context(dom0, domain.domid, context(flags=0), vcpu=1) == 0
    assert (domain.vcpus[1].initialised, domain.vcpus[1].online) == (True, False)
    assert set_context(dom0, domain.domid, None, vcpu=1) == 0
    assert (domain.vcpus[1].initialised, domain.vcpus[1].context) == (False, None)


def test_a_domain_without_a_context_does_not_execute(dom0: Guest) -> None:
    domain = native(dom0)
    assert control(dom0, abi.XEN_DOMCTL_unpausedomain, domain.domid)[0] == 0
    assert domain.life is Life.ALIVE
    assert not domain.vcpus[0].runnable


HOLE = 0x0000_8000_0000_0000


@pytest.mark.parametrize(
    "fields",
    [
        {"user_regs": cpu_user_regs(rip=HOLE)},
        {"user_regs": cpu_user_regs(rsp=HOLE)},
        {"user_regs": cpu_user_regs(rip=0xFFFF_7FFF_FFFF_FFFF)},
        {"kernel_sp": HOLE},
        {"fs_base": HOLE},
        {"gs_base_kernel": HOLE},
        {"gs_base_user": HOLE},
        {"event_callback_eip": HOLE},
        {"failsafe_callback_eip": HOLE},
        {"syscall_callback_eip": HOLE},
        {"trap_ctxt": tuple(trap_info(address=HOLE if vector == 255 else 0) for vector in range(256))},
        {"ldt_ents": 1, "ldt_base": HOLE},
        {"ldt_ents": 1, "ldt_base": 8},
        {"ldt_ents": 8193},
        {"gdt_ents": 0x1C01},
        {"gdt_ents": 513, "gdt_frames": (RAM_FIRST, RAM_FIRST + 16, *[0] * 14)},
        {"gdt_ents": 1, "gdt_frames": (SHARED_INFO_MFN, *[0] * 15)},
        {"ctrlreg": (0,) * 8},
        {"ctrlreg": (0, 0, 0, SHARED_INFO_MFN << 12, 0, 0, 0, 0)},
        {"ctrlreg": (0, 0, 0, (RAM_FIRST + 16) << 12, 0, 0, 0, 0)},
        {"ctrlreg": (0, 0, 0, (1 << 64) - 4096, 0, 0, 0, 0)},
        {"ctrlreg": (0, GRANT_TABLE_FIRST << 12, 0, CR3, 0, 0, 0, 0)},
    ],
)
def test_contexts_that_are_refused(dom0: Guest, fields: dict[str, object]) -> None:
    domain = native(dom0)
    assert set_context(dom0, domain.domid, context(**fields)) == -XEN_EINVAL
    assert not domain.vcpus[0].initialised
    assert domain.vcpus[0].context is None


def test_whose_context_cannot_be_set(dom0: Guest) -> None:
    domain = native(dom0)
    translated = created(dom0)[1]
    assert set_context(dom0, domain.domid, context(), vcpu=1) == -XEN_EINVAL
    assert set_context(dom0, domain.domid, context(), vcpu=0xFFFF_FFFF) == -XEN_EINVAL
    assert set_context(dom0, domain.domid, context(), ctxt=0x10_0000) == -XEN_EFAULT
    assert set_context(dom0, translated, context()) == -XEN_EOPNOTSUPP
    assert set_context(dom0, 0, context()) == -XEN_EINVAL
    assert set_context(dom0, 99, context()) == -XEN_ESRCH
    result, unborn = created(dom0, flags=0)
    assert result == 0
    assert set_context(dom0, unborn, context()) == -XEN_ESRCH
    assert set_context(dom0, domain.domid, context()) == 0
    assert get_context(dom0, domain.domid, ctxt=0x10_0000) == -XEN_EFAULT
    assert control(dom0, abi.XEN_DOMCTL_unpausedomain, domain.domid)[0] == 0
    assert set_context(dom0, domain.domid, context()) == -XEN_EBUSY
    assert set_context(dom0, domain.domid, None) == -XEN_EBUSY
    assert domain.vcpus[0].online


def test_nobody_else_sets_contexts(dom0: Guest) -> None:
    domain = native(dom0)
    other = Guest(dom0.machine, pages=64)
    assert set_context(other, domain.domid, context()) == -XEN_EPERM
    assert get_context(other, domain.domid) == -XEN_EPERM


def test_two_machines_worth_of_frames_are_refused(dom0: Guest) -> None:
    domain = native(dom0, pages=16)
    with pytest.raises(OutOfMemory):
        domain.populate(RAM_FIRST + 16, 1)
    assert dom0.machine.audit() == []


def test_it_has_no_parameters_of_hvm_guests(dom0: Guest) -> None:
    domain = native(dom0)
    param = hvm_op.xen_hvm_param(domid=domain.domid, index=1, value=5)
    for operation in (hvm_op.HVMOP_set_param, hvm_op.HVMOP_get_param):
        assert dom0.operate(xen.__HYPERVISOR_hvm_op, operation, param)[0] == -XEN_EINVAL
