"""The fork server as a child of the hypervisor's process: started, listened to, waited for."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Final

import anyio

from hypervisor.vcpu.process.child import Exit
from hypervisor.vcpu.process.fork_server import BOOTSTRAP, start_argument

KEPT_VARIABLES: Final = ("LANG", "LANGUAGE", "LD_LIBRARY_PATH", "PATH", "TZ", "TZDIR")
KEPT_PREFIXES: Final = ("LC_", "PYTHON")
SHOWN_BYTES: Final = 1 << 16


class ServerProcess:
    """A running server. control: our end of the socket, non-blocking. pid: of the server."""

    def __init__(self, process: subprocess.Popen[bytes], control: socket.socket, output: int) -> None:
        self.control = control
        self.pid = process.pid
        self._process = process
        self._pidfd = os.pidfd_open(process.pid)
        self._output = output

    @classmethod
    def launched(cls, preload: Sequence[str]) -> ServerProcess:
        """Execute a new interpreter with our sys.path. Raises OSError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        output = os.memfd_create("fork server", os.MFD_CLOEXEC)
        path = [os.path.abspath(entry) if os.path.isdir(entry or ".") else entry for entry in sys.path]
        ours.setblocking(False)
        try:
            with theirs:
                process = subprocess.Popen(
                    [sys.executable, "-c", BOOTSTRAP, start_argument(theirs.fileno(), path, preload)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=kept_environment(os.environ),
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,  # Ctrl-C is for us; the server goes when we do
                )
            return cls(process, ours, output)
        except BaseException:
            ours.close()
            os.close(output)
            raise

    async def ended(self) -> Exit:
        """Wait for its end."""
        await anyio.wait_readable(self._pidfd)
        return Exit.of(self._process.wait())

    def output(self) -> str:
        """The end of what it has said."""
        size = os.fstat(self._output).st_size
        return os.pread(self._output, SHOWN_BYTES, max(0, size - SHOWN_BYTES)).decode(errors="replace")

    def leave(self) -> None:
        """Tell it to exit."""
        self.control.shutdown(socket.SHUT_WR)

    def kill(self) -> None:
        """End it whatever it does, and all children with it."""
        self._process.kill()

    def close(self) -> None:
        """Give up the descriptors of a server that has ended."""
        self.control.close()
        os.close(self._pidfd)
        os.close(self._output)


def kept_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What an interpreter and its locale need. The rest is nothing for domains: tokens, agents, proxies."""
    return {
        name: value
        for name, value in environment.items()
        if name in KEPT_VARIABLES or name.startswith(KEPT_PREFIXES)
    }
