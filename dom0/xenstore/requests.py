"""The requests on nodes, watches and transactions: a payload in, the answer's payload out
(docs/misc/xenstore.txt).

Where C xenstored answers a malformed payload with whatever error it met last, the answer here is always
EINVAL.
"""

import re
from typing import TYPE_CHECKING, Final

from dom0.xenstore import operations, paths, permissions
from dom0.xenstore.connection import Connection
from dom0.xenstore.errors import Conflict, Denied, Invalid, Missing, Nested, OverQuota, Refused
from dom0.xenstore.transaction import Transaction
from dom0.xenstore.view import View
from ringbuffers.protocols.xs_wire import XENSTORE_PAYLOAD_MAX, XENSTORE_REL_PATH_MAX

if TYPE_CHECKING:
    from dom0.xenstore.core import XenStore

OK: Final = b"OK\0"
_NUMBER: Final = re.compile(rb"[ \t-\r]*([+-]?[0-9]+)")


def one_string(payload: bytes) -> bytes:
    """The only string of the payload, which has to end with its NUL."""
    if not payload or payload.find(b"\0") != len(payload) - 1:
        raise Invalid(payload)
    return payload[:-1]


def strings(payload: bytes) -> list[bytes]:
    """All strings that end with a NUL; what follows the last NUL is left out."""
    return payload.split(b"\0")[:-1]


def number(text: bytes) -> int:
    """The number that the text starts with, as C's atoi; 0 if it starts with none."""
    match = _NUMBER.match(text)
    return int(match[1][:20]) if match else 0


def node_path(core: "XenStore", connection: Connection, path: bytes) -> bytes:
    """The absolute path, checked. What names an existing node needs no check."""
    path = connection.canonical(path)
    if path not in core.store.nodes and not paths.is_valid(path, core.quotas.path_max):
        raise Invalid(path)
    return path


def directory(core: "XenStore", connection: Connection, view: View, payload: bytes) -> bytes:
    return operations.read(view, connection, node_path(core, connection, one_string(payload))).listing()


def directory_part(core: "XenStore", connection: Connection, view: View, payload: bytes) -> bytes:
    """As many whole names from the given byte on as fit; an additional NUL marks the end of the list."""
    if payload.count(b"\0") != 2:
        raise Invalid(payload)
    path, offset, _ = payload.split(b"\0")
    node = operations.read(view, connection, node_path(core, connection, path))
    listing = node.listing()
    start = number(offset)
    answer = b"%d\0" % node.generation
    if not 0 <= start < len(listing):
        return answer + b"\0"
    room = XENSTORE_PAYLOAD_MAX - len(answer) - 1
    if len(listing) - start <= room:
        return answer + listing[start:] + b"\0"
    return answer + listing[start : listing.rfind(b"\0", start, start + room) + 1]


def read(core: "XenStore", connection: Connection, view: View, payload: bytes) -> bytes:
    return operations.read(view, connection, node_path(core, connection, one_string(payload))).value


def write(core: "XenStore", connection: Connection, view: View, payload: bytes) -> bytes:
    path, nul, value = payload.partition(b"\0")
    if not nul:
        raise Invalid(payload)
    operations.write(view, connection, node_path(core, connection, path), value)
    return OK


def make_directory(core: "XenStore", connection: Connection, view: View, payload: bytes) -> bytes:
    operations.make_directory(view, connection, node_path(core, connection, one_string(payload)))
    return OK


def remove(core: "XenStore", connection: Connection, view: View, payload: bytes) -> bytes:
    operations.remove(view, connection, node_path(core, connection, one_string(payload)))
    return OK


def get_permissions(core: "XenStore", connection: Connection, view: View, payload: bytes) -> bytes:
    node = operations.read(view, connection, node_path(core, connection, one_string(payload)))
    return node.permissions.wire


def set_permissions(core: "XenStore", connection: Connection, view: View, payload: bytes) -> bytes:
    path, *entries = strings(payload) or [b""]
    if not entries:
        raise Invalid(payload)
    domain = connection.domain
    if not connection.privileged and len(entries) > domain.quotas.permissions:
        raise OverQuota("permissions", domain.quotas.permissions, domain.domid)
    parsed = permissions.parse(entries, core.domains.find)
    if path.startswith(paths.SPECIAL):
        _set_special(core, connection, path, parsed)
    else:
        operations.set_permissions(view, connection, node_path(core, connection, path), parsed)
    return OK


def _set_special(
    core: "XenStore", connection: Connection, name: bytes, parsed: permissions.Permissions
) -> None:
    """Who may receive @introduceDomain or @releaseDomain. Not undone by a transaction that fails."""
    current = core.watches.special.get(name)
    if current is None:
        raise Invalid(name)
    needed = permissions.WRITE | permissions.OWN
    if not connection.privileged:
        if current.access(connection.domain, connection.target) & needed != needed:
            raise Denied(name)
        if parsed.owner is not current.owner:
            raise Denied(name)
    core.watches.special[name] = parsed


def watch(core: "XenStore", connection: Connection, _view: View, payload: bytes) -> bytes:
    path, token = _watch_arguments(payload)
    absolute = connection.canonical(path)
    if path.startswith(paths.SPECIAL):
        if len(path) > XENSTORE_REL_PATH_MAX:
            raise Invalid(path)
    elif not paths.is_valid(absolute, core.quotas.path_max):
        raise Invalid(path)
    skip = len(absolute) - len(path)
    core.watches.newborn = core.watches.add(connection, absolute, token, skip)
    return OK


def unwatch(core: "XenStore", connection: Connection, _view: View, payload: bytes) -> bytes:
    path, token = _watch_arguments(payload)
    core.watches.remove(connection, connection.canonical(path), token)
    return OK


def _watch_arguments(payload: bytes) -> tuple[bytes, bytes]:
    found = strings(payload)
    if len(found) != 2:
        raise Invalid(payload)
    return found[0], found[1]


def reset_watches(core: "XenStore", connection: Connection, _view: View, _payload: bytes) -> bytes:
    """Forget all watches and transactions of the caller, also the one that the request came in (XSA-484)."""
    core.watches.remove_all(connection)
    connection.abandon_transactions()
    core.fairness.gave_up(connection)
    return OK


def start_transaction(_core: "XenStore", connection: Connection, view: View, _payload: bytes) -> bytes:
    if isinstance(view, Transaction):
        raise Nested(view.id)
    return b"%d\0" % connection.start_transaction().id


def end_transaction(core: "XenStore", connection: Connection, view: View, payload: bytes) -> bytes:
    """T commits, F gives up; either way the transaction is over."""
    verdict = one_string(payload)
    if verdict not in (b"T", b"F"):
        raise Invalid(payload)
    if not isinstance(view, Transaction):
        raise Missing(b"transaction 0")
    connection.end_transaction(view)
    try:
        if verdict == b"T":
            view.commit()
    except Conflict:
        core.conflicts += 1
        core.fairness.spoilt(view)
        raise
    except Refused:
        core.fairness.ended(view)
        raise
    core.fairness.ended(view)
    return OK
