"""The daemon's way to a domain's page, on the real core: mapped and bound, or neither."""

import pytest

from dom0.xenstore.errors import CannotConnect
from dom0.xenstore.kernel_rings import KernelRings
from hypervisor.abi.grant_table import GNTTAB_RESERVED_XENSTORE
from tests.kernel.guests import BareKernel, bare_machine


class Pair:
    """dom0's kernel, and that of a guest that granted a page under the reserved reference."""

    def __init__(self) -> None:
        machine = bare_machine()
        self.dom0 = BareKernel(machine)
        self.guest = BareKernel(machine)
        self.rings = KernelRings(self.dom0.memory, self.dom0.grants, self.dom0.events)
        self.page = self.guest.pages.allocate()
        self.grant(self.page.pfn)
        self.port = self.guest.events.alloc_unbound(0)

    def grant(self, pfn: int) -> None:
        """As the toolstack does it for a guest that does not run yet."""
        self.guest.grants.grant(0, pfn)  # shares the first page of the table
        table = self.guest.platform.domain.grants
        entries = self.dom0.platform.machine.frames.view(table.shared_frame(0)).cast("H")
        words = entries.cast("B").cast("I")
        words[GNTTAB_RESERVED_XENSTORE * 2 + 1] = pfn
        entries[GNTTAB_RESERVED_XENSTORE * 4 + 1] = 0
        entries[GNTTAB_RESERVED_XENSTORE * 4] = 1

    def mapped(self) -> int:
        entries = self.guest.platform.domain.grants.shared_frame(0)
        flags: int = self.dom0.platform.machine.frames.view(entries).cast("H")[GNTTAB_RESERVED_XENSTORE * 4]
        return flags & 0x18


def test_the_page_is_shared_and_the_port_connected() -> None:
    pair = Pair()
    way = pair.rings(pair.guest.domid, 0, pair.port.port)
    way.page[100] = 7
    assert pair.page.view[100] == 7
    pair.guest.events.dispatch()
    before = pair.port.received
    way.port.notify()
    pair.guest.events.dispatch()
    assert pair.port.received == before + 1
    heard: list[bool] = []
    way.port.on_event = lambda: heard.append(True)
    pair.dom0.events.dispatch()
    heard.clear()
    pair.port.notify()
    pair.dom0.events.dispatch()
    assert heard == [True]


def test_closing_unmaps_and_unbinds() -> None:
    pair = Pair()
    way = pair.rings(pair.guest.domid, 0, pair.port.port)
    assert pair.mapped()
    way.close()
    assert not pair.mapped()
    way = pair.rings(pair.guest.domid, 0, pair.guest.events.alloc_unbound(0).port)
    way.close()


def test_a_port_that_is_not_for_us_leaves_nothing_mapped() -> None:
    pair = Pair()
    with pytest.raises(CannotConnect) as failure:
        pair.rings(pair.guest.domid, 0, 3999)
    assert failure.value.domid == pair.guest.domid
    assert not pair.mapped()


def test_a_domain_without_the_grant() -> None:
    pair = Pair()
    other = BareKernel(pair.dom0.platform.machine)
    with pytest.raises(CannotConnect):
        pair.rings(other.domid, 0, other.events.alloc_unbound(0).port)
    with pytest.raises(CannotConnect):
        pair.rings(1234, 0, 1)


def test_the_own_ring_is_a_page_of_our_memory() -> None:
    pair = Pair()
    page = pair.dom0.pages.allocate()
    port = pair.dom0.events.alloc_unbound(pair.dom0.domid)
    way = pair.rings(0, page.pfn, port.port)
    way.page[0] = 9
    assert page.view[0] == 9
    pair.dom0.events.dispatch()
    way.port.notify()
    pair.dom0.events.dispatch()
    assert port.received >= 1
    way.close()
    with pytest.raises(CannotConnect):
        pair.rings(0, 1 << 40, port.port)
