"""What a domain's process gives up before its program runs: everything that it does not need to compute and to
use the descriptors that it has.

The program may be hostile, run native code and be started by root. It must reach nothing but its own memory,
its descriptors, the interpreter's files and what it was given. Several walls stand behind each other, since not
every system has all of them: a seccomp filter (no other process, no new privilege, no socket), Landlock (no
other file), namespaces, no capability, and limits. What a system does not offer is told, not an error.

Not covered: how much memory it uses by mappings that are shared (a control group would limit that), processor
time, and what can be learnt from a path's stat. Children of one fork server share its address space layout and
hash seed.
"""

from __future__ import annotations

import os
import resource
import sys
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Final

from hypervisor.vcpu.process import landlock, seccomp
from hypervisor.vcpu.process.interpreter_files import RESOLVER, SINK, needed
from hypervisor.vcpu.process.landlock import CHANGE, READ, READ_DIR, TRUNCATE, WRITE_FILE, Ruleset
from hypervisor.vcpu.process.libc import PR_SET_DUMPABLE, prctl
from hypervisor.vcpu.process.namespaces import enter_own_namespaces, enter_own_user_namespace
from hypervisor.vcpu.process.newborn import die_with
from hypervisor.vcpu.process.privileges import drop_capabilities, drop_groups, forbid_new_privileges

MAX_THREADS: Final = 256
"""a user namespace's processes and threads are counted apart from those of the user outside"""


class ConfinementMisuse(RuntimeError):
    """A process with several threads: some walls would stand around one of them only."""

    def __init__(self, threads: int) -> None:
        super().__init__(f"a process is confined before it starts threads; this one has {threads}")
        self.threads = threads


@dataclass(frozen=True, slots=True)
class Confinement:
    """What a process keeps.

    readable_paths, writable_paths: files, or folders with all that is in them, besides the interpreter's own.
    They must be there. network: whether it may have sockets other than pairs. open_files: how many descriptors.
    data_bytes: how much private memory.
    """

    readable_paths: tuple[str, ...] = ()
    writable_paths: tuple[str, ...] = ()
    network: bool = False
    open_files: int = 256
    data_bytes: int | None = None


def confine(confinement: Confinement) -> list[str]:
    """Confine the calling process, for ever. What could not be done, in words, to be logged.

    To be called before there are threads and before anything untrusted runs. Raises ConfinementMisuse, and
    OSError when a given path is not there; the process must not go on then.
    """
    if (threads := len(os.listdir("/proc/self/task"))) > 1:
        raise ConfinementMisuse(threads)
    parent = os.getppid()
    _limit(confinement)
    forbid_new_privileges()
    undone = drop_groups()
    missing_user = enter_own_user_namespace()
    undone += missing_user + enter_own_namespaces(network=confinement.network) + drop_capabilities()
    undone += _limit_threads(own_user_namespace=not missing_user)
    die_with(parent)  # a change of credentials may have cleared that
    prctl(PR_SET_DUMPABLE, 0)
    undone += _restrict_files(confinement)
    undone += _filter_system_calls(network=confinement.network)
    return undone


# ---- limits


def _limit(confinement: Confinement) -> None:
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_NOFILE: confinement.open_files,
    }
    if confinement.data_bytes is not None:
        limits[resource.RLIMIT_DATA] = confinement.data_bytes
    for limit, value in limits.items():
        _lower(limit, value)


def _limit_threads(*, own_user_namespace: bool) -> list[str]:
    """Of a user namespace of its own: the limit counts all of the user's processes otherwise."""
    if own_user_namespace:
        _lower(resource.RLIMIT_NPROC, MAX_THREADS)
    if not own_user_namespace or os.getuid() == 0:  # the kernel lets root have any number
        return ["the number of threads is not limited"]
    return []


def _lower(limit: int, value: int) -> None:
    _, most = resource.getrlimit(limit)
    if most != resource.RLIM_INFINITY:
        value = min(value, most)
    resource.setrlimit(limit, (value, value))


# ---- the walls


def _restrict_files(confinement: Confinement) -> list[str]:
    version = landlock.abi()
    if version:
        with closing(Ruleset(version, network=confinement.network)) as rules:
            _allow_interpreter(rules, network=confinement.network)
            for path in confinement.readable_paths:
                rules.allow(path, READ)
            for path in confinement.writable_paths:
                rules.allow(path, READ | CHANGE)
            rules.restrict()
    return landlock.missing(version)


def _allow_interpreter(rules: Ruleset, *, network: bool) -> None:
    files = needed(tuple(sys.path))
    rights = {**dict.fromkeys(files.trees, READ), **dict.fromkeys(files.listed, READ_DIR)}
    if network:
        rights |= dict.fromkeys(RESOLVER, READ)
    rights[SINK] = READ | WRITE_FILE | TRUNCATE
    for path, right in rights.items():
        with suppress(FileNotFoundError, PermissionError):  # what is not there, or not for this user
            rules.allow(path, right)


def _filter_system_calls(*, network: bool) -> list[str]:
    try:
        seccomp.install(seccomp.assemble(os.getpid(), network=network))
    except OSError as error:
        return [f"no filter of system calls: {error.strerror}"]
    return []
