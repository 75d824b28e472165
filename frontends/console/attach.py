"""Attaching the kernel's console to the ring that the toolstack made for it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import anyio

from frontends.console.hvc import HvcConsole
from kernel.errors import KernelError
from kernel.kernel import Kernel

DRAIN_SECONDS: Final = 1.0
"""How long the daemon may take to read the last words."""


class NoConsole(KernelError):
    """The toolstack gave this domain no console ring."""

    def __init__(self) -> None:
        super().__init__("this domain has no console ring")


@asynccontextmanager
async def attached_console(kernel: Kernel) -> AsyncIterator[HvcConsole]:
    """The domain's console. Inside the context `kernel.console` is this one; its end waits, for a while, until all is out.

    Raises:
        NoConsole: there is none.
    """
    ring = kernel.console_ring
    if ring is None:
        raise NoConsole
    console = HvcConsole(kernel.memory.page(ring.pfn), kernel.events.adopt(ring.port))
    before, kernel.console = kernel.console, console
    try:
        yield console
    finally:
        kernel.console = before
        with anyio.move_on_after(DRAIN_SECONDS, shield=True):
            await console.drain()
        console.detach()
