"""What can go wrong in a kernel besides a refused hypercall, by culprit. Every error carries its fields."""


class KernelError(Exception):
    """Base of all errors of this package."""


class KernelMisuse(KernelError):
    """Code of this domain used the kernel against its contract."""

    def __init__(self, what: str, found: object, expected: str) -> None:
        super().__init__(f"{what} is {found!r}, expected {expected}")
        self.what = what
        self.found = found
        self.expected = expected


class OutOfPages(KernelError):
    """No run of `wanted` contiguous free pages is left; `free` pages are free in all."""

    def __init__(self, wanted: int, free: int) -> None:
        super().__init__(f"no run of {wanted} free pages ({free} pages are free)")
        self.wanted = wanted
        self.free = free


class OutOfGrants(KernelError):
    """The grant table has reached its largest size: all `capacity` references are in use."""

    def __init__(self, wanted: int, capacity: int) -> None:
        super().__init__(f"no {wanted} grant references left of {capacity}")
        self.wanted = wanted
        self.capacity = capacity


class StillMapped(KernelError):
    """Domain `domid` still has the page of `reference` mapped: it must not be used for anything else."""

    def __init__(self, reference: int, domid: int, pfn: int) -> None:
        super().__init__(f"grant {reference} (pfn {pfn:#x}) is still mapped by domain {domid}")
        self.reference = reference
        self.domid = domid
        self.pfn = pfn


class PortClosed(KernelError):
    """The event port was closed by this domain."""

    def __init__(self, port: int) -> None:
        super().__init__(f"event port {port} is closed")
        self.port = port
