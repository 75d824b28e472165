"""Guests that listen to their consoles, and pairs of descriptors to talk to them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import anyio

from frontends.console.attach import attached_console
from kernel.kernel import Kernel


async def parrot(kernel: Kernel) -> int:
    """Says back each line; ends at `bye`."""
    async with attached_console(kernel) as console:
        console.write("ready\n")
        while (line := await console.read_line()) not in (b"bye\n", b""):
            console.write(b"<%b>\n" % line.rstrip(b"\n"))
            await console.drain()
    return 0


async def deaf(kernel: Kernel) -> int:
    """Prints one line, takes nothing that is typed and never ends, though it is asked to."""
    async with attached_console(kernel) as console:
        console.write("ready\n")
        await console.drain()
        with kernel.shutdown_requested.deferred():
            await anyio.sleep_forever()
    return 0


@dataclass
class Ends:
    """stdin, stdout: what the program has. typing, shown: the other ends."""

    stdin: int
    typing: int
    shown: int
    stdout: int

    def close(self, *names: str) -> None:
        """Closes some."""
        for name in names:
            os.close(getattr(self, name))
            setattr(self, name, -1)

    async def see(self, text: bytes) -> bytes:
        """All that was shown, when `text` was."""
        found = b""
        while text not in found:
            await anyio.wait_readable(self.shown)
            data = os.read(self.shown, 4096)
            assert data, f"the end of {found!r}"
            found += data
        return found

    async def type(self, data: bytes) -> None:
        """However much it is."""
        while data:
            await anyio.wait_writable(self.typing)
            data = data[os.write(self.typing, data[:4096]) :]


@contextmanager
def ends() -> Iterator[Ends]:
    """Two pipes, closed at the end as far as they are open."""
    pipes = Ends(*os.pipe(), *os.pipe())
    try:
        yield pipes
    finally:
        pipes.close(*(name for name in ("stdin", "typing", "shown", "stdout") if getattr(pipes, name) >= 0))
