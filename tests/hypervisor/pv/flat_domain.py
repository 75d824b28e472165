"""A native domain whose virtual memory is one flat array: for the hypercalls that only read and write there."""

from typing import Any

from hypervisor.errors import GuestFault, XenError
from hypervisor.pv.ports import Ports
from hypervisor.pv.rota import Rota
from hypervisor.pv.tally import WORDS, Tally
from hypervisor.pv.vcpu import VCPU_INFO_SIZE, PvVcpu

SIZE = 1 << 16


class FlatMemory:
    """Addresses below `readable` can be read, below `writable` written."""

    def __init__(self) -> None:
        self.data = bytearray(SIZE)
        self.readable = self.writable = SIZE
        self.batches = 0

    def read(self, _root: int, address: int, size: int) -> bytes:
        if not 0 <= address <= address + size <= self.readable:
            raise GuestFault(1, address, size)
        return bytes(self.data[address : address + size])

    def begin_batch(self) -> None:
        self.batches += 1

    def end_batch(self) -> None:
        self.batches -= 1

    def check_writable(self, _root: int, address: int, size: int) -> None:
        if not 0 <= address <= address + size <= self.writable:
            raise GuestFault(1, address, size)

    def write(self, root: int, address: int, data: bytes) -> None:
        self.check_writable(root, address, len(data))
        self.data[address : address + len(data)] = data


class FlatDomain:
    """One vCPU, and a machine-wide core that answers as it is told and remembers what it was asked."""

    def __init__(self) -> None:
        self.domid = 1
        self.page_tables: Any = FlatMemory()
        self.tally = Tally(memoryview(bytearray(WORDS * 8)).cast("Q"))
        self.shared_info = memoryview(bytearray(4096))
        self.vcpu = PvVcpu(self, 0, self.shared_info[:VCPU_INFO_SIZE])  # type: ignore[arg-type]
        self.vcpus = [self.vcpu]
        self.routes: set[int] = set()
        self.ports = Ports(self.vcpus, self.routes.__contains__, lambda vcpu: None)
        self.ports.place_shared_info(self.shared_info)
        self.reschedules = 0
        self.rota = Rota(self.vcpus)
        self.asked: list[tuple[int, tuple[int, ...], int]] = []
        self.answer = 0
        self.hypervisor = self
        self.xen_version: int | None = None

    def reschedule(self) -> None:
        self.reschedules += 1

    def request(self, number: int, args: tuple[int, ...], root: int, _vcpu_id: int) -> int:
        self.asked.append((number, args, root))
        return self.answer

    def refused(self, _vcpu: PvVcpu, _number: int, _error: XenError) -> None:
        pass
