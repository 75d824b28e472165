"""What the toolstack asks of this domain through its `control` folder (docs/misc/xenstore-paths.pandoc).

The toolstack writes a word to control/shutdown; the kernel takes it by writing an empty value back, in a
transaction, and says beforehand in control/feature-* which words it knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from hypervisor.abi.sched import SHUTDOWN_poweroff, SHUTDOWN_reboot
from kernel.parking import Broadcast
from kernel.xenstore.errors import StoreConnectionBroken, StoreError

if TYPE_CHECKING:
    from kernel.kernel import Kernel
    from kernel.xenstore.transaction import Transaction

SHUTDOWN_PATH: Final = "control/shutdown"
FEATURES: Final = ("control/feature-poweroff", "control/feature-reboot")
REASONS: Final = {"poweroff": SHUTDOWN_poweroff, "halt": SHUTDOWN_poweroff, "reboot": SHUTDOWN_reboot}
"""The words that are taken, and the reason with which the domain then shuts down."""


class _NothingAsked(Exception):
    """The word was taken back meanwhile."""


class ShutdownRequest:
    """Whether this domain was asked to end. By default its program is cancelled then; a program that wants to
    end by itself does so inside `deferred`. `command`: the toolstack's word.
    """

    def __init__(self) -> None:
        self.command: str | None = None
        self._changed = Broadcast()
        self._actions: list[Callable[[], None]] = []
        self._deferred = 0

    @property
    def is_set(self) -> bool:
        return self.command is not None

    @property
    def reason(self) -> int:
        """SHUTDOWN_poweroff, unless something else was asked for."""
        return REASONS.get(self.command or "", SHUTDOWN_poweroff)

    async def wait(self) -> str:
        """The command, once there is one."""
        while self.command is None:
            await self._changed.wait()
        return self.command

    @contextmanager
    def calling(self, action: Callable[[], None]) -> Iterator[None]:
        """Inside the block, `action` is called when the request comes, or has come and is not deferred any
        more.
        """
        self._actions.append(action)
        try:
            self._act()
            yield
        finally:
            self._actions.remove(action)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """The program inside the block is not cancelled: it looks at the request itself."""
        self._deferred += 1
        try:
            yield
        finally:
            self._deferred -= 1
            self._act()

    def set(self, command: str) -> None:
        """The toolstack has asked. The last word counts."""
        self.command = command
        self._changed.announce()
        self._act()

    def _act(self) -> None:
        if self.command is not None and not self._deferred:
            for action in list(self._actions):
                action()


async def serve_control(kernel: Kernel) -> None:
    """Say what this kernel can be asked, and take requests. Ends only when the store does."""
    store = kernel.store
    try:
        async with store.watch(SHUTDOWN_PATH) as watch:
            try:
                await store.write_many(dict.fromkeys(FEATURES, "1"))
            except StoreError as error:
                kernel.log(f"control: {error}")  # a toolstack that gave us no such nodes
            while True:
                await watch.batch()
                await _take_command(kernel)
    except (StoreError, StoreConnectionBroken) as error:
        kernel.log(f"control: {error}")


async def _take_command(kernel: Kernel) -> None:
    if (await kernel.store.read_many([SHUTDOWN_PATH]))[0]:
        try:
            kernel.shutdown_requested.set(await kernel.store.transact(_acknowledge))
        except _NothingAsked:
            return
        except UnknownCommand as unknown:
            kernel.log(str(unknown))


class UnknownCommand(Exception):
    """A word that this kernel does not know; it stays in the store, as Linux leaves it."""


async def _acknowledge(transaction: Transaction) -> str:
    command = await transaction.read(SHUTDOWN_PATH)
    if not command:
        raise _NothingAsked
    if command not in REASONS:
        raise UnknownCommand(f"control: shutdown command {command[:32]!r} ignored")
    await transaction.write(SHUTDOWN_PATH, "")
    return command
