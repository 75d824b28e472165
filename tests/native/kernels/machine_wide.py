"""A stand-in for the machine-wide core, for a domain that is alone in its process: as much as our kernel asks for.

Events are bound and numbered, frames come and go, two pages of a peer can be mapped by grant references, and what is
printed is kept. Arguments are read by the guest's page tables, or by machine address when the root is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from hypervisor.abi import event_channel as evtchn
from hypervisor.abi import memory as mem
from hypervisor.abi import sched, xen
from hypervisor.abi.errno import XEN_EFAULT, XEN_EINVAL, XEN_ENOENT, XEN_ENOSYS, XEN_EPERM
from hypervisor.abi.grant_table import (
    GNTMAP_readonly,
    GNTST_bad_gntref,
    GNTST_bad_handle,
    GNTST_okay,
    GNTST_permission_denied,
    GNTTABOP_map_grant_ref,
    GNTTABOP_unmap_grant_ref,
    gnttab_map_grant_ref,
    gnttab_unmap_grant_ref,
)
from hypervisor.errors import XenError
from hypervisor.pv.frames import Kind
from hypervisor.pv.layout import PAGE_SHIFT, PAGE_SIZE, RAM_FIRST

if TYPE_CHECKING:
    from hypervisor.pv.domain import PvDomain
    from hypervisor.vcpu.native.residence import Residence

VERSION: Final = 4 << 16 | 17
WRITABLE_REF: Final = 8
READ_ONLY_REF: Final = 9
GRANTED: Final = (0x6772616E74).to_bytes(8, "little")


class Finished(Exception):
    """The guest has shut itself down."""

    def __init__(self, reason: int) -> None:
        super().__init__(f"shutdown, reason {reason}")
        self.reason = reason


class MachineWideStandIn:
    """domain, residence: to be set before the guest executes. max_pages: how many frames it may have."""

    domain: PvDomain
    residence: Residence

    def __init__(self, max_pages: int) -> None:
        self.printed = bytearray()
        self._max_pages = max_pages
        self._ports = 0
        self._handles: dict[int, int] = {}
        self._next_handle = 1

    def ring(self, _port: int) -> bool:
        """No port is bound to another domain."""
        return False

    def request(self, number: int, args: tuple[int, ...], root: int, _vcpu_id: int) -> int:
        """A hypercall."""
        handlers: dict[int, Callable[..., int]] = {
            xen.HYPERVISOR_console_io: self._console_io,
            xen.HYPERVISOR_sched_op: self._sched_op,
            xen.HYPERVISOR_event_channel_op: self._event_channel_op,
            xen.HYPERVISOR_memory_op: self._memory_op,
            xen.HYPERVISOR_grant_table_op: self._grant_table_op,
            xen.HYPERVISOR_xen_version: self._xen_version,
        }
        if number in {xen.HYPERVISOR_domctl, xen.HYPERVISOR_sysctl, xen.HYPERVISOR_platform_op}:
            return -XEN_EPERM
        handler = handlers.get(number)
        if handler is None:
            return -XEN_ENOSYS
        try:
            return handler(root, *args)
        except XenError as error:
            return -error.errno

    def _read(self, root: int, address: int, size: int) -> bytes:
        if root:
            return self.domain.page_tables.read(root, address, size)
        return bytes(self.domain.memory.octets[address : address + size])

    def _write(self, root: int, address: int, data: bytes) -> None:
        if root:
            self.domain.page_tables.write(root, address, data)
        else:
            self.domain.memory.octets[address : address + len(data)] = data

    def _console_io(self, root: int, operation: int, count: int, buffer: int) -> int:
        if operation == xen.CONSOLEIO_write:
            self.printed += self._read(root, buffer, min(count, PAGE_SIZE))
        return 0

    def _xen_version(self, root: int, command: int, arg: int) -> int:
        if command:
            self._write(root, arg, bytes(16))
            return 0
        return VERSION

    def _sched_op(self, root: int, operation: int, arg: int) -> int:
        if operation != sched.SCHEDOP_shutdown:
            return -XEN_ENOSYS
        raise Finished(sched.sched_shutdown.unpack(self._read(root, arg, sched.sched_shutdown.size)).reason)

    def _event_channel_op(self, root: int, operation: int, arg: int) -> int:
        kinds: dict[int, Any] = {
            evtchn.EVTCHNOP_bind_virq: evtchn.evtchn_bind_virq,
            evtchn.EVTCHNOP_bind_ipi: evtchn.evtchn_bind_ipi,
        }
        kind = kinds.get(operation)
        if kind is None:
            self._read(root, arg, 8)
            return -XEN_ENOSYS
        bound = kind.unpack(self._read(root, arg, kind.size))
        if bound.vcpu >= len(self.domain.vcpus):
            return -XEN_ENOENT
        self._ports += 1
        bound.port = self._ports
        self._write(root, arg, bound.pack())
        return 0

    def _pages(self) -> int:
        return sum(count for _first, count, kind in self.domain.frames.runs() if kind is Kind.OWN)

    def _memory_op(self, root: int, operation: int, arg: int) -> int:
        if operation == mem.XENMEM_current_reservation:
            self._read(root, arg, 2)
            return self._pages()
        if operation not in {mem.XENMEM_populate_physmap, mem.XENMEM_decrease_reservation} or root:
            self._read(root, arg, 8)
            return -XEN_ENOSYS
        size = mem.xen_memory_reservation.size
        request = mem.xen_memory_reservation.unpack(self._read(root, arg, size))
        numbers = memoryview(self._read(root, request.extent_start, request.nr_extents * 8)).cast("Q")
        count = 1 << request.extent_order
        frames = self.domain.frames
        for done, mfn in enumerate(numbers):
            if operation == mem.XENMEM_decrease_reservation:
                self.residence.vanished(mfn, count)
            elif self._pages() + count > self._max_pages or mfn < RAM_FIRST:
                return done
            else:
                frames.appear(mfn, count, Kind.OWN)
                for page in range(mfn, mfn + count):
                    self.domain.memory.frame(page)[:] = bytes(PAGE_SIZE)
        return len(numbers)

    def _grant_table_op(self, root: int, command: int, address: int, _count: int) -> int:
        if command == GNTTABOP_map_grant_ref:
            return self._map(root, address)
        if command == GNTTABOP_unmap_grant_ref:
            return self._unmap(root, address)
        self._read(root, address, 8)
        return -XEN_ENOSYS

    def _map(self, root: int, address: int) -> int:
        if root:
            return -XEN_EINVAL
        request = gnttab_map_grant_ref.unpack(self._read(root, address, gnttab_map_grant_ref.size))
        mfn = request.host_addr >> PAGE_SHIFT
        read_only = bool(request.flags & GNTMAP_readonly)
        if request.ref not in {WRITABLE_REF, READ_ONLY_REF}:
            request.status = GNTST_bad_gntref
        elif request.ref == READ_ONLY_REF and not read_only:
            request.status = GNTST_permission_denied
        else:
            request.status = GNTST_okay
            request.handle = self._next_handle
            self._handles[self._next_handle] = mfn
            self._next_handle += 1
            self.domain.frames.appear(mfn, 1, Kind.FOREIGN_READONLY if read_only else Kind.FOREIGN)
            self.domain.memory.frame(mfn)[:] = GRANTED + bytes(PAGE_SIZE - len(GRANTED))
        self._write(root, address, request.pack())
        return 0

    def _unmap(self, root: int, address: int) -> int:
        request = gnttab_unmap_grant_ref.unpack(self._read(root, address, gnttab_unmap_grant_ref.size))
        mfn = self._handles.pop(request.handle, None)
        if mfn is None:
            request.status = GNTST_bad_handle
        elif request.host_addr != mfn << PAGE_SHIFT:
            return -XEN_EFAULT
        else:
            request.status = GNTST_okay
            self.residence.vanished(mfn, 1)
        self._write(root, address, request.pack())
        return 0
