"""CONTROL: what an administrator asks of the daemon itself (xenstore-control)."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from dom0.xenstore import quotas
from dom0.xenstore.check import problems
from dom0.xenstore.connection import Connection
from dom0.xenstore.errors import Invalid, Missing
from dom0.xenstore.requests import OK, number, strings
from dom0.xenstore.view import View

if TYPE_CHECKING:
    from dom0.xenstore.core import XenStore

Handler = Callable[["XenStore", list[bytes]], bytes]


class Command(NamedTuple):
    """A command: what runs it, and what `help` says of its parameters."""

    run: Handler
    parameters: str


def control(core: "XenStore", _connection: Connection, _view: View, payload: bytes) -> bytes:
    """The first string names the command, the others are its parameters."""
    name, *parameters = strings(payload) or [b""]
    command = _COMMANDS.get(name)
    if command is None:
        raise Invalid(name)
    return command.run(core, parameters)


def _require(parameters: list[bytes], count: int) -> None:
    if len(parameters) != count:
        raise Invalid(parameters)


def _check(core: "XenStore", parameters: list[bytes]) -> bytes:
    """Recount everything from first principles and log what is wrong."""
    _require(parameters, 0)
    core.log("checking store")
    for problem in problems(core):
        core.log(f"check: {problem}")
    core.log("checking store complete")
    return OK


def _log(core: "XenStore", parameters: list[bytes]) -> bytes:
    """Log every request and answer, or stop that."""
    _require(parameters, 1)
    if parameters[0] not in (b"on", b"off"):
        raise Invalid(parameters)
    core.tracing = parameters[0] == b"on"
    return OK


def _print(core: "XenStore", parameters: list[bytes]) -> bytes:
    _require(parameters, 1)
    core.log(f"control: {parameters[0].decode(errors='backslashreplace')}")
    return OK


def _quota(core: "XenStore", parameters: list[bytes]) -> bytes:
    if parameters and parameters[0] != b"set":
        _require(parameters, 1)
        return _usage(core, number(parameters[0]))
    return _quota_of(core.quotas, parameters)


def _soft_quota(core: "XenStore", parameters: list[bytes]) -> bytes:
    if parameters and parameters[0] != b"set":
        raise Invalid(parameters)
    return _quota_of(core.soft_quotas, parameters)


def _quota_of(which: quotas.Quotas | quotas.SoftQuotas, parameters: list[bytes]) -> bytes:
    if not parameters:
        return quotas.describe(which).encode() + b"\0"
    _require(parameters, 3)
    value = number(parameters[2])
    if value < 1 or not quotas.change(which, parameters[1].decode(errors="replace"), value):
        raise Invalid(parameters)
    return OK


def _usage(core: "XenStore", domid: int) -> bytes:
    domain = core.domains.known.get(domid)
    if domain is None:
        raise Missing(domid)
    ring = domain.connection
    usage = {
        "nodes": domain.nodes,
        "watches": len(ring.watches) if ring else 0,
        "transactions": len(ring.transactions) if ring else 0,
        "outstanding": ring.outstanding if ring else 0,
        "memory": domain.memory,
    }
    lines = "".join(f"{name:<16}: {value:8d}\n" for name, value in usage.items())
    return f"Domain {domid}:\n{lines}\0".encode()


def _help(_core: "XenStore", parameters: list[bytes]) -> bytes:
    _require(parameters, 0)
    lines = "".join(f"{name.decode()}\t{command.parameters}\n" for name, command in _COMMANDS.items())
    return lines.encode() + b"\0"


_COMMANDS: dict[bytes, Command] = {
    b"check": Command(_check, ""),
    b"log": Command(_log, "on|off"),
    b"print": Command(_print, "<string>"),
    b"quota": Command(_quota, "[set <name> <val>|<domid>]"),
    b"quota-soft": Command(_soft_quota, "[set <name> <val>]"),
    b"help": Command(_help, ""),
}
