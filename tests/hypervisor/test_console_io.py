"""console_io: what reaches the operator, and how much of it."""

import pytest

from hypervisor.abi.errno import XEN_EFAULT, XEN_ENOSYS, XEN_EPERM
from hypervisor.abi.xen import CONSOLEIO_read, CONSOLEIO_write
from hypervisor.abi.xen import __HYPERVISOR_console_io as console_io
from hypervisor.console_io import BURST_BYTES, BYTES_PER_SECOND, BYTES_PER_SLICE
from hypervisor.continuation import Continuation
from tests.hypervisor.fakes import FakeHost, Guest, new_machine

BUFFER = 0x1000


@pytest.fixture
def machine() -> tuple[Guest, Guest, FakeHost]:
    machine, host = new_machine()
    return Guest(machine, pages=64), Guest(machine, pages=64), host


def written(host: FakeHost, guest: Guest) -> bytes:
    return b"".join(data for domain, data in host.console_output if domain is guest.domain)


def write(guest: Guest, data: bytes) -> int:
    guest.domain.memory.write(BUFFER, data)
    return guest.hypercall(console_io, CONSOLEIO_write, len(data), BUFFER)


def test_what_is_written_arrives(machine: tuple[Guest, Guest, FakeHost]) -> None:
    dom0, guest, host = machine
    assert write(guest, b"hello\n\tworld\n") == 0
    assert write(dom0, b"here\n") == 0
    assert (written(host, guest), written(host, dom0)) == (b"hello\n\tworld\n", b"here\n")
    assert guest.domain.counters.console_bytes == 13


def test_a_guest_cannot_play_with_the_operators_terminal(machine: tuple[Guest, Guest, FakeHost]) -> None:
    dom0, guest, host = machine
    assert write(guest, b"\x1b[2Jgone\r\x00\x7f\x9b\xff!") == 0
    assert written(host, guest) == b"[2Jgone!"
    assert write(dom0, b"\x1b[1m") == 0
    assert written(host, dom0) == b"\x1b[1m"


def test_long_output_is_sliced(machine: tuple[Guest, Guest, FakeHost]) -> None:
    _, guest, host = machine
    text = bytes(ord("a") + index % 26 for index in range(3 * BYTES_PER_SLICE + 5))
    guest.domain.memory.write(BUFFER, text)
    rest = guest.machine.hypercall(guest.vcpu, console_io, (CONSOLEIO_write, len(text), BUFFER))
    expected = (CONSOLEIO_write, len(text) - BYTES_PER_SLICE, BUFFER + BYTES_PER_SLICE)
    assert rest == Continuation(console_io, expected)
    assert written(host, guest) == text[:BYTES_PER_SLICE]
    host.console_output.clear()
    assert write(guest, text) == 0
    assert written(host, guest) == text


def test_output_is_limited_in_rate_and_the_guest_never_waits(machine: tuple[Guest, Guest, FakeHost]) -> None:
    """XSA-180, -152."""
    dom0, guest, host = machine
    for _ in range(100):
        assert write(guest, b"x" * BYTES_PER_SLICE) == 0
        assert write(dom0, b"y" * BYTES_PER_SLICE) == 0
    assert len(written(host, guest)) == BURST_BYTES
    assert len(written(host, dom0)) == 100 * BYTES_PER_SLICE
    assert guest.domain.counters.console_bytes_dropped == 100 * BYTES_PER_SLICE - BURST_BYTES
    for _ in range(1000):
        host.time_ns += 1_000_000
        write(guest, b"x" * 100)
    assert BURST_BYTES + BYTES_PER_SECOND * 0.9 <= len(written(host, guest)) <= BURST_BYTES + BYTES_PER_SECOND
    host.time_ns += 3600 * 10**9
    host.console_output.clear()
    for _ in range(100):
        write(guest, b"x" * BYTES_PER_SLICE)
    assert len(written(host, guest)) == BURST_BYTES


def test_handles_are_checked(machine: tuple[Guest, Guest, FakeHost]) -> None:
    _, guest, host = machine
    assert guest.hypercall(console_io, CONSOLEIO_write, 10, 64 << 12) == -XEN_EFAULT
    assert guest.hypercall(console_io, CONSOLEIO_write, 10, (1 << 64) - 5) == -XEN_EFAULT
    assert host.console_output == []
    guest.domain.memory.write((64 << 12) - 4, b"tail")
    assert guest.hypercall(console_io, CONSOLEIO_write, 0xFFFF_FFFF, (64 << 12) - 4) == -XEN_EFAULT
    assert host.console_output == []


def test_there_is_nothing_to_read(machine: tuple[Guest, Guest, FakeHost]) -> None:
    dom0, guest, _ = machine
    assert dom0.hypercall(console_io, CONSOLEIO_read, 10, BUFFER) == 0
    assert guest.hypercall(console_io, CONSOLEIO_read, 10, BUFFER) == -XEN_EPERM
    assert dom0.hypercall(console_io, 2, 10, BUFFER) == -XEN_ENOSYS
    assert write(dom0, b"") == 0
