"""A process that was spawned, as the hypervisor's process holds it: by its pidfd."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import dataclass

import anyio


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended: one of the two is given."""

    code: int | None = None
    signal: int | None = None

    @classmethod
    def of(cls, returncode: int) -> Exit:
        """As in subprocess: an exit code, or the negative number of a signal."""
        return cls(code=returncode) if returncode >= 0 else cls(signal=-returncode)

    def describe(self) -> str:
        """In words: exit code 3; killed by SIGSEGV."""
        if self.signal is None:
            return f"exit code {self.code}"
        try:
            return f"killed by {signal.Signals(self.signal).name}"
        except ValueError:  # a real-time signal
            return f"killed by signal {self.signal}"


class Child:
    """Made by Spawner.spawn. Signals reach this process or nobody, also when it has ended."""

    def __init__(self, pid: int, pidfd: int | None) -> None:
        self.pid = pid
        self.exit: Exit | None = None
        self._pidfd = pidfd
        self._ended = anyio.Event()

    def kill(self) -> None:
        """End it whatever it does."""
        self._signal(signal.SIGKILL)

    def pause(self) -> None:
        """Stop all its threads until `resume`. It does so a moment later."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on; nothing if it was not stopped."""
        self._signal(signal.SIGCONT)

    async def wait(self) -> Exit:
        """How it ended, when it has."""
        await self._ended.wait()
        assert self.exit is not None
        return self.exit

    # For the spawner

    def ended(self, exit_: Exit) -> None:
        """Its end was reported; the pidfd goes."""
        self.exit = exit_
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None
        self._ended.set()

    async def gone(self) -> None:
        """Kill it and see its end without anybody who could say how it was."""
        if self._pidfd is not None:
            self.kill()
            await anyio.wait_readable(self._pidfd)
        self.ended(Exit(signal=signal.SIGKILL))

    def _signal(self, number: signal.Signals) -> None:
        if self._pidfd is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)
