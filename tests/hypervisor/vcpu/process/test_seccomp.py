"""The filter of system calls, executed by a small machine of ours; the hostile tests ask the kernel's."""

import errno
import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.vcpu.process.bpf import encode
from hypervisor.vcpu.process.seccomp import (
    CLONE_THREAD,
    FCNTLS,
    IOCTLS,
    PRCTLS,
    SOCKET_OPTIONS,
    assemble,
    conditions,
    ranges,
)
from hypervisor.vcpu.process.system_calls import ALLOWED, CLONE3, CONDITIONAL, LAST_KNOWN, NETWORK
from tests.hypervisor.vcpu.process.bpf_machine import execute
from tests.requirements import needs_package

PID = 4321
ALLOW = 0x7FFF_0000
KILL = 0x8000_0000
EPERM = 0x0005_0000 | errno.EPERM
ENOSYS = 0x0005_0000 | errno.ENOSYS
CLOSED = encode(assemble(PID, network=False))
OPEN = encode(assemble(PID, network=True))
HEADER = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")

MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS

# fmt: off
DANGEROUS = {
    "shmget": 29, "fork": 57, "vfork": 58, "execve": 59, "semget": 64, "msgget": 68, "truncate": 76,
    "chmod": 90, "fchmod": 91, "chown": 92, "ptrace": 101, "setuid": 105, "capset": 126, "mknod": 133,
    "personality": 135, "pivot_root": 155, "chroot": 161, "mount": 165, "umount2": 166, "reboot": 169,
    "init_module": 175, "setxattr": 188, "tkill": 200, "add_key": 248, "keyctl": 250,
    "inotify_add_watch": 254, "unshare": 272, "vmsplice": 278, "utimensat": 280, "perf_event_open": 298,
    "open_by_handle_at": 304, "setns": 308, "process_vm_readv": 310, "process_vm_writev": 311,
    "kcmp": 312, "finit_module": 313, "seccomp": 317, "kexec_file_load": 320, "bpf": 321, "execveat": 322,
    "userfaultfd": 323, "pidfd_send_signal": 424, "io_uring_setup": 425, "open_tree": 428,
    "move_mount": 429, "pidfd_open": 434, "pidfd_getfd": 438, "process_madvise": 440,
    "mount_setattr": 442, "process_mrelease": 448,
}
# fmt: on


def closed(name: str, *args: int) -> int:
    return execute(CLOSED, CONDITIONAL[name], args)


def opened(name: str, *args: int) -> int:
    return execute(OPEN, CONDITIONAL[name], args)


def test_every_number_has_the_answer_that_the_tables_say() -> None:
    for code, network in ((CLOSED, False), (OPEN, True)):
        allowed = {*ALLOWED.values(), *(NETWORK.values() if network else ())}
        for number in range(LAST_KNOWN + 100):
            if number in allowed:
                expected = ALLOW
            elif number == CLONE3 or number > LAST_KNOWN:
                expected = ENOSYS
            elif number in conditions(PID, network=network):
                continue
            else:
                expected = EPERM
            assert execute(code, number, (PID,) * 6) == expected, number


@pytest.mark.parametrize("name", sorted(DANGEROUS))
def test_what_reaches_others_is_refused(name: str) -> None:
    for code in (CLOSED, OPEN):
        assert execute(code, DANGEROUS[name]) == EPERM
        assert execute(code, DANGEROUS[name], (PID, 0, PID)) == EPERM


def test_other_instruction_sets_have_no_system_calls() -> None:
    assert execute(CLOSED, ALLOWED["getpid"], arch=0x4000_0003) == KILL  # i386: int 0x80
    x32 = 1 << 30
    assert {execute(CLOSED, x32 | number) for number in range(600)} == {ENOSYS}
    assert execute(CLOSED, -1) == ENOSYS


@pytest.mark.parametrize("name", ["kill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo"])
def test_signals_reach_the_process_itself_only(name: str) -> None:
    assert closed(name, PID, 9) == ALLOW
    assert closed(name, 1 << 32 | PID, 9) == ALLOW  # the kernel takes the low half
    for pid in (0, -1, 1, PID - 1, PID + 1, -PID, PID << 32):
        assert closed(name, pid, 9) == EPERM


def test_threads_start_and_processes_do_not() -> None:
    pthread_create = 0x3D0F00
    assert closed("clone", pthread_create) == ALLOW
    assert closed("clone", 17) == EPERM  # fork
    assert closed("clone", 0x4111) == EPERM  # vfork
    for namespace in (0x80, 0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert closed("clone", pthread_create | namespace) == EPERM
    assert closed("clone", CLONE_THREAD << 32) == EPERM


def test_limits_and_priorities_are_the_process_s_own() -> None:
    for name in ("prlimit64", "sched_setaffinity"):
        assert closed(name, 0, 7) == closed(name, PID, 7) == ALLOW
        assert closed(name, 1, 7) == closed(name, -1, 7) == EPERM
    assert closed("setpriority", 0, 0, 5) == closed("setpriority", 0, PID, 5) == ALLOW
    assert closed("setpriority", 0, 1, 5) == EPERM
    assert closed("setpriority", 1, 0, 5) == EPERM  # its group
    assert closed("setpriority", 2, 0, 5) == EPERM  # its user, everywhere


@pytest.mark.parametrize(
    ("name", "argument", "good"), [("fcntl", 1, FCNTLS), ("ioctl", 1, IOCTLS), ("prctl", 0, PRCTLS)]
)
@given(command=st.integers(0, 2**64 - 1) | st.integers(0, 2000))
def test_only_listed_commands_are_allowed(
    name: str, argument: int, good: tuple[int, ...], command: int
) -> None:
    args = (command,) if argument == 0 else (3, command)
    assert closed(name, *args) == (ALLOW if command & 0xFFFF_FFFF in good else EPERM)
    assert all(closed(name, *((c,) if argument == 0 else (3, c))) == ALLOW for c in good)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        *[("fcntl", 8), ("fcntl", 10), ("fcntl", 15)],  # F_SETOWN, F_SETSIG, F_SETOWN_EX
        *[("ioctl", 0x5412), ("ioctl", 0x541C), ("ioctl", 0x8901), ("ioctl", 0x4008_6602)],  # TIOCSTI, …
    ],
)
def test_commands_that_reach_others_are_refused(name: str, command: int) -> None:
    assert closed(name, 0, command) == EPERM


@pytest.mark.parametrize("option", [1, 4, 22, 24, 28, 35, 36, 38, 47, 0x59616D61])
def test_a_process_does_not_undo_its_confinement(option: int) -> None:
    assert closed("prctl", option, 0) == EPERM


def test_no_socket_but_pairs_without_network() -> None:
    for family in (1, 2, 10, 16, 17, 38, 40):
        assert closed("socket", family, 1) == EPERM
    assert {execute(CLOSED, number) for name, number in NETWORK.items() if name != "setsockopt"} == {EPERM}
    assert closed("socketpair", 1, 1 | 0x80800) == closed("socketpair", 1, 5) == ALLOW
    assert closed("socketpair", 1, 2) == closed("socketpair", 1, 3) == EPERM  # could send to any path
    assert closed("socketpair", 30, 1) == EPERM
    assert {closed("setsockopt", 3, 1, option) for option in SOCKET_OPTIONS} == {ALLOW}
    assert {closed("setsockopt", 3, 1, option) for option in (26, 50, 51, 52)} == {EPERM}  # programs
    assert closed("setsockopt", 3, 6, 7) == EPERM


def test_the_network_s_families_with_network() -> None:
    assert {opened("socket", family, 1) for family in (1, 2, 10)} == {ALLOW}
    assert {opened("socket", family, 3) for family in (0, 3, 15, 16, 17, 38, 40, 44)} == {EPERM}
    assert {execute(OPEN, number) for number in NETWORK.values()} == {ALLOW}
    assert opened("kill", 1) == EPERM


@given(st.sets(st.integers(0, 500)))
def test_ranges_are_the_set(numbers: set[int]) -> None:
    found = list(ranges(numbers))
    assert {n for first, last in found for n in range(first, last + 1)} == numbers
    assert all(later[0] > earlier[1] + 1 for earlier, later in pairwise(found))


def test_the_kernel_takes_a_program_of_this_length() -> None:
    assert len(assemble(2**22, network=True)) < MAX_INSTRUCTIONS


def test_numbers_are_those_of_the_kernel_s_header() -> None:
    needs_package("linux-libc-dev", HEADER.exists())
    numbers = {
        name: int(number) for name, number in re.findall(r"#define __NR_(\w+) (\d+)", HEADER.read_text())
    }
    ours = ALLOWED | CONDITIONAL | NETWORK | DANGEROUS | {"clone3": CLONE3}
    assert {name: numbers.get(name) for name in ours} == ours
