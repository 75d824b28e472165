"""What a native domain has in its process as the hypervisor says: memory by kind of frame, shared_info."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypervisor.pv.frames import Kind
from hypervisor.pv.layout import ARGUMENT_MFN, XEN_END, XEN_FIRST
from hypervisor.vcpu.process.wire import Change, ChangeKind

if TYPE_CHECKING:
    from hypervisor.pv.domain import PvDomain
    from hypervisor.pv.frames import LocalFrames


class Residence:
    """Implements hypervisor.vcpu.process.connection.Resident. domain: when it is there. save_fd: where its state
    is to be written; audit_fd: where it is, what is wrong with it.
    """

    def __init__(self, frames: LocalFrames) -> None:
        self.shared_info: memoryview | None = None
        self.domain: PvDomain | None = None
        self.save_fd: int | None = None
        self.audit_fd: int | None = None
        self._frames = frames

    @property
    def received(self) -> int:
        """Events that were entered."""
        return self.domain.ports.received if self.domain is not None else 0

    @property
    def upcalls(self) -> int:
        """How often that has raised an upcall."""
        return self.domain.ports.upcalls if self.domain is not None else 0

    def place_shared_info(self, page: memoryview) -> None:
        """shared_info lies there."""
        self.shared_info = page

    def place_vcpu_info(self, page: memoryview, offset: int) -> None:
        """The guest places it by itself (VCPUOP_register_vcpu_info), and the hypervisor does not know."""

    def appeared(self, change: Change) -> None:
        """Frames are there that were not, or lie elsewhere."""
        kind, gpfn, pages, *_ = change
        if kind is ChangeKind.MAP_PAGE:
            count, whose = 1, Kind.FOREIGN if pages else Kind.FOREIGN_READONLY
        else:
            count = 1 if kind is ChangeKind.MOVE_PAGE else pages
            whose = Kind.XEN if XEN_FIRST <= gpfn < XEN_END else Kind.OWN
        if gpfn == ARGUMENT_MFN:
            return
        if not any(self._frames.uses[gpfn : gpfn + count]):
            self._frames.appear(gpfn, count, whose)
            return
        for mfn in range(gpfn, gpfn + count):
            if self._frames.kind(mfn) is Kind.ABSENT:
                self._frames.appear(mfn, 1, whose)

    def vanished(self, gpfn: int, count: int) -> None:
        """Frames are there no more."""
        for mfn in range(gpfn, gpfn + count):
            if self._frames.kind(mfn) is not Kind.ABSENT:
                self._frames.vanish(mfn, 1)
        if self.domain is not None:
            self.domain.cpu.flush()

    def save_to(self, fd: int) -> None:
        """At the next slice border."""
        self.save_fd = fd

    def audit_to(self, fd: int) -> None:
        """At the next slice border."""
        self.audit_fd = fd
