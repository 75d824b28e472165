"""What native domains have counted, by name."""

from dom0.report.model import DomainReport, NativeReport
from dom0.report.native import VECTOR_NAMES, hypercall_counts, native_report
from dom0.scenario.counters import counter_at, wrong_counter
from hypervisor.pv.tally import TALLY_BYTES, Tally


def tally() -> Tally:
    return Tally.of(memoryview(bytearray(TALLY_BYTES)))


def test_nothing_is_told_of_what_has_not_happened() -> None:
    assert native_report(tally()) == NativeReport()
    assert hypercall_counts(tally()) == {}


def test_counts_and_means_by_name() -> None:
    counted = tally()
    counted.hypercalls[1], counted.nanoseconds[1] = 4, 10_000
    counted.hypercalls[32], counted.nanoseconds[32] = 1, 5
    counted.traps[14], counted.traps[13], counted.traps[0x80] = 3, 9, 1
    counted.syscalls, counted.slices = 7, 8
    assert hypercall_counts(counted) == {"mmu_update": 4, "event_channel_op": 1}
    report = native_report(counted)
    assert report.mean_us == {"mmu_update": 2.5, "event_channel_op": 0.01}
    assert list(report.traps.items()) == [("general_protection", 9), ("page_fault", 3), ("int_0x80", 1)]
    assert (report.syscalls, report.slices) == (7, 8)


def test_what_is_told_can_be_expected() -> None:
    counted = tally()
    counted.traps[14] = 3
    report = DomainReport(name="g", domid=1, program="k", native=native_report(counted))
    assert counter_at(report, "native.traps.page_fault") == 3
    assert counter_at(report, "native.traps.double_fault") == 0
    for name in VECTOR_NAMES.values():
        assert wrong_counter(f"native.traps.{name}", []) is None
