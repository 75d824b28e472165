"""The way from the daemon's kernel to a domain's ring: a reserved grant reference, and an event channel.

The toolstack granted the page and made the port when it built the domain; INTRODUCE names the port. The
control domain's own ring is a page of its own memory, and its port leads back to itself.
"""

from dom0.xenstore.domain import CONTROL_DOMID
from dom0.xenstore.errors import CannotConnect
from dom0.xenstore.ring import RingTransport
from hypervisor.abi.grant_table import GNTTAB_RESERVED_XENSTORE
from kernel.errors import KernelError
from kernel.events import EventPort, Events
from kernel.grants import Grants
from kernel.mapping import GrantError, Mapping
from kernel.platform import Memory


class KernelRings:
    """What a daemon is handed as `connect_domain` where it runs on one of our kernels."""

    def __init__(self, memory: Memory, grants: Grants, events: Events) -> None:
        self._memory = memory
        self._grants = grants
        self._events = events

    def __call__(self, domid: int, gfn: int, port: int) -> RingTransport:
        """Map and bind. CannotConnect, and nothing is mapped or bound."""
        try:
            if domid == CONTROL_DOMID:
                return OwnRing(self._memory.page(gfn), self._events.bind_interdomain(domid, port))
            (mapped,) = self._grants.map(domid, [GNTTAB_RESERVED_XENSTORE])
            if isinstance(mapped, GrantError):
                raise mapped
            return self._bind(domid, port, mapped)
        except (KernelError, LookupError) as error:
            raise CannotConnect(domid, str(error)) from error

    def _bind(self, domid: int, port: int, mapping: Mapping) -> RingTransport:
        try:
            bound = self._events.bind_interdomain(domid, port)
        except KernelError:
            self._grants.unmap([mapping])
            raise
        return GrantedRing(mapping, bound, self._grants)


class OwnRing:
    """The ring of the domain that the daemon runs in."""

    def __init__(self, page: memoryview, port: EventPort) -> None:
        self.page = page
        self.port = port

    def close(self) -> None:
        self.port.close()


class GrantedRing:
    """The ring of another domain."""

    def __init__(self, mapping: Mapping, port: EventPort, grants: Grants) -> None:
        self.page = mapping.page
        self.port = port
        self._mapping = mapping
        self._grants = grants

    def close(self) -> None:
        self.port.close()
        self._grants.unmap([self._mapping])
