"""The requests on domains: introduction, release, and what concerns their connection. Control domains only,
but for GET_DOMAIN_PATH. A domain is a decimal number, read as C's atoi does."""

from typing import TYPE_CHECKING

from dom0.xenstore import paths
from dom0.xenstore.connection import Connection
from dom0.xenstore.domain import Domain
from dom0.xenstore.errors import Invalid, Missing
from dom0.xenstore.requests import OK, number, one_string, strings
from dom0.xenstore.view import View

if TYPE_CHECKING:
    from dom0.xenstore.core import XenStore

DOMID_SELF = 0x7FF0


def _domid(text: bytes) -> int:
    """As C xenstored puts it into an unsigned int."""
    return number(text) & 0xFFFFFFFF


def _introduced(core: "XenStore", domid: int) -> Domain:
    domain = core.domains.known.get(domid)
    if domain is None or domain.connection is None:
        raise Missing(domid)
    return domain


def _guest(core: "XenStore", payload: bytes) -> Domain:
    """The introduced domain that is the only argument. The control domain is not one."""
    domid = _domid(one_string(payload))
    if domid == 0:
        raise Invalid(payload)
    return _introduced(core, domid)


def introduce(core: "XenStore", _connection: Connection, _view: View, payload: bytes) -> bytes:
    """domid, frame number (signed decimal), event channel port of the domain."""
    found = strings(payload)
    if len(found) < 3:
        raise Invalid(payload)
    port = number(found[2])
    if port <= 0:
        raise Invalid(payload)
    core.domains.introduce(core, _domid(found[0]), number(found[1]), port)
    return OK


def release(core: "XenStore", _connection: Connection, _view: View, payload: bytes) -> bytes:
    core.domains.release(core, _guest(core, payload))
    return OK


def resume(core: "XenStore", _connection: Connection, _view: View, payload: bytes) -> bytes:
    """The next shutdown of the domain is announced again."""
    _guest(core, payload).shutdown = False
    return OK


def set_target(core: "XenStore", _connection: Connection, _view: View, payload: bytes) -> bytes:
    """The first domain may from now on do what the second may."""
    found = strings(payload)
    if len(found) < 2:
        raise Invalid(payload)
    domain, target = (_introduced(core, _domid(text)) for text in found[:2])
    if domain.connection is not None:
        domain.connection.target = target
    return OK


def domain_path(_core: "XenStore", _connection: Connection, _view: View, payload: bytes) -> bytes:
    return paths.home(_domid(one_string(payload))) + b"\0"


def is_introduced(core: "XenStore", _connection: Connection, _view: View, payload: bytes) -> bytes:
    domid = _domid(one_string(payload))
    if domid == DOMID_SELF:
        return b"T\0"
    domain = core.domains.known.get(domid)
    return b"T\0" if domain is not None and (domain.connection is not None or domid == 0) else b"F\0"
