"""The time records that a guest reads, by the arithmetic that a guest does."""

import hypothesis.strategies as st
from hypothesis import given

from hypervisor.abi.xen import shared_info, vcpu_info, vcpu_time_info
from hypervisor.vcpu.clock import publish_system_time, publish_wall_clock
from tests.hypervisor.fakes import Guest, new_machine


def guest_time(record: vcpu_time_info, tsc: int) -> int:
    """pvclock, as public/xen.h describes it."""
    delta = tsc - record.tsc_timestamp
    delta = delta << record.tsc_shift if record.tsc_shift >= 0 else delta >> -record.tsc_shift
    return record.system_time + (delta * record.tsc_to_system_mul >> 32)


@given(st.integers(0, 2**50), st.integers(0, 2**40))
def test_the_counter_of_nanoseconds_gives_system_time(published: int, later: int) -> None:
    machine, host = new_machine()
    guest = Guest(machine)
    host.time_ns = published
    publish_system_time(guest.vcpu)
    record = vcpu_info.unpack(guest.vcpu.info).time
    assert guest_time(record, published + later) == published + later


def test_the_version_is_even_and_grows_and_wraps() -> None:
    machine, _ = new_machine()
    guest = Guest(machine)
    words = guest.vcpu.info.cast("I")
    version = vcpu_info.offsets["time"] // 4
    for before, after in [(0, 2), (2, 4), (1, 4), (2**32 - 2, 0), (2**32 - 1, 2)]:
        words[version] = before
        publish_system_time(guest.vcpu)
        assert words[version] == after


def test_the_rest_of_vcpu_info_stays() -> None:
    machine, _ = new_machine()
    guest = Guest(machine)
    before = bytes(guest.vcpu.info[:32])
    publish_system_time(guest.vcpu)
    assert bytes(guest.vcpu.info[:32]) == before


def test_the_wall_clock_is_that_of_system_time_zero() -> None:
    machine, host = new_machine()
    guest = Guest(machine)
    host.time_ns = 5_000_000_000
    host.wall_clock_offset_ns = (2**33) * 1_000_000_000 + 17
    publish_wall_clock(guest.domain)
    page = shared_info.unpack(guest.domain.shared_info)
    assert (page.wc_sec_hi << 32 | page.wc_sec, page.wc_nsec) == (2**33, 17)
    assert page.wc_version % 2 == 0
    assert page.wc_version > 0
