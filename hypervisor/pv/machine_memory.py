"""A domain's memory by machine address, as its own process maps it."""

from __future__ import annotations

from hypervisor.pv.layout import PAGE_SHIFT, PAGE_SIZE


class MachineMemory:
    """octets, quads: all of it as bytes and as u64s, from machine address 0 on. Whoever looks has made sure that
    the frame is there: touching another one ends the process.
    """

    __slots__ = ("octets", "quads")

    def __init__(self, view: memoryview) -> None:
        self.octets = view.cast("B")
        self.quads = view.cast("Q") if view.format == "B" else view.cast("B").cast("Q")

    def frame(self, mfn: int) -> memoryview:
        """Its 4096 bytes."""
        start = mfn << PAGE_SHIFT
        return self.octets[start : start + PAGE_SIZE]

    def table(self, mfn: int) -> memoryview:
        """Its 512 u64s."""
        start = mfn << 9
        return self.quads[start : start + 512]
