"""What can go wrong with domains and devices besides a refused hypercall or XenStore request."""

from kernel.errors import KernelError
from kernel.hypercalls import HypercallError


class NoSuchGuest(KernelError):
    """This toolstack has no domain `domid`: it never created it, or it is destroyed."""

    def __init__(self, domid: int) -> None:
        super().__init__(f"there is no guest {domid}")
        self.domid = domid


class NoSuchDisk(KernelError):
    """There is no such disk to detach."""

    def __init__(self, domid: int, vdev: str) -> None:
        super().__init__(f"domain {domid} has no disk {vdev}")
        self.domid = domid
        self.vdev = vdev


class DeviceExists(KernelError):
    """The domain has a device of that kind and number already."""

    def __init__(self, domid: int, kind: str, devid: int) -> None:
        super().__init__(f"domain {domid} has a device {kind} {devid} already")
        self.domid = domid
        self.kind = kind
        self.devid = devid


class NoSuchBackendDomain(KernelError):
    """A device of domain `domid` was to be served by domain `backend_domid`, which does not run."""

    def __init__(self, domid: int, name: str, backend_domid: int) -> None:
        super().__init__(
            f"domain {domid} cannot be given {name}: its backend domain, {backend_domid}, does not run"
        )
        self.domid = domid
        self.name = name
        self.backend_domid = backend_domid


class BuildError(KernelError):
    """A domain could not be built; what was made of it is destroyed again."""

    def __init__(self, name: str, step: str, cause: Exception) -> None:
        why = f"{cause.op}: {cause.errno_name}" if isinstance(cause, HypercallError) else str(cause)
        super().__init__(f"domain {name} could not be built: {step}: {why}")
        self.name = name
        self.step = step
        self.cause = cause


class BadMemorySize(KernelError):
    """No domain can have so little or so much RAM."""

    def __init__(self, found_bytes: int, most_bytes: int) -> None:
        super().__init__(f"{found_bytes} bytes of RAM are less than a page or more than {most_bytes} bytes")
        self.found_bytes = found_bytes
        self.most_bytes = most_bytes


class OutOfMachineMemory(KernelError):
    """The machine had fewer pages than a domain was to have."""

    def __init__(self, domid: int, wanted: int, made: int) -> None:
        super().__init__(f"domain {domid}: {wanted} pages wanted, the machine had {made}")
        self.domid = domid
        self.wanted = wanted
        self.made = made


class ForeignMapRefused(KernelError):
    """A frame of a domain under construction could not be mapped."""

    def __init__(self, domid: int, gfn: int, errno: int) -> None:
        super().__init__(f"frame {gfn:#x} of domain {domid} cannot be mapped: errno {errno}")
        self.domid = domid
        self.gfn = gfn
        self.errno = errno


class NoGrantTable(KernelError):
    """A domain under construction could not be given a grant table; status: GNTST_*."""

    def __init__(self, domid: int, status: int) -> None:
        super().__init__(f"domain {domid} got no grant table: GNTST {status}")
        self.domid = domid
        self.status = status


class TooLittleMemory(KernelError):
    """The domain ends before `what`: the first memory of its kernel needs `wanted_pages` up to there."""

    def __init__(self, what: str, wanted_pages: int, pages: int) -> None:
        super().__init__(
            f"no room for {what}: {wanted_pages} pages are needed so far, the domain has {pages}"
        )
        self.what = what
        self.wanted_pages = wanted_pages
        self.pages = pages


class CommandLineTooLong(KernelError):
    """start_info has room for less."""

    def __init__(self, found_bytes: int, most_bytes: int) -> None:
        super().__init__(f"a command line of {found_bytes} bytes, start_info has room for {most_bytes}")
        self.found_bytes = found_bytes
        self.most_bytes = most_bytes
