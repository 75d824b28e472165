"""Attaching the console driver to a kernel."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import anyio

from frontends.console.errors import NoConsole
from frontends.console.hvc import HvcConsole
from kernel.kernel import Kernel

LAST_WORDS_SECONDS: Final = 1.0
"""How long the daemon may take for the last output when the console is detached."""


@asynccontextmanager
async def attached_console(kernel: Kernel) -> AsyncIterator[HvcConsole]:
    """The domain's console, which is `kernel.console` inside the context as well.

    At the end the daemon is given LAST_WORDS_SECONDS to take what is left. What is still in the ring then
    stays there for it, even beyond the end of the domain; what did not fit goes to the hypervisor's console.
    Inside a context of the same kernel, this is that one's console.

    Raises:
        NoConsole: the toolstack gave the domain none, or the daemon has broken it.
    """
    if isinstance(kernel.console, HvcConsole):
        yield kernel.console
        return
    if kernel.console_ring is None:
        raise NoConsole
    pfn, port = kernel.console_ring
    before = kernel.console
    console = HvcConsole(kernel.memory.page(pfn), kernel.events.adopt(port), before)
    kernel.console = console
    try:
        yield console
    finally:
        kernel.console = before
        with anyio.move_on_after(LAST_WORDS_SECONDS, shield=True):
            await console.drain()
        console.detach()
        if console.broken is not None:
            kernel.console_ring = None  # its port is closed: nobody can attach to it any more
