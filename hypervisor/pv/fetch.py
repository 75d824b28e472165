"""Fetching an instruction that the processor did not execute: once, before it is decoded (XSA-202)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from hypervisor.pv.canonical import U32
from hypervisor.pv.cpu import Segment
from hypervisor.pv.descriptors import CODE, DEFAULT_32, FLAT_CODE_64, LONG, PRESENT, SEGMENT, base
from hypervisor.pv.layout import PAGE_SIZE
from hypervisor.pv.segments import descriptor_of

if TYPE_CHECKING:
    from hypervisor.pv.vcpu import PvVcpu

MAX_BYTES: Final = 15


class FetchFault(Exception):
    """The instruction cannot be read at `address`: the guest's page fault."""

    def __init__(self, address: int) -> None:
        super().__init__(f"no instruction at {address:#x}")
        self.address = address


class Fetched(NamedTuple):
    """data: 1 to 15 bytes from RIP on, as many as are there. width: 16, 32 or 64, the default address size."""

    data: bytes
    width: int


def fetch(vcpu: PvVcpu) -> Fetched | None:
    """The instruction at CS:RIP. None when CS is no code segment; FetchFault when nothing is there."""
    cpu = vcpu.domain.cpu
    selector = cpu.selector(Segment.CS)
    descriptor = FLAT_CODE_64 if selector == 0xE033 else descriptor_of(vcpu, selector)
    if descriptor & (PRESENT | SEGMENT | CODE) != PRESENT | SEGMENT | CODE:
        return None
    if descriptor & LONG:
        return Fetched(fetch_bytes(vcpu, cpu.rip, MAX_BYTES), 64)
    address = base(descriptor) + cpu.rip & U32
    return Fetched(fetch_bytes(vcpu, address, MAX_BYTES), 32 if descriptor & DEFAULT_32 else 16)


def fetch_bytes(vcpu: PvVcpu, address: int, size: int) -> bytes:
    """Up to `size` bytes, less where a page ends that is followed by none. FetchFault if there is not one."""
    domain = vcpu.domain
    translate, octets = domain.page_tables.translate, domain.memory.octets
    root = vcpu.root
    machine = translate(root, address, False)
    if machine < 0:
        raise FetchFault(address)
    here = min(size, PAGE_SIZE - address % PAGE_SIZE)
    data = bytes(octets[machine : machine + here])
    if here < size:
        machine = translate(root, address + here, False)
        if machine >= 0:
            data += octets[machine : machine + size - here]
    return data
