"""What the processes of tests' domains execute: some by the platform, some by the wire alone, and some do what no
process does.
"""

import contextlib
import ctypes
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Sequence
from functools import partial
from random import Random

from hypervisor.abi.event_channel import EVTCHNOP_send
from hypervisor.abi.sched import (
    SCHEDOP_block,
    SCHEDOP_poll,
    SCHEDOP_shutdown,
    SHUTDOWN_poweroff,
    SHUTDOWN_suspend,
    sched_poll,
    sched_shutdown,
)
from hypervisor.abi.xen import __HYPERVISOR_event_channel_op as EVENT_CHANNEL_OP
from hypervisor.abi.xen import __HYPERVISOR_multicall as MULTICALL
from hypervisor.abi.xen import __HYPERVISOR_sched_op as SCHED_OP
from hypervisor.abi.xen import __HYPERVISOR_xen_version as XEN_VERSION
from hypervisor.abi.xen import multicall_entry
from hypervisor.vcpu.process.connection import Connection
from hypervisor.vcpu.process.doorbell import Listener, Ringer
from hypervisor.vcpu.process.event_page import EventPage
from hypervisor.vcpu.process.idling import run
from hypervisor.vcpu.process.listening import mapped
from hypervisor.vcpu.process.platform import ProcessPlatform, attach
from hypervisor.vcpu.process.wire import MAX_PFNS, REQUEST, RequestKind, receive_packet

COUNTER = 1
"""the page in which guests count"""
ARGUMENT = 0x100
CALLS = 2 << 12
"""where multicalls begin"""
CALLS_MANY = 1000
PORT = 1
"""the first port of a domain"""


def request(
    kind: int, number: int = 0, args: Sequence[int] = (), counted: Sequence[int] = (0, 0, 0)
) -> bytes:
    """A packet with a request."""
    return REQUEST.pack(kind, number, *(*args, 0, 0, 0, 0, 0, 0)[:6], *counted, 0, 0)


def ask(channel: socket.socket, packet: bytes) -> int:
    """The result; what changes is not looked at."""
    channel.send(packet)
    more = True
    while more:
        result, more, _ = receive_packet(channel)
    return result


def count(platform: ProcessPlatform) -> memoryview:
    """A word that the test sees."""
    return platform.memory.page(COUNTER)[:8].cast("Q")


def shut_down(platform: ProcessPlatform, reason: int) -> int:
    page = platform.memory.page(0)
    packed = sched_shutdown(reason).pack()
    page[ARGUMENT : ARGUMENT + len(packed)] = packed
    return platform.hypercall(SCHED_OP, SCHEDOP_shutdown, ARGUMENT)


# Good ones


def power_off(payload: bytes, fds: list[int]) -> None:
    """Says something, and shuts down."""
    platform = attach(fds, 0)
    print(payload.decode())
    shut_down(platform, SHUTDOWN_poweroff)


def count_for_ever(payload: bytes, fds: list[int]) -> None:
    word = count(attach(fds, 0))
    while True:
        word[0] += 1


def count_hypercalls(payload: bytes, fds: list[int]) -> None:
    platform = attach(fds, 0)
    word = count(platform)
    while True:
        assert platform.hypercall(XEN_VERSION, 0, 0) > 0
        word[0] += 1


def call_at_length(payload: bytes, fds: list[int]) -> None:
    """One hypercall after the other that takes many slices; counts those that are done."""
    platform = attach(fds, 0)
    calls = platform.memory.span(CALLS >> 12, 16)
    entry = multicall_entry(op=XEN_VERSION, args=(0,) * 6).pack()
    word = count(platform)
    while True:
        calls[: CALLS_MANY * len(entry)] = entry * CALLS_MANY
        assert platform.hypercall(MULTICALL, CALLS, CALLS_MANY) == 0
        assert all(multicall_entry.unpack(calls, at * len(entry)).result > 0 for at in range(CALLS_MANY))
        word[0] += 1


def suspend(payload: bytes, fds: list[int]) -> None:
    """Suspends, and goes on when it is resumed."""
    platform = attach(fds, 0)
    word = count(platform)
    word[0] = 1
    word[0] = 100 + shut_down(platform, SHUTDOWN_suspend)
    shut_down(platform, SHUTDOWN_poweroff)


def block(payload: bytes, fds: list[int]) -> None:
    """Blocks and polls by hypercalls of its own, alone and in a multicall."""
    platform = attach(fds, 0)
    page = platform.memory.page(0)
    packed = sched_poll(ports=0, nr_ports=0, timeout=1 << 62).pack()
    page[ARGUMENT : ARGUMENT + len(packed)] = packed
    assert platform.hypercall(SCHED_OP, SCHEDOP_block, 0) == 0
    assert platform.hypercall(SCHED_OP, SCHEDOP_poll, ARGUMENT) == 0
    entries = [
        multicall_entry(op=SCHED_OP, args=(SCHEDOP_block, 0, 0, 0, 0, 0)),
        multicall_entry(op=SCHED_OP, args=(SCHEDOP_poll, ARGUMENT, 0, 0, 0, 0)),
        multicall_entry(op=XEN_VERSION, args=(0,) * 6),
    ]
    calls = platform.memory.page(CALLS >> 12)
    for index, entry in enumerate(entries):
        calls[index * 64 : (index + 1) * 64] = entry.pack()
    assert platform.hypercall(MULTICALL, CALLS, len(entries)) == 0
    assert multicall_entry.unpack(calls, 128).result > 0
    print("not blocked")
    shut_down(platform, SHUTDOWN_poweroff)


def talk(payload: bytes, fds: list[int]) -> None:
    """Prints more than anybody wants to read."""
    platform = attach(fds, 0)
    for _ in range(64):
        os.write(1, b"x" * 16384)
    shut_down(platform, SHUTDOWN_poweroff)


# Those that end


def leave(payload: bytes, fds: list[int]) -> None:
    sys.exit(int(payload))


def raise_something(payload: bytes, fds: list[int]) -> None:
    raise LookupError(payload.decode())


def touch_nothing(payload: bytes, fds: list[int]) -> None:
    ctypes.string_at(8)


def kill_itself(payload: bytes, fds: list[int]) -> None:
    attach(fds, 0)
    os.kill(os.getpid(), signal.SIGKILL)


def have_no_descriptors(payload: bytes, fds: list[int]) -> None:
    """What it is sent does not arrive."""
    channel = socket.socket(fileno=fds[0])
    bell = Listener(mapped(fds[1]), fds[2], None)
    ringer = Ringer(mapped(fds[3]), fds[4])
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    with contextlib.suppress(OSError):
        while True:
            os.dup(0)
    os.close(63)  # for epoll
    with contextlib.suppress(Exception):
        ProcessPlatform(Connection(channel, bell, ringer), 0)
    print("it has gone on")


# Bad ones


def send_garbage(payload: bytes, fds: list[int]) -> None:
    socket.socket(fileno=fds[0]).send(payload)
    time.sleep(1000)


def close_descriptor(payload: bytes, fds: list[int]) -> None:
    """And stay."""
    os.close(fds[int(payload)])
    time.sleep(1000)


def ask_and_not_read(payload: bytes, fds: list[int]) -> None:
    """Asks for as long as it can."""
    channel = socket.socket(fileno=fds[0])
    channel.setblocking(False)
    while True:
        try:
            channel.send(request(RequestKind.SYNC))
        except BlockingIOError:
            time.sleep(0.001)


def send_descriptors(payload: bytes, fds: list[int]) -> None:
    """Of its own, beside its requests."""
    channel = socket.socket(fileno=fds[0])
    with open("/dev/null", "rb") as file:
        for _ in range(100):
            socket.send_fds(channel, [request(RequestKind.SYNC)], [file.fileno()] * 50)
            more = True
            while more:
                _, more, changes = receive_packet(channel)
                for change in changes:
                    for fd in change.fds:
                        os.close(fd)
    sys.exit(3)


def ask_for_anything(payload: bytes, fds: list[int]) -> None:
    """Requests that are in form and out of reason, and counts that are lies."""
    channel = socket.socket(fileno=fds[0])
    huge = 2**64 - 1
    results = [
        ask(channel, request(RequestKind.SYNC, huge, [huge] * 6, (huge, 0, huge))),
        ask(channel, request(RequestKind.SYNC, 0, (), (0, huge, 0))),
        ask(channel, request(RequestKind.HYPERCALL, huge, [huge] * 6)),
        ask(channel, request(RequestKind.HYPERCALL, SCHED_OP, [huge] * 6)),
        ask(channel, request(RequestKind.RECLAIM, 0, [huge, huge])),
        ask(channel, request(RequestKind.RECLAIM, 0, [0, 1 << 16])),
        ask(channel, request(RequestKind.SHARE, 0, [huge, huge])),
        ask(channel, request(RequestKind.SHARE, 0, [0, 0]) + b"\xff" * 8 * MAX_PFNS),
        ask(channel, request(RequestKind.SHARE, 0, [int(payload), 0]) + b"\xff" * 8 * MAX_PFNS),
    ]
    print(results)
    sys.exit(3)


def ring_all(payload: bytes, fds: list[int]) -> None:
    """All ports of the hypervisor's bell, over and over."""
    platform = attach(fds, 0)
    ringer = platform._connection.routes._to_hypervisor
    word = count(platform)
    while True:
        for port in range(4096):
            ringer.ring(port)
        ringer.wake()
        word[0] += 1


# Two that ring each other


def ring_in_turns(payload: bytes, fds: list[int]) -> None:
    """Rings for its first port, and waits for an event, so many times; before each it sleeps for a while or not.

    payload: the loop, how many times, whether it begins.
    """
    loop, rounds, begins = payload.decode().split()
    platform = attach(fds, 0)
    run(platform.idling, partial(_in_turns, platform, int(rounds), bool(int(begins))), loop)


async def _in_turns(platform: ProcessPlatform, rounds: int, begins: bool) -> None:
    events = platform._events
    assert events is not None
    page = platform.memory.page(0)
    page[ARGUMENT : ARGUMENT + 4] = (PORT).to_bytes(4, "little")
    word = count(platform)
    random = Random(begins)
    if begins:
        platform.hypercall(EVENT_CHANNEL_OP, EVTCHNOP_send, ARGUMENT)
    for _ in range(rounds):
        await _turn(platform, events)
        if random.random() < 0.05:
            time.sleep(random.random() * 0.0006)  # noqa: ASYNC251 - the other one falls asleep, or is about to
        word[0] += 1
        assert platform.hypercall(EVENT_CHANNEL_OP, EVTCHNOP_send, ARGUMENT) == 0
    shut_down(platform, SHUTDOWN_poweroff)


async def _turn(platform: ProcessPlatform, events: EventPage) -> None:
    """Wait for an event, and take it."""
    while True:
        await platform.wait_upcall()
        events._info[0] = 0
        events._info_words[1] = 0
        if events._pending[0]:
            events._pending[0] = 0
            return
