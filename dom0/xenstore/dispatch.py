"""From a message to its answer: the table of requests, and who may send which."""

import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from dom0.xenstore import control, domain_requests, requests
from dom0.xenstore.connection import Connection
from dom0.xenstore.errors import Denied, Missing, OverQuota, Refused, TooBig, Unknown
from dom0.xenstore.output import Ticket
from dom0.xenstore.transaction import Transaction
from dom0.xenstore.view import View
from ringbuffers.protocols import xs_wire
from ringbuffers.protocols.xs_wire import XENSTORE_PAYLOAD_MAX, Message

if TYPE_CHECKING:
    from dom0.xenstore.core import XenStore

Handler = Callable[["XenStore", Connection, View, bytes], bytes]


class Request(NamedTuple):
    """A request type. control_only: guests are refused. outside: it takes no notice of its transaction id."""

    name: str
    handle: Handler
    control_only: bool = False
    outside: bool = False


_REQUESTS: Final[dict[int, Request]] = {
    xs_wire.XS_CONTROL: Request("CONTROL", control.control, control_only=True),
    xs_wire.XS_DIRECTORY: Request("DIRECTORY", requests.directory),
    xs_wire.XS_READ: Request("READ", requests.read),
    xs_wire.XS_GET_PERMS: Request("GET_PERMS", requests.get_permissions),
    xs_wire.XS_WATCH: Request("WATCH", requests.watch, outside=True),
    xs_wire.XS_UNWATCH: Request("UNWATCH", requests.unwatch, outside=True),
    xs_wire.XS_TRANSACTION_START: Request("TRANSACTION_START", requests.start_transaction),
    xs_wire.XS_TRANSACTION_END: Request("TRANSACTION_END", requests.end_transaction),
    xs_wire.XS_INTRODUCE: Request("INTRODUCE", domain_requests.introduce, control_only=True),
    xs_wire.XS_RELEASE: Request("RELEASE", domain_requests.release, control_only=True),
    xs_wire.XS_GET_DOMAIN_PATH: Request("GET_DOMAIN_PATH", domain_requests.domain_path),
    xs_wire.XS_WRITE: Request("WRITE", requests.write),
    xs_wire.XS_MKDIR: Request("MKDIR", requests.make_directory),
    xs_wire.XS_RM: Request("RM", requests.remove),
    xs_wire.XS_SET_PERMS: Request("SET_PERMS", requests.set_permissions),
    xs_wire.XS_IS_DOMAIN_INTRODUCED: Request(
        "IS_DOMAIN_INTRODUCED", domain_requests.is_introduced, control_only=True
    ),
    xs_wire.XS_RESUME: Request("RESUME", domain_requests.resume, control_only=True),
    xs_wire.XS_SET_TARGET: Request("SET_TARGET", domain_requests.set_target, control_only=True),
    xs_wire.XS_RESET_WATCHES: Request("RESET_WATCHES", requests.reset_watches),
    xs_wire.XS_DIRECTORY_PART: Request("DIRECTORY_PART", requests.directory_part),
}
_ANSWERS: Final = {xs_wire.XS_WATCH_EVENT: "WATCH_EVENT", xs_wire.XS_ERROR: "ERROR"}


def name_of(kind: int) -> str:
    """What Xen calls a message type."""
    request = _REQUESTS.get(kind)
    return request.name if request else _ANSWERS.get(kind, f"type {kind}")


def handle(core: "XenStore", connection: Connection, message: Message) -> None:
    """Carry out one request and queue its answer. Events that it causes are queued before the answer.

    An error of ours is raised where a guest asked, whose connection then ends. A control domain, without which nothing
    goes on, gets EIO.
    """
    kind, req_id, tx_id, payload = message
    watches = core.watches
    watches.ticket = ticket = None if connection.privileged else Ticket(connection)
    try:
        try:
            answer = _carry_out(core, connection, kind, tx_id, payload)
        except Refused as refusal:
            core.refused += 1
            kind, answer = xs_wire.XS_ERROR, refusal.errno.encode() + b"\0"
        except Exception:
            if not connection.privileged:
                raise
            core.log(f"{name_of(kind)} of {connection} met an error of ours:\n{traceback.format_exc()}")
            kind, answer = xs_wire.XS_ERROR, b"EIO\0"
        if core.tracing:
            core.log(f"OUT {connection} {name_of(kind)} ({answer!r})")
        connection.output.answer(kind, req_id, tx_id, answer, ticket)
        if watches.newborn is not None:
            watches.send(watches.newborn, watches.newborn.path, None)
    finally:
        watches.ticket = watches.newborn = None
        if ticket is not None:
            ticket.release()


def _carry_out(core: "XenStore", connection: Connection, kind: int, tx_id: int, payload: bytes) -> bytes:
    request = _REQUESTS.get(kind)
    if core.tracing:
        core.log(f"IN {connection} {name_of(kind)} ({payload!r})")
    if request is None:
        raise Unknown(kind)
    core.requests[kind] += 1
    if request.control_only and not connection.privileged:
        raise Denied(request.name)
    view: View = connection.direct
    if tx_id and not request.outside:
        transaction = connection.transactions.get(tx_id)
        if transaction is None:
            raise Missing(tx_id)
        view = transaction
    try:
        answer = request.handle(core, connection, view, payload)
    except Exception as error:
        harmless = isinstance(error, Refused) and not isinstance(error, OverQuota)
        if isinstance(view, Transaction) and not harmless:
            view.failed = True  # the rest of it shall not be kept without this
        raise
    if len(answer) > XENSTORE_PAYLOAD_MAX:
        raise TooBig(len(answer))
    return answer
