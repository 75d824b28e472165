"""Which system calls a confined process can make: a filter that the kernel runs at each (seccomp(2)).

A call that is not known to be harmless is refused with EPERM. What cannot be had by any argument is left out of
system_calls; what depends on arguments is said here. A filter sees registers only: nothing here trusts what a
pointer points to. Comparing the low half of a register is exact wherever the kernel takes an int.
"""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from hypervisor.vcpu.process.bpf import (
    ARCH_OFFSET,
    ARGS_OFFSET,
    JUMP_IF_ABOVE,
    JUMP_IF_EQUAL,
    JUMP_IF_NOT_BELOW,
    NUMBER_OFFSET,
    Program,
    encode,
    end,
    jump,
    load,
    mask,
)
from hypervisor.vcpu.process.libc import (
    PR_CAPBSET_READ,
    PR_GET_DUMPABLE,
    PR_GET_NAME,
    PR_GET_NO_NEW_PRIVS,
    PR_GET_PDEATHSIG,
    PR_GET_TIMERSLACK,
    PR_SET_NAME,
    PR_SET_VMA,
    syscall,
)
from hypervisor.vcpu.process.system_calls import ALLOWED, CLONE3, CONDITIONAL, LAST_KNOWN, NETWORK

AUDIT_ARCH_X86_64: Final = 0xC000_003E
RET_KILL_PROCESS: Final = 0x8000_0000
RET_ERRNO: Final = 0x0005_0000
RET_ALLOW: Final = 0x7FFF_0000
REFUSED: Final = RET_ERRNO | errno.EPERM
ABSENT: Final = RET_ERRNO | errno.ENOSYS

NR_SECCOMP: Final = 317
SECCOMP_SET_MODE_FILTER: Final = 1
SECCOMP_FILTER_FLAG_TSYNC: Final = 1

CLONE_THREAD: Final = 0x0001_0000
CLONE_NEW_ANY: Final = 0x7E02_0080
"""namespaces: NEWTIME, NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET"""

FCNTLS: Final = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1031, 1032, 1033, 1034)
"""descriptors, flags, locks, the size of pipes, seals; not F_SETOWN, which sends signals to others"""

IOCTLS: Final = (
    *(0x5401, 0x802C_542A, 0x5413),  # TCGETS, TCGETS2, TIOCGWINSZ: is it a terminal
    *(0x541B, 0x5411, 0x5421, 0x5450, 0x5451),  # FIONREAD, TIOCOUTQ, FIONBIO, FIONCLEX, FIOCLEX
    *(0x8008_1272, 0x1268, 0x127B, 0x125E, 0x1277, 0x127F),  # a disk's size, sectors, discards
)
PRCTLS: Final = (
    *(PR_SET_NAME, PR_GET_NAME, PR_GET_DUMPABLE, PR_GET_PDEATHSIG, PR_CAPBSET_READ, PR_GET_NO_NEW_PRIVS),
    *(PR_GET_TIMERSLACK, PR_SET_VMA),
)
AF_UNIX, AF_INET, AF_INET6 = 1, 2, 10
SOCK_STREAM, SOCK_SEQPACKET, SOCK_TYPE_MASK = 1, 5, 0xF
"""no datagrams: such a socket of a pair can still send to any path"""
SOL_SOCKET: Final = 1
SOCKET_OPTIONS: Final = (2, 7, 8, 9, 13, 16, 20, 21, 66, 67)
"""SO_REUSEADDR, buffers, KEEPALIVE, LINGER, PASSCRED, timeouts; not SO_ATTACH_FILTER"""

WHOLE: Final = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class OneOf:
    """The low half of argument `argument`, of which only `bits` count, is one of `values`."""

    argument: int
    values: tuple[int, ...]
    bits: int = WHOLE


def conditions(pid: int, *, network: bool) -> dict[int, tuple[OneOf, ...]]:
    """By system call: what must hold, all of it. `pid` is the process itself."""
    itself = OneOf(0, (pid,))
    rules = {
        "ioctl": (OneOf(1, IOCTLS),),
        "fcntl": (OneOf(1, FCNTLS),),
        "prctl": (OneOf(0, PRCTLS),),
        "clone": (OneOf(0, (CLONE_THREAD,), CLONE_THREAD | CLONE_NEW_ANY),),
        "kill": (itself,),
        "tgkill": (itself,),
        "rt_sigqueueinfo": (itself,),
        "rt_tgsigqueueinfo": (itself,),
        "prlimit64": (OneOf(0, (0, pid)),),
        "sched_setaffinity": (OneOf(0, (0, pid)),),
        "setpriority": (OneOf(0, (0,)), OneOf(1, (0, pid))),
    }
    if network:
        rules["socket"] = (OneOf(0, (AF_UNIX, AF_INET, AF_INET6)),)
        rules["socketpair"] = (OneOf(0, (AF_UNIX,)),)
    else:
        rules["socketpair"] = (OneOf(0, (AF_UNIX,)), OneOf(1, (SOCK_STREAM, SOCK_SEQPACKET), SOCK_TYPE_MASK))
        rules["setsockopt"] = (OneOf(1, (SOL_SOCKET,)), OneOf(2, SOCKET_OPTIONS))
    return {CONDITIONAL[name]: rule for name, rule in rules.items()}


def assemble(pid: int, *, network: bool) -> Program:
    """The filter of the process `pid`."""
    allowed = {*ALLOWED.values(), *(NETWORK.values() if network else ())}
    program = [
        load(ARCH_OFFSET),
        jump(JUMP_IF_EQUAL, AUDIT_ARCH_X86_64, if_true=1),
        end(RET_KILL_PROCESS),  # another ABI has other numbers
        load(NUMBER_OFFSET),
        jump(JUMP_IF_ABOVE, LAST_KNOWN, if_true=1),  # x32 as well, whose numbers begin at 2**30
        jump(JUMP_IF_EQUAL, CLONE3, if_false=1),
        end(ABSENT),
    ]
    for number, rule in conditions(pid, network=network).items():
        block = [*_all_of(rule), end(RET_ALLOW)]
        program += [jump(JUMP_IF_EQUAL, number, if_false=len(block)), *block]
    for first, last in ranges(allowed):
        program += [
            jump(JUMP_IF_NOT_BELOW, first, if_false=2),
            jump(JUMP_IF_ABOVE, last, if_true=1),
            end(RET_ALLOW),
        ]
    return [*program, end(REFUSED)]


def _all_of(rule: tuple[OneOf, ...]) -> Program:
    program: Program = []
    for condition in rule:
        program.append(load(ARGS_OFFSET + 8 * condition.argument))
        if condition.bits != WHOLE:
            program.append(mask(condition.bits))
        left = len(condition.values)
        for value in condition.values:
            program.append(jump(JUMP_IF_EQUAL, value, if_true=left))
            left -= 1
        program.append(end(REFUSED))
    return program


def ranges(numbers: set[int]) -> Iterator[tuple[int, int]]:
    """The runs of consecutive numbers, each with its first and last."""
    for first in sorted(number for number in numbers if number - 1 not in numbers):
        last = first
        while last + 1 in numbers:
            last += 1
        yield first, last


class _FilterProgram(ctypes.Structure):
    """struct sock_fprog"""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def install(program: Program) -> None:
    """Let the kernel run `program` at every system call of all threads, for ever. no_new_privs must be set.

    Raises OSError if the kernel has no filters.
    """
    code = ctypes.create_string_buffer(encode(program))
    descriptor = _FilterProgram(len(program), ctypes.addressof(code))
    flags = SECCOMP_FILTER_FLAG_TSYNC
    thread = syscall(NR_SECCOMP, SECCOMP_SET_MODE_FILTER, flags, ctypes.addressof(descriptor))
    if thread > 0:
        raise OSError(errno.EBUSY, f"thread {thread} has a filter of its own")
