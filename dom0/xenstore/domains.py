"""The domains that the daemon knows, from the first permission that names one to its death."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from dom0.xenstore.domain import CONTROL_DOMID, Domain, DomainInfo
from dom0.xenstore.errors import Invalid
from dom0.xenstore.operations import remove_tree
from dom0.xenstore.paths import ROOT
from dom0.xenstore.permissions import private_to
from dom0.xenstore.quotas import Quotas
from dom0.xenstore.store import Direct

if TYPE_CHECKING:
    from dom0.xenstore.connection import Transport
    from dom0.xenstore.core import XenStore

INTRODUCED: Final = b"@introduceDomain"
RELEASED: Final = b"@releaseDomain"
_FIRST_RESERVED_DOMID: Final = 0x7FF0

GetDomainInfo = Callable[[int], DomainInfo | None]
"""What the hypervisor knows of a domain number; None if there is no such domain."""

ConnectRing = Callable[[int, int, int], "Transport"]
"""Map the ring of (domain, frame number) and bind to its event channel port; CannotConnect if that fails."""


class Domains:
    """Every living domain that was introduced or that a permission names, by number."""

    def __init__(self, quotas: Quotas, info: GetDomainInfo, connect: ConnectRing) -> None:
        self.control = Domain(CONTROL_DOMID, quotas)
        self.known: dict[int, Domain] = {CONTROL_DOMID: self.control}
        self._quotas = quotas
        self._info = info
        self._connect = connect

    def find(self, domid: int) -> Domain | None:
        """The living domain of this number, which need not be introduced yet."""
        domain = self.known.get(domid)
        if domain is None and 0 < domid < _FIRST_RESERVED_DOMID:
            info = self._info(domid)
            if info is not None:
                domain = self.known[domid] = Domain(domid, self._quotas, info.identity)
        return domain

    def introduce(self, core: "XenStore", domid: int, gfn: int, port: int) -> None:
        """Serve a domain's ring. Doing so again connects it anew: its watches, transactions and queues are
        gone.

        Invalid if there is no such domain, or its ring cannot be reached.
        """
        domain = self._present(core, domid)
        try:
            transport = self._connect(domid, gfn, port)
        except Exception as reason:
            core.log(f"cannot introduce domain {domid}: {type(reason).__name__}: {reason}")
            raise Invalid(domid) from reason
        before = domain.connection
        if before is not None:
            core.disconnect(before)
        domain.connection = core.connect(domain, transport)
        if before is None and not domain.privileged:
            core.watches.fire_special(INTRODUCED)
        core.wake(domain.connection)

    def _present(self, core: "XenStore", domid: int) -> Domain:
        """The domain that has this number now; a former one that had it is let go."""
        if domid == CONTROL_DOMID:
            return self.control
        self.check(core, (domid,))
        domain = self.find(domid)
        if domain is None:
            raise Invalid(domid)
        return domain

    def release(self, core: "XenStore", domain: Domain) -> None:
        """Disconnect an introduced domain for good: its nodes go, with all below them."""
        if domain.connection is not None:
            core.disconnect(domain.connection)
        self._bury(core, domain)
        core.watches.fire_special(RELEASED)

    def disconnect(self, core: "XenStore") -> None:
        """The daemon ends: let go of every ring. Domains and their nodes stay."""
        for domain in self.known.values():
            if domain.connection is not None:
                core.disconnect(domain.connection)

    def _bury(self, core: "XenStore", domain: Domain) -> None:
        del self.known[domain.domid]
        domain.alive = False
        view = Direct(core.store)
        for path in list(domain.owned):
            node = core.store.nodes.get(path)
            if path == ROOT and node is not None:  # the one node that has to be there
                view.assign(path, view.change(path, node), node.permissions.owned_by(self.control))
            elif node is not None:
                remove_tree(view, path, node)
        for name, allowed in core.watches.special.items():
            if allowed.owner is domain:
                core.watches.special[name] = private_to(self.control)

    def check(self, core: "XenStore", domids: Iterable[int] | None = None) -> None:
        """Something happened to a domain (VIRQ_DOM_EXC), or to one of `domids`: see who shut down or is gone.

        Each shutdown is announced once, however a connection behaves (XSA-325).
        """
        shutdown = False
        for domid in list(self.known) if domids is None else domids:
            domain = self.known.get(domid)
            if domain is None or domain.privileged:
                continue
            info = self._info(domid)
            if info is not None and info.identity != domain.identity:
                info = None
            if domain.connection is None:
                if info is None:
                    self._bury(core, domain)
            elif info is None or info.dying:
                self.release(core, domain)
            elif info.shutdown and not domain.shutdown:
                domain.shutdown = shutdown = True
        if shutdown:
            core.watches.fire_special(RELEASED)
