"""What can go wrong below a backend: the store, its image, its settings.

A store raises these (or OSError) and nothing else; the driver above turns either into a blkif status.
"""

import traceback
from pathlib import Path
from typing import Final

TOLD_CHARACTERS: Final = 2000


def told(error: BaseException, *, traced: bool = False) -> str:
    """The type and the text of an error, whatever a plug-in has made of either, for the report. traced: where
    it was raised, too. What is too long is cut in front, where a traceback says least.
    """
    lines = traceback.format_exception(error) if traced else traceback.format_exception_only(error)
    return "".join(lines).strip()[-TOLD_CHARACTERS:]


class StoreError(Exception):
    """A store cannot do what it was asked; the base of all below."""


class StoreInUse(StoreError):
    """Another process, or another device of this one, has `path` open in a way that excludes us."""

    def __init__(self, path: Path, *, writing: bool) -> None:
        wanted = "writing" if writing else "reading, while somebody writes it"
        super().__init__(f"{path} is in use: it cannot be opened for {wanted}")
        self.path = path
        self.writing = writing


class StoreUnavailable(StoreError):
    """The thing below a store cannot be opened; `reason` is the operating system's."""

    def __init__(self, what: object, reason: str) -> None:
        super().__init__(f"{what} cannot be opened: {reason}")
        self.what = what
        self.reason = reason


class BadStoreSize(StoreError):
    """The size of `what` is no disk's size: zero, or not a multiple of `multiple_bytes`."""

    def __init__(self, what: object, size_bytes: int, multiple_bytes: int) -> None:
        super().__init__(
            f"{what} has {size_bytes} bytes; a disk has one or more times {multiple_bytes} bytes"
        )
        self.what = what
        self.size_bytes = size_bytes
        self.multiple_bytes = multiple_bytes


class ShortTransfer(StoreError):
    """Fewer bytes than asked for went to or came from the store: it shrank under us, or is full."""

    def __init__(self, what: object, offset: int, expected: int, found: int) -> None:
        super().__init__(f"{what}: {found} of {expected} bytes at offset {offset} were transferred")
        self.what = what
        self.offset = offset
        self.expected = expected
        self.found = found


class BrokenStore(StoreError):
    """A store class breaks the contract of `BlockStore`: our plug-in's fault, not its user's."""

    def __init__(self, store: type, what: str) -> None:
        super().__init__(
            f"{store.__module__}:{store.__qualname__} breaks the contract of a block store: {what}"
        )
        self.store = store
        self.what = what
