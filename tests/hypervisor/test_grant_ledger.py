"""What others may write of a native guest's memory: its process is told, and page tables are refused to them."""

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hypervisor.abi import memory as abi
from hypervisor.abi.errno import XEN_EBUSY
from hypervisor.abi.grant_table import (
    GNTCOPY_dest_gref,
    GNTCOPY_source_gref,
    GNTST_bad_page,
    GNTST_general_error,
    GNTST_okay,
    GNTTABOP_copy,
    GNTTABOP_map_grant_ref,
    GTF_permit_access,
    GTF_reading,
    GTF_readonly,
    GTF_writing,
    gnttab_copy,
    gnttab_map_grant_ref,
)
from hypervisor.abi.xen import __HYPERVISOR_grant_table_op as grant_table_op
from hypervisor.abi.xen import __HYPERVISOR_memory_op as memory_op
from hypervisor.domain import Domain
from hypervisor.guest_memory import PageKind
from hypervisor.pv.layout import (
    ARGUMENT_MFN,
    FOREIGN_END,
    FOREIGN_FIRST,
    GRANT_TABLE_FIRST,
    RAM_FIRST,
    SHARED_INFO_MFN,
)
from hypervisor.pv.ledger import PGT_l1_page_table, PGT_none, PGT_seg_desc_page, PGT_writable_page, map_ledger
from tests.hypervisor.fakes import new_machine
from tests.hypervisor.grant_guests import GRANT_TABLE_OP, GrantGuest, granted, own
from tests.hypervisor.native_guest import ARGUMENT_VA, NativeGuest

MFN = RAM_FIRST + 3
REF = 8


class Rig:
    """dom0, a native guest, and what its process has of the ledger."""

    def __init__(self) -> None:
        self.machine, _ = new_machine()
        self.dom0 = GrantGuest(self.machine, pages=32)
        self.guest = NativeGuest(self.machine)
        ledger = self.guest.domain.ledger
        assert ledger is not None
        self.types, self.granted, self.written = map_ledger(ledger.fd)

    def grant(self, reference: int = REF, mfn: int = MFN, *, readonly: bool = False) -> None:
        flags = GTF_permit_access | (GTF_readonly if readonly else 0)
        self.guest.domain.grants.entries.write(reference, self.dom0.domid, mfn, flags)

    def in_use(self, reference: int = REF) -> int:
        return self.guest.domain.grants.entries.flags(reference) & (GTF_reading | GTF_writing)

    def map_foreign(self, mfn: int, gpfn: int) -> int:
        """dom0 maps a frame of the guest; the error of this page."""
        memory = self.dom0.domain.memory
        memory.write_u64(0x800, mfn)
        memory.write_u64(0x808, gpfn)
        batch = abi.xen_add_to_physmap_batch(
            domid=self.dom0.domid,
            space=abi.XENMAPSPACE_gmfn_foreign,
            size=1,
            u=abi.xen_add_to_physmap_batch_extra(foreign_domid=self.guest.domid),
            idxs=0x800,
            gpfns=0x808,
            errs=0x810,
        )
        assert self.dom0.operate(memory_op, abi.XENMEM_add_to_physmap_batch, batch)[0] == 0
        error = memory.read_u32(0x810)
        return error - (1 << 32) if error >> 31 else error

    def unmap_foreign(self, gpfn: int) -> None:
        request = abi.xen_remove_from_physmap(domid=self.dom0.domid, gpfn=gpfn)
        assert self.dom0.operate(memory_op, abi.XENMEM_remove_from_physmap, request)[0] == 0


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_writable_mappings_of_a_grant_are_told(rig: Rig) -> None:
    rig.grant()
    first = rig.dom0.map(rig.guest.domid, REF, 0x1000)
    second = rig.dom0.map(rig.guest.domid, REF, 0x1001)
    reader = rig.dom0.map(rig.guest.domid, REF, 0x1002, readonly=True)
    assert (first.status, second.status, reader.status) == (GNTST_okay,) * 3
    assert rig.granted[MFN] == 1  # one grant, however often it is mapped
    assert rig.machine.audit() == []
    assert rig.dom0.unmap(first.handle, 0x1000) == GNTST_okay
    assert rig.granted[MFN] == 1
    assert rig.dom0.unmap(second.handle, 0x1001) == GNTST_okay
    assert rig.granted[MFN] == 0
    assert rig.dom0.unmap(reader.handle, 0x1002) == GNTST_okay
    assert rig.machine.audit() == []


def test_two_grants_of_a_frame_are_two(rig: Rig) -> None:
    rig.grant()
    rig.grant(REF + 1)
    first = rig.dom0.map(rig.guest.domid, REF, 0x1000)
    second = rig.dom0.map(rig.guest.domid, REF + 1, 0x1001)
    assert rig.granted[MFN] == 2
    rig.dom0.unmap(first.handle, 0x1000)
    assert rig.granted[MFN] == 1
    rig.dom0.unmap(second.handle, 0x1001)
    assert rig.granted[MFN] == 0


def test_a_reader_does_not_keep_it_from_being_a_table(rig: Rig) -> None:
    rig.grant()
    reader = rig.dom0.map(rig.guest.domid, REF, 0x1000, readonly=True)
    assert (reader.status, rig.granted[MFN]) == (GNTST_okay, 0)
    rig.types[MFN] = PGT_l1_page_table
    writer = rig.dom0.map(rig.guest.domid, REF, 0x1001)
    assert writer.status == GNTST_general_error
    assert rig.in_use() == GTF_reading
    assert rig.granted[MFN] == 0
    assert rig.machine.audit() == []


@pytest.mark.parametrize("kind", [PGT_l1_page_table, PGT_seg_desc_page])
def test_a_table_cannot_be_mapped_writable(rig: Rig, kind: int) -> None:
    rig.types[MFN] = kind
    rig.grant()
    assert rig.dom0.map(rig.guest.domid, REF, 0x1000).status == GNTST_general_error
    assert rig.in_use() == 0
    assert rig.dom0.copy_to(rig.guest.domid, REF, 1) == GNTST_general_error
    assert rig.in_use() == 0
    assert rig.dom0.copy_from(rig.guest.domid, REF, 1) == GNTST_okay
    reader = rig.dom0.map(rig.guest.domid, REF, 0x1000, readonly=True)
    assert reader.status == GNTST_okay
    assert rig.machine.audit() == []


def test_a_copy_holds_while_it_lasts(rig: Rig) -> None:
    rig.grant()
    rig.dom0.domain.memory.write(0x1000, b"data")
    assert rig.dom0.copy_to(rig.guest.domid, REF, 1) == GNTST_okay
    assert bytes(rig.guest.domain.memory.page(MFN)[:4]) == b"data"
    assert rig.granted[MFN] == 0
    assert rig.machine.audit() == []


def copy_to_own(rig: Rig, mfn: int) -> int:
    """The guest copies a page that dom0 has granted to it into a frame of its own."""
    rig.dom0.grant(9, rig.guest.domid, 2)
    rig.dom0.domain.memory.write(0x2000, b"from dom0")
    operation = gnttab_copy(
        source=granted(rig.dom0.domid, 9), dest=own(mfn), len=4096, flags=GNTCOPY_source_gref, status=1
    )
    page = rig.guest.domain.memory.page(RAM_FIRST)
    data = operation.pack()
    page[0x100 : 0x100 + len(data)] = data
    assert rig.guest.hypercall(grant_table_op, GNTTABOP_copy, ARGUMENT_VA, 1) == 0
    return int(gnttab_copy.unpack(page, 0x100).status)


def test_a_guest_does_not_copy_into_its_own_tables(rig: Rig) -> None:
    before = bytes(rig.guest.domain.memory.page(rig.guest.root))
    rig.types[rig.guest.root] = PGT_l1_page_table
    assert copy_to_own(rig, rig.guest.root) == GNTST_bad_page
    assert bytes(rig.guest.domain.memory.page(rig.guest.root)) == before
    rig.types[MFN] = PGT_writable_page
    assert copy_to_own(rig, MFN) == GNTST_okay
    assert bytes(rig.guest.domain.memory.page(MFN)[:9]) == b"from dom0"
    assert rig.machine.audit() == []


def test_the_toolstack_holds_what_it_has_mapped(rig: Rig) -> None:
    assert rig.map_foreign(MFN, 0x500) == 0
    assert rig.map_foreign(MFN, 0x501) == 0
    assert rig.map_foreign(SHARED_INFO_MFN, 0x502) == 0
    assert (rig.granted[MFN], rig.granted[SHARED_INFO_MFN]) == (2, 1)
    assert rig.machine.audit() == []
    rig.unmap_foreign(0x500)
    rig.unmap_foreign(0x502)
    assert (rig.granted[MFN], rig.granted[SHARED_INFO_MFN]) == (1, 0)
    rig.unmap_foreign(0x501)
    assert rig.granted[MFN] == 0
    rig.types[MFN] = PGT_l1_page_table
    assert rig.map_foreign(MFN, 0x500) == -XEN_EBUSY
    assert rig.dom0.domain.memory.mfn(0x500) is None
    assert rig.granted[MFN] == 0
    assert rig.machine.audit() == []


def test_a_mapping_that_fails_holds_nothing(rig: Rig) -> None:
    assert rig.map_foreign(MFN, 1 << 40) < 0
    assert rig.granted[MFN] == 0
    machine_frame = rig.guest.domain.memory.mfn(MFN)
    assert machine_frame is not None
    frames = rig.machine.frames
    before, frames.refs[machine_frame] = frames.refs[machine_frame], 0xFFFF_FFFF
    assert rig.map_foreign(MFN, 0x500) < 0
    frames.refs[machine_frame] = before
    assert rig.granted[MFN] == 0
    rig.grant()
    assert rig.dom0.map(rig.guest.domid, REF, 0).status == GNTST_general_error  # RAM is there
    assert (rig.granted[MFN], rig.in_use()) == (0, 0)
    assert rig.machine.audit() == []


@pytest.mark.parametrize("who", ["dom0", "guest"])
def test_what_is_held_ends_with_either(rig: Rig, who: str) -> None:
    rig.grant()
    assert rig.map_foreign(MFN + 1, 0x500) == 0
    assert rig.dom0.map(rig.guest.domid, REF, 0x1000).status == GNTST_okay
    domain: Domain = getattr(rig, who).domain
    while not domain.kill(1):
        assert rig.machine.audit() == []
    if who == "dom0":
        assert (rig.granted[MFN], rig.granted[MFN + 1]) == (0, 0)
    else:
        assert (rig.granted[MFN], rig.granted[MFN + 1]) == (1, 1)
        rig.unmap_foreign(0x500)
        rig.dom0.unmap(0, 0x1000)
        assert rig.guest.domid not in rig.machine.domains
    assert rig.machine.audit() == []


def test_the_page_of_its_process_is_nobody_else_s(rig: Rig) -> None:
    assert rig.guest.domain.memory.mapped(ARGUMENT_MFN).kind is PageKind.PRIVATE  # type: ignore[union-attr]
    rig.grant(mfn=ARGUMENT_MFN)
    assert rig.dom0.map(rig.guest.domid, REF, 0x1000).status < 0
    assert rig.map_foreign(ARGUMENT_MFN, 0x500) < 0


def map_of_dom0(rig: Rig, gpfn: int) -> int:
    """The guest's process maps a grant of dom0's, with an argument of its own."""
    rig.dom0.grant(9, rig.guest.domid, 2)
    operation = gnttab_map_grant_ref(host_addr=gpfn << 12, flags=2, ref=9, dom=rig.dom0.domid, status=1)
    argument = (RAM_FIRST << 12) + 0x100
    rig.guest.domain.memory.write(argument, operation.pack())
    assert rig.guest.hypercall(GRANT_TABLE_OP, GNTTABOP_map_grant_ref, argument, 1, root=0) == 0
    found: int = gnttab_map_grant_ref.unpack(rig.guest.domain.memory.read(argument, 32)).status
    return found


@pytest.mark.parametrize(
    "gpfn",
    [0, SHARED_INFO_MFN, GRANT_TABLE_FIRST + 5, FOREIGN_FIRST - 1, FOREIGN_END, RAM_FIRST + 1, 1 << 31],
)
def test_grants_of_others_appear_in_the_window_alone(rig: Rig, gpfn: int) -> None:
    assert map_of_dom0(rig, gpfn) == GNTST_general_error
    assert rig.dom0.in_use(9) == ""
    assert map_of_dom0(rig, FOREIGN_FIRST) == GNTST_okay
    assert map_of_dom0(rig, FOREIGN_END - 1) == GNTST_okay
    assert rig.machine.audit() == []


# ---- a model


class Uses(RuleBasedStateMachine):
    """dom0 maps and copies, the guest makes tables of what nobody may write to: never both."""

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig()
        for reference in range(4):
            self.rig.grant(REF + reference, MFN + reference // 2)
        self.mapped: list[tuple[int, int]] = []
        self.foreign: list[int] = []
        self.next_gpfn = 0x1000

    def is_table(self, mfn: int) -> bool:
        return bool(self.rig.types[mfn] == PGT_l1_page_table)

    @rule(reference=st.integers(0, 3), readonly=st.booleans())
    def map_one(self, reference: int, readonly: bool) -> None:
        self.next_gpfn += 1
        mapping = self.rig.dom0.map(self.rig.guest.domid, REF + reference, self.next_gpfn, readonly=readonly)
        expected = GNTST_general_error if self.is_table(MFN + reference // 2) and not readonly else GNTST_okay
        assert mapping.status == expected
        if mapping.status == GNTST_okay:
            self.mapped.append((mapping.handle, self.next_gpfn))

    @precondition(lambda self: self.mapped)
    @rule(data=st.data())
    def unmap_one(self, data: st.DataObject) -> None:
        handle, gpfn = self.mapped.pop(data.draw(st.integers(0, len(self.mapped) - 1)))
        assert self.rig.dom0.unmap(handle, gpfn) == GNTST_okay

    @rule(frame=st.integers(0, 1))
    def map_foreign_frame(self, frame: int) -> None:
        self.next_gpfn += 1
        error = self.rig.map_foreign(MFN + frame, self.next_gpfn)
        assert error == (-XEN_EBUSY if self.is_table(MFN + frame) else 0)
        if not error:
            self.foreign.append(self.next_gpfn)

    @precondition(lambda self: self.foreign)
    @rule()
    def unmap_foreign_frame(self) -> None:
        self.rig.unmap_foreign(self.foreign.pop())

    @rule(reference=st.integers(0, 3))
    def copy_one(self, reference: int) -> None:
        status = self.rig.dom0.copy(
            own(1), granted(self.rig.guest.domid, REF + reference), 8, GNTCOPY_dest_gref
        )
        assert (status == GNTST_okay) is not self.is_table(MFN + reference // 2)

    @rule(frame=st.integers(0, 1))
    def promote(self, frame: int) -> None:
        mfn = MFN + frame
        self.rig.types[mfn] = PGT_l1_page_table
        if self.rig.granted[mfn]:
            self.rig.types[mfn] = PGT_none

    @rule(frame=st.integers(0, 1))
    def demote(self, frame: int) -> None:
        self.rig.types[MFN + frame] = PGT_none

    @invariant()
    def no_table_is_written_by_others(self) -> None:
        frames = self.rig.machine.frames
        for mfn in (MFN, MFN + 1):
            machine_frame = self.rig.guest.domain.memory.mfn(mfn)
            assert machine_frame is not None
            assert not (self.is_table(mfn) and frames.writable[machine_frame])
        assert self.rig.machine.audit() == []


TestUses = Uses.TestCase
TestUses.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
