"""The boundary: numbers, widths of arguments, and how refusals come back."""

from collections.abc import Iterator

import pytest

from hypervisor import hypercalls
from hypervisor.abi import xen
from hypervisor.abi.errno import XEN_EFAULT, XEN_EINVAL, XEN_ENOSYS, XEN_EPERM, XEN_ESRCH
from hypervisor.continuation import Continuation
from hypervisor.errors import InvalidArgument
from hypervisor.hypercalls import TABLE, Entry, execute
from hypervisor.privileges import PRIVILEGES, Who
from hypervisor.vcpu.state import Vcpu
from tests.hypervisor.fakes import Guest, new_machine

PROBE = 0x7FFF
"""a hypercall number that only these tests have"""


class Probe:
    """A hypercall that records how it was called."""

    __name__ = "probe"

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []
        self.results: list[int | Continuation | Exception] = []

    def __call__(self, _caller: Vcpu, *args: int) -> int | Continuation:
        self.seen.append(args)
        result = self.results.pop(0) if self.results else 0
        if isinstance(result, Exception):
            raise result
        return result


@pytest.fixture
def probe() -> Iterator[Probe]:
    probe = Probe()
    TABLE[PROBE] = Entry(probe, {0: Who.ANY, 1: Who.CONTROL}, (0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF), 1)
    yield probe
    del TABLE[PROBE]


@pytest.fixture
def guest() -> Guest:
    machine, _ = new_machine()
    Guest(machine)
    return Guest(machine)


def test_every_hypercall_has_rights_and_every_right_a_hypercall() -> None:
    assert set(TABLE) == set(PRIVILEGES)
    for number, entry in TABLE.items():
        assert getattr(xen, f"__HYPERVISOR_{entry.name}") == number
        assert all(operation & ~entry.operation == 0 for operation in entry.rights) or entry.operation == 0


def test_arguments_are_cut_to_their_width(guest: Guest, probe: Probe) -> None:
    guest.hypercall(PROBE, 1 << 32, -1, 5, 6, 7)
    guest.hypercall(PROBE, -2, 1 << 64)
    assert probe.seen == [(0, 0xFFFF_FFFF_FFFF_FFFF), (0xFFFF_FFFE, 0)]


def test_arguments_that_are_missing_are_zero(guest: Guest, probe: Probe) -> None:
    guest.hypercall(PROBE)
    guest.hypercall(PROBE, 4)
    assert probe.seen == [(0, 0), (4, 0)]


def test_refusals_become_errno_and_are_counted(guest: Guest, probe: Probe) -> None:
    probe.results = [InvalidArgument("x", 1), InvalidArgument("x", 1, errno=XEN_EPERM)]
    assert guest.hypercall(PROBE) == -XEN_EINVAL
    assert guest.hypercall(PROBE) == -XEN_EPERM
    assert guest.hypercall(PROBE, 1) == -XEN_EPERM, "for control domains"
    assert guest.hypercall(12345) == -XEN_ENOSYS
    counters = guest.domain.counters
    assert (counters.hypercalls["probe"], counters.hypercalls_failed) == (3, 4)
    assert probe.seen == [(0, 0)] * 2


def test_operations_that_are_not_listed_do_not_exist(guest: Guest) -> None:
    for number, entry in TABLE.items():
        if entry.operation:
            missing = next(op for op in range(entry.operation) if op not in entry.rights)
            assert guest.hypercall(number, missing, 0) == -XEN_ENOSYS, entry.name


@pytest.mark.parametrize("number", [-1, 1 << 64, 2, 63])
def test_unknown_numbers(guest: Guest, number: int) -> None:
    assert guest.hypercall(number, 1, 2, 3) == -XEN_ENOSYS


@pytest.mark.parametrize("junk", ["0", None, 1.5, [], object()])
def test_junk_that_no_register_can_hold_costs_the_caller_its_life_only(guest: Guest, junk: object) -> None:
    other = Guest(guest.machine)
    assert guest.hypercall(xen.__HYPERVISOR_xen_version, junk, junk) == -XEN_EFAULT  # type: ignore[arg-type]
    assert guest.domain.stopped
    assert other.hypercall(xen.__HYPERVISOR_xen_version, 0) > 0
    assert len(guest.machine.faults) == 1


def test_the_dead_make_no_hypercalls(guest: Guest, probe: Probe) -> None:
    guest.domain.shutdown(0)
    assert guest.hypercall(PROBE) == -XEN_ESRCH
    assert probe.seen == []


def test_execute_goes_on_until_it_is_done(guest: Guest, probe: Probe) -> None:
    probe.results = [Continuation(PROBE, (2, 3)), Continuation(PROBE, (4, 5)), 7]
    assert execute(guest.vcpu, PROBE, (0, 1)) == 7
    assert probe.seen == [(0, 1), (2, 3), (4, 5)]


@pytest.mark.parametrize(
    "error", [RecursionError("deep"), MemoryError(), KeyError(3), AssertionError("ours")]
)
def test_nothing_leaves_the_core(guest: Guest, probe: Probe, error: Exception) -> None:
    probe.results = [error]
    assert guest.hypercall(PROBE, 0, 9) == -XEN_EFAULT
    (fault,) = guest.machine.faults
    assert (fault.hypercall, fault.args) == ("probe", (0, 9))
    assert type(error).__name__ in fault.traceback


def test_an_interrupt_of_the_host_passes(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted:
        def get(self, _number: int) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(hypercalls, "TABLE", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        guest.hypercall(PROBE)
    assert not guest.domain.stopped
