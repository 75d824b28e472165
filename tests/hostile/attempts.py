"""What a hostile program tries in a domain's process, and what comes of it: an errno's name, or ok.

A child of the fork server: it becomes an ordinary user if it is told to, confines itself, and then tries
everything. `main` without confinement shows which attempts are real.
"""

import ctypes
import errno
import fcntl
import json
import mmap
import os
import resource
import signal
import socket
import struct
import sys
import time
import zoneinfo
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypervisor.vcpu.process.confinement import Confinement, confine

NOBODY = 65534
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAP_AMBIENT, PR_SET_PTRACER = 1, 4, 22, 47, 0x59616D61
PTRACE_ATTACH, PTRACE_SEIZE, PTRACE_DETACH = 16, 0x4206, 17

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def syscall(number: int, *args: int) -> int:
    """Any system call by its number."""
    result: int = _libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, args))
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result


def prctl(*args: int) -> int:
    return syscall(157, *args)


def outcome(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, repr(error))
    except Exception as error:
        return repr(error)
    return "ok"


def become(uid: int | None) -> None:
    """An ordinary user, for good."""
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)


def victim(payload: bytes, fds: list[int]) -> None:
    """Somebody of the same user, unconfined, with a secret in its memory. Says where, and waits."""
    become(json.loads(payload))
    prctl(PR_SET_DUMPABLE, 1)
    prctl(PR_SET_PTRACER, 2**64 - 1) if Path("/proc/sys/kernel/yama").exists() else None
    secret = ctypes.create_string_buffer(b"the victim's secret")
    os.write(fds[0], str(ctypes.addressof(secret)).encode())
    signal.sigwait([signal.SIGTERM])


def main(payload: bytes, fds: list[int]) -> None:
    """Prints what came of each attempt, as JSON."""
    told = json.loads(payload)
    become(told["uid"])
    report: dict[str, Any] = {}
    if told["confined"]:
        confinement = Confinement((told["readable"],), (told["writable"],), open_files=64)
        report["undone"] = confine(confinement)
    victims = Victims(told)
    attempts = victims.all() | FileAttempts(told).all() | privileges()
    report["attempts"] = {
        name: outcome(attempt)
        for name, attempt in attempts.items()
        if told["confined"] or name in told["harmless"]
    }
    report["descriptors"] = [fd for fd in range(4096) if is_open(fd)]
    report["given"] = fds
    report["works"] = {name: outcome(attempt) for name, attempt in ordinary(told).items()}
    print(json.dumps(report))


def is_open(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_GETFD)
    except OSError:
        return False
    return True


class Victims:
    """What reaches other processes."""

    def __init__(self, told: dict[str, Any]) -> None:
        self.pid: int = told["victim"]
        self.address: int = told["address"]
        self.hypervisor: int = told["hypervisor"]

    def all(self) -> dict[str, Callable[[], object]]:
        others = {"victim": self.pid, "hypervisor": self.hypervisor, "server": os.getppid()}
        attempts: dict[str, Callable[[], object]] = {
            "kill everybody": lambda: os.kill(-1, signal.SIGCONT),
            "kill the group": lambda: os.kill(0, signal.SIGCONT),
            "read the victim": self.read,
            "write the victim": self.write,
            "ask to wake by signal": lambda: fcntl.fcntl(0, fcntl.F_SETOWN, self.pid),
            "pin the victim": lambda: os.sched_setaffinity(self.pid, os.sched_getaffinity(0)),
            "slow the user down": lambda: os.setpriority(os.PRIO_USER, os.getuid(), 19),
            "limit the victim": lambda: resource.prlimit(self.pid, resource.RLIMIT_NOFILE, (3, 3)),
            "look at the victim's limits": lambda: resource.prlimit(self.pid, resource.RLIMIT_NOFILE),
            "compare with the victim": lambda: syscall(312, os.getpid(), self.pid, 1, 0, 0),
            "advise the victim": lambda: syscall(440, 0, 0, 0, 4, 0),
            "share memory by a key": lambda: syscall(29, 1234, 4096, 0o1666),
            "share semaphores by a key": lambda: syscall(64, 1234, 1, 0o1666),
            "share messages by a key": lambda: syscall(68, 1234, 0o1666),
            "look for a key": lambda: syscall(250, 0, -4, 1),
        }
        for name, pid in others.items():
            attempts |= {
                f"signal the {name}": lambda pid=pid: os.kill(pid, 0),
                f"signal a thread of the {name}": lambda pid=pid: syscall(200, pid, 0),
                f"signal a thread of the {name} by group": lambda pid=pid: syscall(234, pid, pid, 0),
                f"queue a signal for the {name}": lambda pid=pid: self.queue(pid),
                f"open the {name}": lambda pid=pid: os.close(os.pidfd_open(pid)),
                f"trace the {name}": lambda pid=pid: self.trace(pid),
                f"open the memory of the {name}": lambda pid=pid: self.peek(f"/proc/{pid}/mem"),
                f"open the environment of the {name}": lambda pid=pid: self.peek(f"/proc/{pid}/environ"),
                f"list the descriptors of the {name}": lambda pid=pid: os.listdir(f"/proc/{pid}/fd"),
            }
        return attempts

    def peek(self, path: str) -> None:
        with open(path, "rb"):
            pass

    def queue(self, pid: int) -> None:
        info = ctypes.create_string_buffer(128)
        struct.pack_into("<3i", info, 0, 0, 0, -1)
        syscall(129, pid, 0, ctypes.addressof(info))

    def trace(self, pid: int) -> None:
        syscall(101, PTRACE_SEIZE, pid, 0, 0)
        syscall(101, 0x4207, pid, 0, 0)  # PTRACE_INTERRUPT: one detaches from what stands still
        os.waitpid(pid, 0)
        syscall(101, PTRACE_DETACH, pid, 0, 0)

    def _vectors(self) -> tuple[int, ...]:
        self.buffer = ctypes.create_string_buffer(19)
        self.iovecs = ctypes.create_string_buffer(
            struct.pack("<4Q", ctypes.addressof(self.buffer), 19, self.address, 19)
        )
        at = ctypes.addressof(self.iovecs)
        return self.pid, at, 1, at + 16, 1, 0

    def read(self) -> None:
        syscall(310, *self._vectors())
        assert self.buffer.raw == b"the victim's secret"

    def write(self) -> None:
        syscall(311, *self._vectors())


class FileAttempts:
    """What reaches files that were not given."""

    def __init__(self, told: dict[str, Any]) -> None:
        self.secret = Path(told["secret"])
        self.readable = Path(told["readable"])
        self.writable = Path(told["writable"])
        self.outside = self.secret.parent

    def all(self) -> dict[str, Callable[[], object]]:
        secret, outside, prefix = self.secret, self.outside, Path(sys.prefix)
        return {
            "read a secret": secret.read_bytes,
            "write a secret": lambda: secret.open("r+b"),
            "append to a secret": lambda: secret.open("ab"),
            "empty a secret by name": lambda: syscall(76, self.name(secret), 0),
            "remove a secret": secret.unlink,
            "move a secret": lambda: secret.rename(self.writable / "moved"),
            "link a secret": lambda: os.link(secret, self.writable / "linked"),
            "read a secret by a symbolic link": self.follow,
            "make a secret readable": lambda: secret.chmod(0o777),
            "own a secret": lambda: os.chown(secret, os.getuid(), os.getgid()),
            "date a secret": lambda: os.utime(secret, (0, 0)),
            "mark a secret": lambda: os.setxattr(secret, "user.mark", b""),
            "list a folder": lambda: os.listdir(outside),
            "list the root": lambda: os.listdir("/"),
            "create a file": lambda: (outside / "created").open("x"),
            "create a folder": (outside / "folder").mkdir,
            "create a symbolic link": lambda: (outside / "link").symlink_to("/"),
            "create a device": lambda: os.mknod(self.writable / "device", 0o020666, os.makedev(1, 1)),
            "write what is readable": lambda: self.readable.open("r+b"),
            "change the mode of what is readable": self.change_mode,
            "read the passwords": Path("/etc/passwd").read_bytes,
            "read the kernel's settings": Path("/proc/sys/kernel/hostname").read_bytes,
            "read the own status": Path("/proc/self/status").read_bytes,
            "create in the interpreter's folder": lambda: (prefix / "created").open("x"),
            "change the interpreter": lambda: Path(os.__file__).open("r+b"),
            "open a disk": lambda: os.open("/dev/vda", os.O_RDONLY),
            "open the terminal": lambda: os.open("/dev/tty", os.O_RDWR),
            "open by handle": lambda: syscall(304, -100, self.name(secret), 0),
            "watch a folder": lambda: syscall(254, syscall(294, 0), self.name(outside), 0xFFF),
        }

    def name(self, path: Path) -> int:
        self.kept = ctypes.create_string_buffer(os.fsencode(path))
        return ctypes.addressof(self.kept)

    def follow(self) -> None:
        link = self.writable / "to the secret"
        link.unlink(missing_ok=True)
        link.symlink_to(self.secret)
        link.read_bytes()

    def change_mode(self) -> None:
        with self.readable.open("rb") as file:
            os.fchmod(file.fileno(), 0o777)


def privileges() -> dict[str, Callable[[], object]]:
    """What makes more of a process, and sockets."""
    return {
        "fork": fork,
        "fork by the kernel's name": lambda: left(syscall(57)),
        "vfork": lambda: left(syscall(56, 17, 0, 0, 0, 0)),
        "clone3": lambda: left(syscall(435, *clone3_arguments())),
        "exec": lambda: os.execv(sys.executable, [sys.executable, "-c", ""]),
        "exec a descriptor": lambda: os.execve(1, ["x"], {}),
        "a user namespace": lambda: syscall(272, 0x1000_0000),
        "a mount namespace": lambda: syscall(272, 0x0002_0000),
        "join a namespace": lambda: syscall(308, 0, 0),
        "mount": lambda: syscall(165, 0, 0, 0, 0, 0),
        "unmount": lambda: syscall(166, 0, 0),
        "another root": lambda: os.chroot("."),
        "be root": lambda: os.setuid(0),
        "be root for files": lambda: syscall(117, 0, 0, 0),
        "be in root's group": lambda: os.setgroups([0]),
        "regain capabilities": regain_capabilities,
        "be dumpable": lambda: prctl(PR_SET_DUMPABLE, 1),
        "outlive the server": lambda: prctl(PR_SET_PDEATHSIG, 0),
        "another filter": lambda: prctl(PR_SET_SECCOMP, 1),
        "ambient capabilities": lambda: prctl(PR_CAP_AMBIENT, 2, 0, 0, 0),
        "more descriptors": lambda: raise_limit(resource.RLIMIT_NOFILE),
        "core dumps": lambda: raise_limit(resource.RLIMIT_CORE),
        "locked memory": lambda: raise_limit(resource.RLIMIT_MEMLOCK),
        "load a program into the kernel": lambda: syscall(321, 0, 0, 0),
        "count events": lambda: syscall(298, 0, 0, -1, -1, 0),
        "handle faults": lambda: syscall(323, 0),
        "io_uring": lambda: syscall(425, 1, 0),
        "load a module": lambda: syscall(175, 0, 0, 0),
        "set the clock": lambda: syscall(227, 0, 0),
        "name the host": lambda: socket.sethostname("mine"),
        "another personality": lambda: syscall(135, 0x0040000),
        "a TCP socket": lambda: socket.socket().close(),
        "a UDP socket": lambda: socket.socket(type=socket.SOCK_DGRAM).close(),
        "a Unix socket": lambda: socket.socket(socket.AF_UNIX).close(),
        "a netlink socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close(),
        "a kernel crypto socket": lambda: socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET).close(),
        "a pair that sends anywhere": lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM),
        "connect a pair's end": connect_pair,
        "x32": lambda: syscall(0x4000_0000 | 39),
    }


def fork() -> None:
    left(os.fork())


def left(pid: int) -> None:
    """A child that should not be there goes."""
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)


def clone3_arguments() -> tuple[int, int]:
    global _clone_args
    _clone_args = ctypes.create_string_buffer(
        struct.pack("<11Q", 0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, 0)
    )
    return ctypes.addressof(_clone_args), 88


def regain_capabilities() -> None:
    header = ctypes.create_string_buffer(struct.pack("<Ii", 0x2008_0522, 0))
    everything = ctypes.create_string_buffer(struct.pack("<6I", *[0xFFFF_FFFF] * 6))
    syscall(126, ctypes.addressof(header), ctypes.addressof(everything))


def raise_limit(limit: int) -> None:
    wanted = resource.getrlimit(limit)[1] + 1
    limits = ctypes.create_string_buffer(struct.pack("<2Q", wanted, wanted))
    syscall(302, 0, limit, ctypes.addressof(limits), 0)


def connect_pair() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.connect("/run/systemd/journal/stdout")


def ordinary(told: dict[str, Any]) -> dict[str, Callable[[], object]]:
    """What every program may do."""
    return {
        "import what was not": import_more,
        "threads": threads,
        "asyncio": lambda: loop("asyncio"),
        "trio": lambda: loop("trio"),
        "mappings": mappings,
        "time": tell_time,
        "signals to itself": signals,
        "files that were given": lambda: given_files(told),
        "the null device": lambda: Path(os.devnull).write_bytes(b"gone"),
        "random numbers": random_numbers,
        "pairs, pipes and events": pairs,
    }


def import_more() -> None:
    if os.access(os.__file__, os.R_OK):  # an interpreter in root's home is for root
        import xml.dom.minidom

        xml.dom.minidom.parseString("<a/>")


def threads() -> None:
    import threading

    done = threading.Event()
    several = [threading.Thread(target=done.wait) for _ in range(20)]
    for thread in several:
        thread.start()
    done.set()
    for thread in several:
        thread.join()


def loop(backend: str) -> None:
    import anyio

    async def work() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep, 0.001)
            assert await anyio.to_thread.run_sync(os.getpid) == os.getpid()

    anyio.run(work, backend=backend)


def mappings() -> None:
    fd = os.memfd_create("memory", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 1 << 20)
    with mmap.mmap(fd, 1 << 20) as shared, mmap.mmap(-1, 1 << 20) as private:
        shared[:4] = private[:4] = b"both"
        shared.madvise(mmap.MADV_REMOVE, 0, 4096)
        assert shared[:4] == bytes(4)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    os.close(fd)


def tell_time() -> None:
    assert time.time() > 0
    assert time.monotonic_ns() > 0
    time.sleep(0.001)
    time.localtime()
    if Path("/usr/share/zoneinfo/Europe/Paris").exists():
        zoneinfo.ZoneInfo("Europe/Paris")


def signals() -> None:
    got = []
    old = signal.signal(signal.SIGUSR1, lambda *_: got.append(1))
    os.kill(os.getpid(), signal.SIGUSR1)
    signal.raise_signal(signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, old)
    assert len(got) == 2


def given_files(told: dict[str, Any]) -> None:
    assert Path(told["readable"]).read_bytes() == b"readable"
    folder = Path(told["writable"])
    (folder / "sub").mkdir()
    (folder / "sub" / "file").write_bytes(b"written")
    with (folder / "sub" / "file").open("r+b") as file:
        file.truncate(3)
        os.fsync(file.fileno())
    (folder / "sub" / "file").rename(folder / "file")
    assert (folder / "file").read_bytes() == b"wri"
    assert sorted(os.listdir(folder / "sub")) == []
    (folder / "sub").rmdir()


def random_numbers() -> None:
    with open("/dev/urandom", "rb", buffering=0) as device:
        assert len(os.urandom(16)) == len(device.read(16)) == 16


def pairs() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.sendall(b"x")
        assert ours.recv(1) == b"x"
    for fd in (*os.pipe(), os.eventfd(0) if hasattr(os, "eventfd") else os.dup(0)):
        os.close(fd)


def other_instruction_set(payload: bytes, fds: list[int]) -> None:
    """getpid of i386 (int 0x80), which a filter of another ABI's numbers would let pass."""
    confine(Confinement())
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(bytes.fromhex("b8 14 00 00 00 cd 80 c3"))  # mov eax, 20; int 0x80; ret
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    print(ctypes.CFUNCTYPE(ctypes.c_int)(address)())
