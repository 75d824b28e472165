"""Stays with one guest: shows its console, and ends it when somebody wants to leave or time is up."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Final

import anyio

from dom0.boot.conversation import Conversation
from dom0.embedding import GuestEnd, MachineStopped, RunningGuest
from dom0.launch.interrupts import heed_interrupts
from kernel.errors import KernelError

PATIENCE_S: Final = 20.0
"""how long a guest may take to power off when it is asked to"""

LAST_WORDS_S: Final = 1.0
"""how long it may take to show the rest of what it printed when time is up"""


class Attendance:
    """Of a guest that runs. timed_out: whether its time was up."""

    def __init__(self, guest: RunningGuest, timeout: float | None) -> None:
        self.timed_out = False
        self._guest = guest
        self._timeout = timeout
        self._shown = anyio.Event()

    async def see_out(self, conversation: Conversation) -> GuestEnd:
        """Returns when the guest has ended and what it printed was shown. Raises MachineStopped, KernelError."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._keep_time)
            tasks.start_soon(heed_interrupts, self._leave, self._destroy)
            tasks.start_soon(self._listen, conversation)
            tasks.start_soon(self._talk, conversation)
            with suppress(KernelError, MachineStopped):  # it is raised again below
                await self._guest.wait()
                await self._shown.wait()
            tasks.cancel_scope.cancel()
        return await self._guest.wait()

    async def _listen(self, conversation: Conversation) -> None:
        try:
            await conversation.listen()
        except OSError:  # nobody looks any more
            self._shown.set()
            await self._leave()
        self._shown.set()

    async def _talk(self, conversation: Conversation) -> None:
        if await conversation.talk():
            await self._leave()

    async def _keep_time(self) -> None:
        if self._timeout is not None:
            await anyio.sleep(self._timeout)
            self.timed_out = self._guest.end is None
            await self._end(self._guest.destroy)
            await anyio.sleep(LAST_WORDS_S)
            self._shown.set()

    async def _leave(self) -> None:
        """The guest is asked to power off, and destroyed if it does not. If it has ended, nothing more is shown."""
        if self._guest.end is not None:
            self._shown.set()
        await self._end(partial(self._guest.shut_down, PATIENCE_S))

    async def _destroy(self) -> None:
        await self._end(self._guest.destroy)
        self._shown.set()

    async def _end(self, how: Callable[[], Awaitable[GuestEnd]]) -> None:
        with suppress(KernelError, MachineStopped):  # whoever waits for the guest hears of it
            await how()
