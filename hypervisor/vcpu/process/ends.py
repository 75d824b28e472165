"""What connects a domain's process with the hypervisor: the channel, a bell in each direction, its output."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final, Self

from hypervisor.vcpu.process.doorbell import Bell, BellMemory, Listener, Ringer

CHANNEL_BUFFER_BYTES: Final = 4096
"""Linux doubles it: two packets. A process that does not read keeps no more descriptors under way than theirs, of
which all processes of a user may have so many only (unix(7), ETOOMANYREFS)"""


class Ends:
    """The hypervisor's ends, none of which blocks; and until `hand_over` those of the process.

    channel: requests and answers. ringer: events for the process. listener: events from it. output: what it
    prints. of_process: descriptors in the order in which platform.attach expects them.
    """

    def __init__(self) -> None:
        """OSError when there are no more descriptors."""
        with ExitStack() as undo:
            self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(self.channel.close)
            undo.callback(theirs.close)
            self.channel.setblocking(False)
            self.channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CHANNEL_BUFFER_BYTES)
            to_process, from_process = _new_bell(undo), _new_bell(undo)
            self.output, self.output_of_process = os.pipe2(os.O_CLOEXEC)
            undo.callback(os.close, self.output)
            undo.callback(os.close, self.output_of_process)
            os.set_blocking(self.output, False)
            self.ringer = Ringer(BellMemory(to_process.memory_fd), to_process.sender_end)
            self.listener = Listener(BellMemory(from_process.memory_fd), from_process.listener_end, None)
            undo.pop_all()
        self.of_process = [
            theirs.detach(),
            to_process.memory_fd,
            to_process.listener_end,
            from_process.memory_fd,
            from_process.sender_end,
        ]

    def hand_over(self) -> None:
        """The process has its ends now."""
        for fd in (*self.of_process, self.output_of_process):
            os.close(fd)
        self.of_process = []
        self.output_of_process = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.of_process:
            self.hand_over()
        closing: list[Callable[[], None]] = [self.channel.close, self.ringer.close, self.listener.close]
        for close in closing:
            close()
        os.close(self.output)


def _new_bell(undo: ExitStack) -> Bell:
    bell = Bell()
    undo.callback(bell.close)
    return bell
