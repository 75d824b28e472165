"""Frames and the life of domains against a simple model: hypercalls in any order, a recount after each."""

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from hypervisor.abi import domctl as control
from hypervisor.abi import memory as abi
from hypervisor.abi.xen import DOMID_SELF
from hypervisor.abi.xen import __HYPERVISOR_domctl as domctl
from hypervisor.abi.xen import __HYPERVISOR_memory_op as memory_op
from hypervisor.extent import PAGE_SIZE
from hypervisor.lifecycle import Life
from tests.hypervisor.fakes import ARGUMENT, Guest, new_machine

LIST = 0x1000
MACHINE_PAGES = 400
MAX_PAGES = 90
GPFNS = st.integers(0, 120)
WINDOW = 10_000
"""dom0's gpfns from here on are for foreign pages"""


@dataclass
class Page:
    """One frame, wherever it is seen. `owned`: its domain has not given it up."""

    content: int = 0
    owned: bool = True
    mappings: int = 0


@dataclass
class Model:
    """What a domain should be."""

    pages: dict[int, Page] = field(default_factory=dict)
    lost: list[Page] = field(default_factory=list)  # given up while dom0 had it mapped
    life: Life = Life.CREATED
    pauses: int = 1
    killing: bool = False

    def tot_pages(self) -> int:
        return len(self.pages) + sum(1 for page in self.lost if page.mappings)


class Domains(RuleBasedStateMachine):
    """dom0 builds, fills, looks into, pauses, kills; the model says what must be so."""

    domids = Bundle("domids")
    windows = Bundle("windows")

    def __init__(self) -> None:
        super().__init__()
        self.machine, _ = new_machine(MACHINE_PAGES * PAGE_SIZE)
        self.dom0 = Guest(self.machine, pages=16)
        self.models: dict[int, Model] = {}
        self.mapped: dict[int, tuple[int, Page]] = {}
        self.next_window = WINDOW

    # How dom0 asks

    def control(self, cmd: int, domid: int, request: control.xen_domctl | None = None) -> tuple[int, int]:
        request = request or control.xen_domctl()
        request.cmd, request.domain = cmd, domid
        request.interface_version = control.XEN_DOMCTL_INTERFACE_VERSION
        memory = self.dom0.domain.memory
        memory.write_struct(ARGUMENT, request)
        result = self.dom0.hypercall(domctl, ARGUMENT)
        return result, memory.read_struct(control.xen_domctl, ARGUMENT).domain

    def reserve(self, op: int, domid: int, gpfns: list[int], order: int) -> int:
        for index, gpfn in enumerate(gpfns):
            self.dom0.domain.memory.write_u64(LIST + 8 * index, gpfn)
        request = abi.xen_memory_reservation(
            extent_start=LIST, nr_extents=len(gpfns), extent_order=order, domid=domid
        )
        return self.dom0.operate(memory_op, op, request)[0]

    def alive(self, domid: int) -> Model | None:
        """The model, if the domain is there and not dying."""
        model = self.models.get(domid)
        return None if model is None or model.killing else model

    def left(self) -> int:
        used = sum(model.tot_pages() + self.special(domid) for domid, model in self.models.items())
        return MACHINE_PAGES - used - self.dom0.domain.tot_pages - self.special(0)

    def special(self, domid: int) -> int:
        return self.machine.domain(domid).reservation.special_pages

    # What happens

    @rule(target=domids)
    def create(self) -> int:
        request = control.xen_domctl()
        request.u.createdomain = control.xen_domctl_createdomain(
            flags=control.XEN_DOMCTL_CDF_hvm | control.XEN_DOMCTL_CDF_hap,
            max_vcpus=1,
            max_evtchn_port=100,
            max_grant_frames=2,
            max_maptrack_frames=1,
        )
        room = self.left()
        result, domid = self.control(control.XEN_DOMCTL_createdomain, 0, request)
        assert (result == 0) == (room >= 2)
        if result:
            return 0x7000  # names nobody
        self.models[domid] = Model()
        domain = self.machine.domain(domid)
        domain.reservation.max_pages = MAX_PAGES
        domain.add_vcpus()
        return domid

    @rule(domid=domids, gpfns=st.lists(GPFNS, min_size=1, max_size=12), order=st.integers(0, 4))
    def populate(self, domid: int, gpfns: list[int], order: int) -> None:
        model = self.alive(domid)
        expected = 0
        if model is not None:
            room = min(self.left(), MAX_PAGES - model.tot_pages())
            for gpfn in gpfns:
                extent = range(gpfn, gpfn + (1 << order))
                if (1 << order) > room or any(page in model.pages for page in extent):
                    break
                model.pages.update({page: Page() for page in extent})
                room -= 1 << order
                expected += 1
        assert self.reserve(abi.XENMEM_populate_physmap, domid, gpfns, order) == expected

    @rule(domid=domids, gpfns=st.lists(GPFNS, min_size=1, max_size=12), order=st.integers(0, 3))
    def decrease(self, domid: int, gpfns: list[int], order: int) -> None:
        model = self.alive(domid)
        expected = 0
        if model is not None:
            for gpfn in gpfns:
                extent = range(gpfn, gpfn + (1 << order))
                for page in extent:
                    if page not in model.pages:
                        break
                    model.pages[page].owned = False
                    model.lost.append(model.pages.pop(page))
                else:
                    expected += 1
                    continue
                break
        assert self.reserve(abi.XENMEM_decrease_reservation, domid, gpfns, order) == expected

    @rule(domid=domids, gpfn=GPFNS, content=st.integers(1, 255))
    def write(self, domid: int, gpfn: int, content: int) -> None:
        model = self.alive(domid)
        if model is not None and gpfn in model.pages:
            self.machine.domain(domid).memory.write(gpfn * PAGE_SIZE + 100, bytes([content]))
            model.pages[gpfn].content = content

    @rule(target=windows, domid=domids, gpfn=GPFNS)
    def look_into(self, domid: int, gpfn: int) -> int:
        window = self.next_window
        self.next_window += 1
        memory = self.dom0.domain.memory
        memory.write_u64(LIST, gpfn)
        memory.write_u64(LIST + 8, window)
        request = abi.xen_add_to_physmap_batch(
            domid=DOMID_SELF,
            space=abi.XENMAPSPACE_gmfn_foreign,
            size=1,
            idxs=LIST,
            gpfns=LIST + 8,
            errs=LIST + 16,
        )
        request.u.foreign_domid = domid
        assert self.dom0.operate(memory_op, abi.XENMEM_add_to_physmap_batch, request)[0] == 0
        model = self.models.get(domid)
        there = model is not None and not model.killing and gpfn in model.pages
        assert (memory.read_u32(LIST + 16) == 0) == there
        if model is not None and there:
            page = model.pages[gpfn]
            page.mappings += 1
            self.mapped[window] = (domid, page)
        return window

    @rule(window=consumes(windows))
    def look_away(self, window: int) -> None:
        request = abi.xen_remove_from_physmap(domid=DOMID_SELF, gpfn=window)
        result, _ = self.dom0.operate(memory_op, abi.XENMEM_remove_from_physmap, request)
        domid, page = self.mapped.pop(window, (0, None))
        assert (result == 0) == (page is not None)
        if page is not None:
            page.mappings -= 1
            self.expect_burial(domid)

    @rule(domid=domids)
    def pause(self, domid: int) -> None:
        model = self.models.get(domid)
        result, _ = self.control(control.XEN_DOMCTL_pausedomain, domid)
        assert (result == 0) == (model is not None and model.pauses < 255)
        if model is not None:
            model.pauses += 1

    @rule(domid=domids)
    def unpause(self, domid: int) -> None:
        model = self.models.get(domid)
        result, _ = self.control(control.XEN_DOMCTL_unpausedomain, domid)
        assert (result == 0) == (model is not None and model.pauses > 0)
        if result == 0 and model is not None:
            model.pauses -= 1
            if model.life is Life.CREATED:
                model.life = Life.ALIVE

    @rule(domid=domids, reason=st.integers(0, 5))
    def shut_down(self, domid: int, reason: int) -> None:
        model = self.models.get(domid)
        if model is not None:
            self.machine.domain(domid).shutdown(reason)
            if model.life in (Life.CREATED, Life.ALIVE):
                model.life = Life.SHUT_DOWN

    @rule(domid=domids)
    def resume(self, domid: int) -> None:
        model = self.models.get(domid)
        result, _ = self.control(control.XEN_DOMCTL_resumedomain, domid)
        assert (result == 0) == (model is not None and model.life is Life.SHUT_DOWN)
        if result == 0 and model is not None:
            model.life = Life.ALIVE

    @rule(domid=domids, budget=st.integers(1, 40))
    def kill_a_little(self, domid: int, budget: int) -> None:
        model = self.models.get(domid)
        if model is None or model.life is Life.DEAD:
            return
        done = self.machine.domain(domid).kill(budget)
        model.killing, model.life = True, Life.DYING
        if done:
            self.expect_death(domid, model)

    @precondition(lambda self: self.models)
    @rule(domid=domids)
    def destroy(self, domid: int) -> None:
        model = self.models.get(domid)
        assert (self.control(control.XEN_DOMCTL_destroydomain, domid)[0] == 0) == (model is not None)
        if model is not None:
            model.killing = True
            self.expect_death(domid, model)

    def expect_death(self, domid: int, model: Model) -> None:
        for page in model.pages.values():
            page.owned = False
            model.lost.append(page)
        model.pages.clear()
        model.life = Life.DEAD
        self.expect_burial(domid)

    def expect_burial(self, domid: int) -> None:
        model = self.models.get(domid)
        if model is not None and model.life is Life.DEAD and not model.tot_pages():
            del self.models[domid]

    # What must be so

    @invariant()
    def counts_are_right(self) -> None:
        assert self.machine.audit() == []

    @invariant()
    def nothing_went_wrong_within(self) -> None:
        assert list(self.machine.faults) == []

    @invariant()
    def domains_are_as_the_model_says(self) -> None:
        assert set(self.machine.domains) == {0, *self.models}
        for domid, model in self.models.items():
            domain = self.machine.domain(domid)
            assert (domain.life, domain.pause_count) == (model.life, model.pauses)
            if not model.killing or model.life is Life.DEAD:
                assert domain.tot_pages == model.tot_pages()
            if not model.killing:
                seen = {
                    gpfn for run in domain.memory.runs() for gpfn in range(run.gpfn, run.gpfn + run.count)
                }
                assert seen == set(model.pages)

    @invariant()
    def everybody_sees_what_was_written(self) -> None:
        for domid, model in self.models.items():
            if not model.killing:
                memory = self.machine.domain(domid).memory
                for gpfn, page in model.pages.items():
                    assert memory.read(gpfn * PAGE_SIZE + 100, 1)[0] == page.content
        for window, (_, page) in self.mapped.items():
            assert self.dom0.domain.memory.read(window * PAGE_SIZE + 100, 1)[0] == page.content


TestDomains = Domains.TestCase
TestDomains.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
