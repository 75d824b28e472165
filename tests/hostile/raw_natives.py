"""What a native domain's process may do when its guest has broken out of the engine: entries of processes."""

import os
import random
import signal
import socket
from collections.abc import Sequence

from hypervisor.abi.sched import SCHEDOP_shutdown, SHUTDOWN_poweroff, sched_shutdown
from hypervisor.abi.xen import HYPERVISOR_sched_op
from hypervisor.pv.layout import ARGUMENT_MFN, MFN_END, PAGE_SHIFT
from hypervisor.pv.ledger import map_ledger
from hypervisor.pv.tally import TALLY_BYTES
from hypervisor.vcpu.process.connection import Connection, connect
from hypervisor.vcpu.process.wire import REQUEST, Change, RequestKind, receive_packet

ENDS = 5
CHANNEL = 0
HYPERCALLS = 64


class Nobody:
    """Lives in the process, and is told everything."""

    received = upcalls = 2**64 - 1

    def __init__(self) -> None:
        self.audits = 0

    def place_shared_info(self, page: memoryview) -> None: ...

    def place_vcpu_info(self, page: memoryview, offset: int) -> None: ...

    def appeared(self, change: Change) -> None: ...

    def vanished(self, gpfn: int, count: int) -> None: ...

    def save_to(self, fd: int) -> None: ...

    def audit_to(self, fd: int) -> None: ...


def begun(fds: Sequence[int]) -> Connection:
    """The memory is mapped."""
    connection = connect(fds[:ENDS])
    connection.begin(Nobody())
    return connection


def power_off(connection: Connection) -> None:
    """The domain ends well."""
    argument = connection.space.page(ARGUMENT_MFN)
    argument[: sched_shutdown.size] = sched_shutdown(reason=SHUTDOWN_poweroff).pack()
    args = (SCHEDOP_shutdown, ARGUMENT_MFN << PAGE_SHIFT)
    connection.request(RequestKind.HYPERCALL, HYPERVISOR_sched_op, args)
    signal.pause()


def raw(fds: Sequence[int], kind: int, args: Sequence[int] = (), root: int = 0, vcpu: int = 0) -> None:
    """One request by hand, then nothing."""
    channel = socket.socket(fileno=fds[CHANNEL])
    channel.setblocking(True)
    channel.send(REQUEST.pack(kind, 0, *(*args, 0, 0, 0, 0, 0, 0)[:6], 0, 0, 0, root, vcpu))
    while True:
        receive_packet(channel)


def end_well(_payload: bytes, fds: list[int]) -> None:
    power_off(begun(fds))


def be_a_vcpu_that_is_not(_payload: bytes, fds: list[int]) -> None:
    raw(fds, RequestKind.HYPERCALL, vcpu=99)


def save_unasked(_payload: bytes, fds: list[int]) -> None:
    raw(fds, RequestKind.SAVED, (100,))


def audit_unasked(_payload: bytes, fds: list[int]) -> None:
    raw(fds, RequestKind.AUDITED, (100,))


def save_nonsense(_payload: bytes, fds: list[int]) -> None:
    """Ready at once; what it saves when it is asked to is nonsense, and so long that nothing could hold it."""
    connection = begun(fds)
    connection.request(RequestKind.READY)
    while True:
        for _ in range(100):
            connection.request(RequestKind.SYNC)
        connection.request(RequestKind.SAVED, (2**63,))


def save_garbage(_payload: bytes, fds: list[int]) -> None:
    """The same, of a length that could be."""
    connection = connect(fds[:ENDS])

    class Saver(Nobody):
        def save_to(self, fd: int) -> None:
            os.write(fd, b"\xff{nonsense")
            connection.request(RequestKind.SAVED, (10,))

    connection.begin(Saver())
    connection.request(RequestKind.READY)
    while True:
        connection.request(RequestKind.SYNC)


def call_with_any_root(_payload: bytes, fds: list[int]) -> None:
    """All hypercalls, with roots and handles from everywhere; then it powers off."""
    connection, rng = begun(fds), random.Random(9)
    roots = [0, 1, ARGUMENT_MFN, 0x10000, MFN_END - 1, MFN_END, 2**40, 2**52, 2**64 - 1]
    for number in range(HYPERCALLS):
        if number == HYPERVISOR_sched_op:
            continue
        for _ in range(40):
            args = [rng.choice([0, 1, 2, 3, rng.getrandbits(6), rng.getrandbits(64)]) for _ in range(6)]
            connection.request(RequestKind.HYPERCALL, number, args, root=rng.choice(roots))
    power_off(connection)


def scribble_over_what_it_shares(_payload: bytes, fds: list[int]) -> None:
    """Ledger, tally and all of its memory; then it powers off."""
    connection, rng = begun(fds), random.Random(5)
    ledger, tally = fds[ENDS : ENDS + 2]
    views = map_ledger(ledger)
    views.types[0x10000:0x11000] = rng.randbytes(0x1000)
    os.pwrite(tally, b"\xff" * TALLY_BYTES, 0)
    connection.space.page(0x100)[:] = rng.randbytes(4096)
    power_off(connection)
