"""Random sequences of paging hypercalls of two vCPUs, interrupted anywhere, by a guest that knows what it attacks.

Nothing is predicted here. After each step the recount must agree with every count, and a processor that has cached
whatever it could must have no way to write to a table: that is the invariant.
"""

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from hypervisor.abi.grant_table import GNTMAP_contains_pte, GNTMAP_host_map, GNTMAP_readonly
from hypervisor.abi.mmu import (
    MMUEXT_CLEAR_PAGE,
    MMUEXT_COPY_PAGE,
    MMUEXT_NEW_BASEPTR,
    MMUEXT_NEW_USER_BASEPTR,
    MMUEXT_PIN_L1_TABLE,
    MMUEXT_SET_LDT,
    MMUEXT_TLB_FLUSH_LOCAL,
    MMUEXT_UNPIN_TABLE,
    UVMF_INVLPG,
    UVMF_TLB_FLUSH,
    mmu_update,
)
from hypervisor.abi.xen import DOMID_SELF
from hypervisor.continuation import Continuation
from hypervisor.errors import XenError
from hypervisor.pv.frames import Kind, TypeOfFrame
from hypervisor.pv.layout import FOREIGN_FIRST, MFN_END, SHARED_INFO_MFN
from tests.hypervisor.pv.paging import (
    ARGUMENT,
    FIRST_FREE,
    L1,
    L3,
    L4,
    RW,
    P,
    PagedGuest,
    entry,
    machine_address,
    mfn,
    va,
)

PAGES = 20
SLOTS = (0, 1, 255, 256, 260, 510, 511)

pages = st.integers(0, PAGES - 1)
slots = st.sampled_from(SLOTS)
flags = st.sampled_from([0, P, P | RW, P | RW, P | RW | 4, P | 1 << 63, P | RW | 1 << 7, P | 1 << 62])
frames = st.one_of(
    pages.map(mfn),
    st.sampled_from(
        [SHARED_INFO_MFN, FOREIGN_FIRST, FOREIGN_FIRST + 1, mfn(PAGES), MFN_END, (1 << 40) - 1, 0]
    ),
)
values = st.builds(lambda frame, bits: frame << 12 | bits, frames, flags)
addresses = st.one_of(
    pages.map(va), st.sampled_from([0, 0x1000, va(255), 1 << 30, 1 << 47, 0xFFFF_8000_0000_0000, va(510)])
)


class Paging(RuleBasedStateMachine):
    """vCPU 1 shares the first root at the start. calls: hypercalls that are to go on, by vCPU. grants: once mapped."""

    @initialize()
    def start(self) -> None:
        self.guest = PagedGuest(PAGES).start()
        self.guest.page_tables.set_roots(self.guest.vcpus[1], mfn(L4), 0)
        self.calls = {}
        self.grants = []

    def call(self, vcpu: int, hypercall, *args: int) -> None:
        """One slice of it: the vCPU may have something else to go on with."""
        hypercall, args = self.calls.pop(vcpu, (hypercall, args))
        try:
            result = hypercall(self.guest.vcpus[vcpu], *args)
        except XenError:
            result = None
        if isinstance(result, Continuation):
            self.calls[vcpu] = hypercall, result.args
        self.guest.check()

    def writable(self, page: int) -> bool:
        return self.guest.type_of(mfn(page)) in (TypeOfFrame.NONE, TypeOfFrame.WRITABLE)

    # What a guest does with memory, where it may write

    @rule(page=pages, slot=slots, value=values)
    def write(self, page: int, slot: int, value: int) -> None:
        """Through a writable mapping that some page table or the processor's cache still has."""
        cached = any(frame == mfn(page) and writable for _, frame, writable in self.guest.cpu.cached)
        if cached:
            assert self.writable(page)
        if self.writable(page) and page != ARGUMENT:
            self.guest.set(page, slot, value)

    @rule(
        vcpu=st.integers(0, 1),
        tree=st.lists(pages, min_size=4, max_size=6, unique=True),
        slot=slots,
        last=values,
        command=st.sampled_from([MMUEXT_PIN_L1_TABLE + 3, MMUEXT_NEW_BASEPTR, MMUEXT_NEW_USER_BASEPTR]),
    )
    def use_tree(self, vcpu: int, tree: list[int], slot: int, last: int, command: int) -> None:
        """Write an L4, an L3, an L2 and L1 tables into pages that nobody maps any more, the last entry as you like it,
        and use them.
        """
        for page in tree:
            self.call(0, self.guest.page_tables.update_va_mapping, va(page), entry(page, P), 0)
        if ARGUMENT in tree or not all(self.writable(page) for page in tree):
            return
        first, second, third, *leaves = tree
        for page in tree:
            self.guest.memory.frame(mfn(page))[:] = bytes(4096)
        self.guest.set(first, slot, entry(second))
        self.guest.set(first, 511, entry(L3))
        self.guest.set(second, slot, entry(third))
        for index, leaf in enumerate(leaves):
            self.guest.set(third, index, entry(leaf))
            self.guest.set(leaf, 0, entry(ARGUMENT))
        self.guest.set(leaves[-1], 511, last)
        if vcpu == 1 and command == MMUEXT_NEW_BASEPTR:
            command = MMUEXT_NEW_USER_BASEPTR
        self.operate(vcpu, [(command, mfn(first))])

    @rule(page=pages, level=st.integers(2, 4), child=pages, slot=slots)
    def link(self, page: int, level: int, child: int, slot: int) -> None:
        """Prepare a table of a higher level: whatever it was, it is read-only where it was mapped first."""
        self.call(0, self.guest.page_tables.update_va_mapping, va(page), entry(page, P), 0)
        if self.writable(page) and page != ARGUMENT:
            for other in SLOTS:
                self.guest.set(page, other, 0)
            self.guest.set(page, slot, entry(child))
            self.operate(0, [(MMUEXT_PIN_L1_TABLE + level - 1, mfn(page))])

    @precondition(lambda self: self.calls)
    @rule(vcpu=st.integers(0, 1))
    def go_on(self, vcpu: int) -> None:
        """With whatever was interrupted, to its end or not."""
        if vcpu in self.calls:
            hypercall, args = self.calls[vcpu]
            self.call(vcpu, hypercall, *args)

    # Hypercalls

    def operate(self, vcpu: int, operations: list[tuple[int, ...]]) -> None:
        if self.writable(ARGUMENT):
            self.guest.put_arguments(self.guest.packed(*operations))
        args = va(ARGUMENT), len(operations), 0, DOMID_SELF
        self.call(vcpu, self.guest.page_tables.mmuext_op, *args)

    @rule(vcpu=st.integers(0, 1), page=pages, level=st.integers(0, 3))
    def pin(self, vcpu: int, page: int, level: int) -> None:
        self.operate(vcpu, [(MMUEXT_PIN_L1_TABLE + level, mfn(page))])

    @rule(vcpu=st.integers(0, 1), page=pages)
    def unpin(self, vcpu: int, page: int) -> None:
        self.operate(vcpu, [(MMUEXT_UNPIN_TABLE, mfn(page))])

    @rule(page=pages, level=st.integers(0, 3))
    def protect_and_pin(self, page: int, level: int) -> None:
        self.call(0, self.guest.page_tables.update_va_mapping, va(page), entry(page, P), 0)
        self.pin(0, page, level)

    @rule(
        vcpu=st.integers(0, 1),
        page=pages,
        command=st.sampled_from(
            [
                MMUEXT_NEW_BASEPTR,
                MMUEXT_NEW_USER_BASEPTR,
                MMUEXT_CLEAR_PAGE,
                MMUEXT_COPY_PAGE,
                MMUEXT_TLB_FLUSH_LOCAL,
            ]
        ),
        source=pages,
    )
    def extended(self, vcpu: int, page: int, command: int, source: int) -> None:
        if vcpu == 1 and command == MMUEXT_NEW_BASEPTR:
            command = MMUEXT_NEW_USER_BASEPTR  # the processor is vCPU 0's
        if page == ARGUMENT and command in (MMUEXT_CLEAR_PAGE, MMUEXT_COPY_PAGE):
            return
        self.operate(vcpu, [(command, mfn(page), mfn(source))])

    @rule(page=pages, entries=st.sampled_from([0, 1, 600]))
    def set_ldt(self, page: int, entries: int) -> None:
        self.operate(0, [(MMUEXT_SET_LDT, va(page), entries)])

    @rule(
        vcpu=st.integers(0, 1),
        requests=st.lists(
            st.tuples(pages, slots, st.sampled_from([0, 2, 3]), values), min_size=1, max_size=4
        ),
    )
    def update(self, vcpu: int, requests: list[tuple[int, int, int, int]]) -> None:
        data = b"".join(
            mmu_update(ptr=machine_address(page, slot) | command, val=value).pack()
            for page, slot, command, value in requests
        )
        if self.writable(ARGUMENT):
            self.guest.put_arguments(data)
        args = va(ARGUMENT), len(requests), 0, DOMID_SELF
        self.call(vcpu, self.guest.page_tables.mmu_update, *args)

    @rule(address=addresses, value=values, how=st.sampled_from([0, UVMF_TLB_FLUSH, UVMF_INVLPG]))
    def map(self, address: int, value: int, how: int) -> None:
        self.call(0, self.guest.page_tables.update_va_mapping, address, value, how)

    @rule(page=pages, slot=slots, size=st.sampled_from([1, 2, 4, 8]), offset=st.integers(0, 7), value=values)
    def emulate(self, page: int, slot: int, size: int, offset: int, value: int) -> None:
        self.guest.page_tables.emulate_pte_write(machine_address(page, slot) + offset, size, value)
        self.guest.check()

    # Others

    @rule(
        page=pages,
        slot=slots,
        frame=st.integers(0, 2),
        how=st.sampled_from([0, GNTMAP_readonly]),
        pte=st.booleans(),
    )
    def map_grant(self, page: int, slot: int, frame: int, how: int, pte: bool) -> None:
        address = machine_address(page, slot) if pte else va(page)
        how |= GNTMAP_host_map | (GNTMAP_contains_pte if pte else 0)
        grant = address, how, FOREIGN_FIRST + frame
        if self.quietly(self.guest.page_tables.map_grant, self.guest.vcpu, *grant):
            self.grants.append(grant)

    @precondition(lambda self: self.grants)
    @rule(
        index=st.integers(0, 9),
        how=st.sampled_from([0, 0, 0, GNTMAP_readonly]),
        frame=st.sampled_from([0, 0, 0, 1]),
    )
    def unmap_grant(self, index: int, how: int, frame: int) -> None:
        address, made, mapped = self.grants[index % len(self.grants)]
        self.quietly(self.guest.page_tables.unmap_grant, self.guest.vcpu, address, made ^ how, mapped ^ frame)

    @rule(page=pages)
    def others_may_write(self, page: int) -> None:
        """The machine-wide core's side of the ledger."""
        self.guest.granted[mfn(page)] += 1
        if not self.writable(page):
            self.guest.granted[mfn(page)] -= 1
        self.guest.check()

    @rule(page=pages)
    def others_have_written(self, page: int) -> None:
        if self.guest.granted[mfn(page)]:
            self.guest.granted[mfn(page)] -= 1

    @rule(page=pages)
    def balloon(self, page: int) -> None:
        """Give it back, and get it again."""
        self.call(0, self.guest.page_tables.update_va_mapping, va(page), 0, 0)
        if self.quietly(self.guest.page_tables.vanish, mfn(page), 1):
            self.guest.memory.frame(mfn(page))[:] = bytes(4096)
            self.guest.page_tables.appear(mfn(page), 1, Kind.OWN)
            self.guest.check()

    def quietly(self, operation, *args) -> bool:
        try:
            operation(*args)
        except XenError:
            return False
        finally:
            self.guest.check()
        return True

    @rule()
    def hop(self) -> None:
        """Dump, and load on fresh counts."""
        guest = self.guest
        state = guest.page_tables.dump()
        guest.check()
        before = {page: guest.counted(page) for page in range(PAGES)}
        loaded = guest.hopped(state)
        assert {page: loaded.counted(page) for page in range(PAGES)} == before
        loaded.check()

    def teardown(self) -> None:
        if hasattr(self, "guest"):
            self.guest.release_all()


@pytest.fixture(autouse=True)
def cramped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every slice does one table, and is interrupted."""
    monkeypatch.setattr("hypervisor.pv.mmu_update.BUDGET", 1)
    monkeypatch.setattr("hypervisor.pv.mmuext.BUDGET", 1)


def test_first_pages_are_what_the_rules_take_them_for() -> None:
    assert L1 < ARGUMENT < FIRST_FREE < PAGES


TestPaging = Paging.TestCase
TestPaging.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
