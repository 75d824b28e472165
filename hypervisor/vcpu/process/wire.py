"""The messages on a domain's channel: hypercalls up, results and changes of the address space down.

The channel is a SOCK_SEQPACKET pair, so that a message is whole or not there. A vCPU has one request under way
at a time; the answer is one packet, or several of which all but the last say that more follows. Descriptors
travel beside them (SCM_RIGHTS), in the order of the changes that they belong to. All of it is little-endian.

Only the hypervisor's side distrusts the other: a request that is not as described here ends its domain.
"""

from __future__ import annotations

import array
import socket
from collections.abc import Iterator, Sequence
from enum import IntEnum
from itertools import islice
from struct import Struct as Codec
from typing import Final, NamedTuple


class RequestKind(IntEnum):
    """What a vCPU asks for. What follows the header is given with each."""

    HYPERCALL = 1
    """number, up to six arguments"""
    SHARE = 2
    """args: domid, whether read-only. payload: u64 PFNs, at most MAX_PFNS. Before they are granted to it"""
    RECLAIM = 3
    """args: first PFN, count. The pages are the domain's alone again"""
    SYNC = 4
    """Nothing but what has changed meanwhile"""
    SAVED = 5
    """args: how many bytes of state were written, as SAVE has asked. There is no answer: the process ends"""
    READY = 6
    """It executes its domain from now on"""
    AUDITED = 7
    """args: how many bytes it has written, as AUDIT has asked"""


class ShareResult(IntEnum):
    """Of SHARE; negative: errno."""

    NO_PROCESS = 0
    """the peer is none, and needs no sharing"""
    SHARED = 1
    """these pages may be mapped by it now"""
    NOBODY = 2
    """there is no such domain yet"""


class ChangeKind(IntEnum):
    """What the domain's process does before it goes on. `number`, `gpfn`, `pages` and `offset` as given."""

    EXTENT = 1
    """fd: the memory of its own that is called `number` from now on"""
    SHARED_INFO = 2
    """the page `offset` of extent `number`"""
    MAP_RAM = 3
    """`pages` pages of extent `number` from page `offset` on appear at `gpfn`"""
    MAP_PAGE = 4
    """fd: one page appears at `gpfn`; writable if `pages`"""
    MOVE_PAGE = 5
    """fd: the domain's own page `gpfn` lies there from now on"""
    UNMAP = 6
    """`pages` pages from `gpfn` on are there no more"""
    LISTEN = 7
    """fds (if `pages`): memory and pipe of bell `number`; it may ring for port `gpfn`"""
    DEAF = 8
    """bell `number` rings for port `gpfn` no more; if `pages`, what it has rung so far still counts"""
    RING = 9
    """fds (if `pages`): memory and pipe of bell `number`; an event for port `gpfn` rings it at `offset`"""
    SILENCE = 10
    """events for port `gpfn` are hypercalls again"""
    DROP_EXTENT = 11
    """nothing of extent `number` is the domain's any more"""
    VCPU_INFO = 12
    """vcpu_info lies at byte `offset` of page `gpfn`"""
    SAVE = 13
    """fd: write all state there that is not in the domain's memory, say SAVED, and go on no more"""
    AUDIT = 14
    """fd: write there, a line each, what counting everything again has found, and say AUDITED"""


DESCRIPTORS: Final = {
    ChangeKind.EXTENT: 1,
    ChangeKind.MAP_PAGE: 1,
    ChangeKind.MOVE_PAGE: 1,
    ChangeKind.LISTEN: 2,
    ChangeKind.RING: 2,
    ChangeKind.SAVE: 1,
    ChangeKind.AUDIT: 1,
}
"""how many come with each change"""
OPTIONAL: Final = (ChangeKind.LISTEN, ChangeKind.RING)
"""they come if `pages` is not 0"""

TO_HYPERVISOR: Final = 1
"""number of the bell by which a process rings for domains of the hypervisor's own process"""

MAX_PFNS: Final = 512
MAX_CHANGES: Final = 96
MAX_DESCRIPTORS: Final = 192
"""in one packet; Linux passes at most 253 (SCM_MAX_FD)"""

REQUEST: Final = Codec("<QQ6Q3QQQ")
REPLY: Final = Codec("<qII")
CHANGE: Final = Codec("<IIQQQ")
MAX_REQUEST_BYTES: Final = REQUEST.size + 8 * MAX_PFNS
MAX_REPLY_BYTES: Final = REPLY.size + CHANGE.size * MAX_CHANGES
_FD_SPACE: Final = socket.CMSG_SPACE(4 * MAX_DESCRIPTORS)


class Request(NamedTuple):
    """A decoded request. counted: events that the vCPU has sent and taken so far without hypercalls, and
    upcalls that it has raised for them. root: MFN of the page table by which a native domain's addresses are
    meant; 0: they are guest-physical ones. vcpu: which of the domain's asks.
    """

    kind: RequestKind
    number: int
    args: tuple[int, ...]
    counted: tuple[int, int, int]
    pfns: tuple[int, ...]
    root: int = 0
    vcpu: int = 0


class Change(NamedTuple):
    """One change; the descriptors, if any, are the sender's and stay open. pages: how many, or whether
    something holds, as said of each kind.
    """

    kind: ChangeKind
    gpfn: int = 0
    pages: int = 0
    number: int = 0
    offset: int = 0
    fds: tuple[int, ...] = ()


class ChannelBroken(Exception):
    """The other end sent what no vCPU sends, or nothing any more."""


class ChannelClosed(ChannelBroken):
    """There is no other end any more."""


def decode_request(data: bytes) -> Request:
    """Raises ChannelBroken: found and expected."""
    size = len(data) - REQUEST.size
    if size < 0 or size % 8 or size > 8 * MAX_PFNS:
        raise ChannelBroken(
            f"a request of {len(data)} bytes, expected {REQUEST.size} and at most {MAX_PFNS} PFNs"
        )
    kind, number, *args = REQUEST.unpack_from(data)
    if kind not in _KINDS:
        raise ChannelBroken(f"a request of kind {kind}, expected 1 to {len(_KINDS)}")
    pfns = tuple(memoryview(data)[REQUEST.size :].cast("Q")) if size else ()
    return Request(
        _KINDS[kind], number, tuple(args[:6]), (args[6], args[7], args[8]), pfns, args[9], args[10]
    )


_KINDS: Final = {int(kind): kind for kind in RequestKind}


def encode_reply(result: int, changes: Sequence[Change], *, more: bool) -> tuple[bytes, list[int]]:
    """One packet of an answer, with its descriptors. At most MAX_CHANGES with MAX_DESCRIPTORS; more: it is not
    the last one.
    """
    fds: list[int] = []
    for change in changes:
        fds += change.fds
    head = REPLY.pack(result, len(changes), more)
    return head + b"".join(map(_encode_change, changes)), fds


def _encode_change(change: Change) -> bytes:
    return CHANGE.pack(change.kind, change.pages, change.gpfn, change.number, change.offset)


def send_packet(channel: socket.socket, packet: bytes, fds: Sequence[int]) -> None:
    """Raises BlockingIOError on a channel that is full and does not block."""
    if fds:
        channel.sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
    else:
        channel.send(packet)


def receive_packet(channel: socket.socket) -> tuple[int, bool, list[Change]]:
    """Waits for one packet of an answer: result, whether more packets follow, and changes; the descriptors are
    the caller's now.

    Raises ChannelBroken when the other end is gone, or descriptors are missing.
    """
    data, ancillary, flags, _address = channel.recvmsg(MAX_REPLY_BYTES, _FD_SPACE, socket.MSG_CMSG_CLOEXEC)
    if not data:
        raise ChannelBroken("the hypervisor is gone")
    fds = array.array("i")
    for _level, _kind, content in ancillary:
        fds.frombytes(content[: len(content) - len(content) % 4])
    if flags & socket.MSG_CTRUNC:
        raise ChannelBroken("descriptors of its memory did not arrive: it has too many open files")
    result, count, more = REPLY.unpack_from(data)
    return result, bool(more), list(_decode_changes(data[REPLY.size :], fds)) if count else []


def _decode_changes(data: bytes, fds: Sequence[int]) -> Iterator[Change]:
    unused = iter(fds)
    for number, count, gpfn, which, offset in CHANGE.iter_unpack(data):
        kind = ChangeKind(number)
        expected = DESCRIPTORS.get(kind, 0) * (bool(count) if kind in OPTIONAL else 1)
        yield Change(kind, gpfn, count, which, offset, tuple(islice(unused, expected)))
