"""The daemon's end of one console ring: the mapped page and the bound port.

The page is mapped through the grant that the toolstack reserved for it, not by its frame number: the daemon
needs no right over the domain. The guest owns the page and may write anything into it; what is impossible
raises PeerViolation.
"""

from collections.abc import Callable

from backends.console.errors import CannotConnect
from hypervisor.abi.grant_table import GNTTAB_RESERVED_CONSOLE
from kernel.errors import KernelError
from kernel.events import EventPort
from kernel.kernel import Kernel
from kernel.mapping import GrantError, Mapping
from ringbuffers.protocols.console import ConsolePage


class ConsoleLink:
    """Made by `connect`."""

    def __init__(self, kernel: Kernel, mapping: Mapping, port: EventPort) -> None:
        self._kernel = kernel
        self._mapping = mapping
        self._port = port
        self._page = ConsolePage(mapping.page)
        self._incoming, self._outgoing = self._page.daemon_side()

    @classmethod
    def connect(cls, kernel: Kernel, domid: int, port: int, on_event: Callable[[], None]) -> "ConsoleLink":
        """Map the page and bind to the domain's `port`. CannotConnect, and neither is done.

        on_event: called when the guest has written or read something, and once soon after connecting.
        """
        try:
            (mapped,) = kernel.grants.map(domid, [GNTTAB_RESERVED_CONSOLE])
            if isinstance(mapped, GrantError):
                raise mapped
            try:
                bound = kernel.events.bind_interdomain(domid, port)
            except KernelError:
                kernel.grants.unmap([mapped])
                raise
        except (KernelError, LookupError) as error:
            raise CannotConnect(domid, str(error)) from error
        bound.on_event = on_event
        return cls(kernel, mapped, bound)

    def take(self) -> bytes:
        """All that the guest has printed: a ring full at most."""
        data = self._incoming.read()
        if data:
            self._port.notify()
        return data

    def give(self, data: memoryview) -> int:
        """Type `data`; how many bytes of it had room."""
        count = self._outgoing.write(data)
        if count:
            self._port.notify()
        return count

    def close(self) -> None:
        """Unmap the page and close the port."""
        self._port.close()
        self._page.detach()
        self._kernel.grants.unmap([self._mapping])
