"""What the spawner and its fork server tell each other, a packet each, on a SOCK_SEQPACKET pair.

Descriptors travel beside a packet (SCM_RIGHTS). Both sides are our own code; no domain has either end.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from enum import IntEnum
from fcntl import F_ADD_SEALS, F_SEAL_GROW, F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_WRITE, fcntl
from struct import Struct as Codec
from typing import Final, NamedTuple

MAX_FDS: Final = 253
"""SCM_MAX_FD of Linux, for one packet"""
MAX_MESSAGE_BYTES: Final = 4096

_HEADER: Final = Codec("<BIi")
_SEALS: Final = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL


class Kind(IntEnum):
    """Which way it goes, and what `number` and `value` mean."""

    READY = 0
    """to the spawner: everything is imported"""
    SPAWN = 1
    """to the server: number: a request's, value: how many descriptors; text: entry, name. Descriptors: payload,
    output, what is given"""
    SPAWNED = 2
    """to the spawner: number: the request's, value: the pid. Descriptor: the child's pidfd"""
    REFUSED = 3
    """to the spawner: number: the request's, value: errno"""
    EXITED = 4
    """to the spawner: number: the pid, which is free from now on; value: exit code, or -signal"""


class Message(NamedTuple):
    """One packet."""

    kind: Kind
    number: int = 0
    value: int = 0
    text: tuple[str, ...] = ()


def send(control: socket.socket, message: Message, fds: Sequence[int] = ()) -> None:
    """Raises OSError: BlockingIOError when a non-blocking socket is full, BrokenPipeError without a peer."""
    header = _HEADER.pack(message.kind, message.number, message.value)
    socket.send_fds(control, [header + "\0".join(message.text).encode()], fds, socket.MSG_NOSIGNAL)


def receive(control: socket.socket) -> tuple[Message, list[int]] | None:
    """The next message and its descriptors, which are closed on exec. None when the peer is gone.

    Raises BlockingIOError when a non-blocking socket has nothing.
    """
    try:
        data, fds, _flags, _address = socket.recv_fds(
            control, MAX_MESSAGE_BYTES, MAX_FDS, socket.MSG_CMSG_CLOEXEC
        )
    except ConnectionResetError:
        return None
    if not data:
        return None
    kind, number, value = _HEADER.unpack_from(data)
    text = data[_HEADER.size :].decode()
    return Message(Kind(kind), number, value, tuple(text.split("\0")) if text else ()), fds


def payload_memfd(payload: bytes) -> int:
    """A memfd with `payload` that nobody can change any more. The caller closes it. Raises OSError."""
    fd = os.memfd_create("payload", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(payload)
        fcntl(fd, F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_payload(fd: int) -> bytes:
    """All of a payload, from its beginning; closes `fd`."""
    with open(fd, "rb") as file:
        file.seek(0)
        return file.read()
