"""The process that domains' processes are forked from: it has imported everything, so that a child costs
milliseconds and shares the pages of what was imported.

It is started by exec, so that it has nothing of the hypervisor's memory and descriptors, and it stays
single-threaded, so that forking is safe. It forks on request (fork_messages), reports every end and then reaps,
so that a pid belongs to its child until the spawner knows of its end. It trusts the spawner, and its children
have no way to talk to it. It exits when the spawner's end of the control socket is closed; its children are
killed with it.
"""

from __future__ import annotations

import errno
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Final

from hypervisor.vcpu.process import fork_messages, interpreter_files
from hypervisor.vcpu.process.fork_messages import Kind, Message
from hypervisor.vcpu.process.libc import set_process_name
from hypervisor.vcpu.process.newborn import Birth, live

NAME: Final = "domzero-fork"
BOOTSTRAP: Final = (
    "import sys, json; start = json.loads(sys.argv[1]); sys.path[:] = start['path']; "
    "from hypervisor.vcpu.process.fork_server import main; main(start['control'], start['preload'])"
)
"""Not -m, which would import this module twice, and find it only where Python looks by itself."""


class NotForkable(RuntimeError):
    """What was imported has started threads; a child would have none of them, and their locks for ever."""

    def __init__(self, threads: int) -> None:
        super().__init__(f"the preloaded modules have started {threads - 1} threads")
        self.threads = threads


def start_argument(control: int, path: Sequence[str], preload: Sequence[str]) -> str:
    """What BOOTSTRAP is given: a descriptor, sys.path, and the modules to import."""
    return json.dumps({"control": control, "path": [*path], "preload": [*preload]})


def main(control: int, preload: Sequence[str]) -> None:
    """Import `preload`, say READY on the descriptor `control`, and serve. Never returns."""
    set_process_name(NAME)
    _reset_signals()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # one a child; confinement limits the children
    for module in preload:
        importlib.import_module(module)
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        raise NotForkable(threads)
    interpreter_files.needed(tuple(sys.path))  # so that no child has to look
    gc.collect()
    gc.freeze()  # a child's collector shall not touch, and so copy, what everybody shares
    birth = ForkServer(socket.socket(fileno=control)).serve()
    if birth is None:
        os._exit(0)
    live(birth)


def _reset_signals() -> None:
    """Children begin with what Python sets, whatever the hypervisor's process ignores or blocks."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


class ForkServer:
    """The loop over requests and ends."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._children: dict[int, int] = {}  # pid by pidfd, which becomes readable when the child has ended
        self._events = select.epoll()
        self._events.register(control, select.EPOLLIN)

    def serve(self) -> Birth | None:
        """None when the spawner is gone. In a child that was forked: what it is to be."""
        try:
            fork_messages.send(self._control, Message(Kind.READY))
            while True:
                for fd, _ in self._events.poll():
                    if fd in self._children:
                        self._report(fd)
                    elif (received := fork_messages.receive(self._control)) is None:
                        return None
                    elif (birth := self._spawn(*received)) is not None:
                        return birth
        except BrokenPipeError:
            return None

    def _spawn(self, request: Message, fds: list[int]) -> Birth | None:
        whole = len(fds) == request.value  # the kernel leaves out what there is no room for
        birth = self._fork(request, fds) if whole else self._refused(request, errno.EMFILE)
        if birth is None:
            for fd in fds:
                os.close(fd)
        return birth

    def _fork(self, request: Message, fds: list[int]) -> Birth | None:
        server = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            return self._refused(request, error.errno)
        if not pid:
            entry, name = request.text
            return Birth(entry, name, server, fds[0], fds[1], fds[2:])
        try:
            pidfd = os.pidfd_open(pid)
        except OSError as error:  # no descriptor left: nobody could end this child
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return self._refused(request, error.errno)
        self._children[pidfd] = pid
        self._events.register(pidfd, select.EPOLLIN)
        self._reply(Message(Kind.SPAWNED, request.number, pid), [pidfd])
        return None

    def _refused(self, request: Message, why: int | None) -> Birth | None:
        self._reply(Message(Kind.REFUSED, request.number, why or 0))
        return None

    def _report(self, pidfd: int) -> None:
        """Tell of an end, and only then let the kernel give the pid to somebody else."""
        ended = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)
        if ended is None:
            return
        code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
        pid = self._children.pop(pidfd)
        self._events.unregister(pidfd)  # by hand: a child that still closes its copies would keep it in there
        os.close(pidfd)
        self._reply(Message(Kind.EXITED, pid, code))
        os.waitpid(pid, 0)

    def _reply(self, message: Message, fds: Sequence[int] = ()) -> None:
        fork_messages.send(self._control, message, fds)
