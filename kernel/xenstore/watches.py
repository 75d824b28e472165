"""Watches: which paths have changed since somebody looked.

Events are coalesced: a path is remembered once however often it changes, and a watch remembers a bounded
number of paths; beyond that it says only that something below the watched path has changed, by giving that
path itself (XSA-349). So whoever consumes events looks at the store and never relies on how many there were.
"""

from collections.abc import Callable
from typing import Final

from kernel.parking import Latch
from kernel.xenstore.errors import StoreConnectionBroken

MAX_PENDING_PATHS: Final = 256


class Watch:
    """One watch, as an async iterator of changed paths in the form in which they are watched.

    The first path comes at once, as the daemon sends an event for a new watch. A watch that was opened with a
    callback is not iterated: the callback is called for each event instead.
    """

    __slots__ = ("_broken", "_callback", "_latch", "_paths", "path", "token")

    def __init__(self, path: str, token: str, callback: Callable[[], None] | None) -> None:
        self.path = path
        self.token = token
        self._callback = callback
        self._paths: dict[str, None] = {}
        self._latch = Latch()
        self._broken: StoreConnectionBroken | None = None

    def fire(self, path: str) -> None:
        """An event has come."""
        if self._callback is not None:
            self._callback()
            return
        if len(self._paths) >= MAX_PENDING_PATHS and path not in self._paths:
            self._paths = {self.path: None}
        else:
            self._paths[path] = None
        self._latch.set()

    def end(self, error: StoreConnectionBroken) -> None:
        """No event will come any more."""
        self._broken = error
        self._latch.set()
        if self._callback is not None:
            self._callback()

    async def batch(self) -> list[str]:
        """All paths that have changed, at least one. Raises StoreConnectionBroken."""
        while not self._paths:
            if self._broken is not None:
                raise self._broken
            await self._latch.wait()
        paths, self._paths = self._paths, {}
        return list(paths)

    def __aiter__(self) -> "Watch":
        return self

    async def __anext__(self) -> str:
        """The path that changed longest ago. Raises StoreConnectionBroken."""
        while not self._paths:
            if self._broken is not None:
                raise self._broken
            await self._latch.wait()
        path = next(iter(self._paths))
        del self._paths[path]
        return path
