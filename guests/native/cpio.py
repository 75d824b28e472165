"""Writes cpio archives in the "new ASCII" format, which Linux unpacks as its initramfs.

Documentation/driver-api/early-userspace/buffer-format.rst of Linux. Device nodes and owners are entries of the
archive, so that nobody must be root to make one.
"""

from __future__ import annotations

import stat
from typing import Final

_MAGIC: Final = b"070701"
_TRAILER: Final = "TRAILER!!!"
_ALIGNMENT: Final = 4


class Archive:
    """Files, folders, links and device nodes, all root's. A parent folder is added before what is in it."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._names: set[str] = set()

    def folder(self, name: str, mode: int = 0o755) -> None:
        """A folder; nothing happens if it is there."""
        if name not in self._names:
            self._add(name, stat.S_IFDIR | mode)

    def file(self, name: str, content: bytes, mode: int = 0o644) -> None:
        """A regular file, and the folders on the way to it."""
        self._parents(name)
        self._add(name, stat.S_IFREG | mode, content)

    def link(self, name: str, target: str) -> None:
        """A symbolic link, and the folders on the way to it."""
        self._parents(name)
        self._add(name, stat.S_IFLNK | 0o777, target.encode())

    def node(self, name: str, major: int, minor: int, mode: int = 0o600) -> None:
        """A character device, and the folders on the way to it."""
        self._parents(name)
        self._add(name, stat.S_IFCHR | mode, device=(major, minor))

    def content(self) -> bytes:
        """The archive, with its trailer."""
        return b"".join([*self._parts, _entry(0, _TRAILER, 0, b"", (0, 0))])

    def _parents(self, name: str) -> None:
        parts = name.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            self.folder("/".join(parts[:depth]))

    def _add(self, name: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        self._names.add(name)
        self._parts.append(_entry(len(self._names), name, mode, content, device))


def _entry(inode: int, name: str, mode: int, content: bytes, device: tuple[int, int]) -> bytes:
    """One entry. Every file was last changed in 1970: the same input gives the same archive."""
    encoded = name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    fields = (inode, mode, 0, 0, links, 0, len(content), 0, 0, *device, len(encoded), 0)
    head = _MAGIC + b"".join(b"%08X" % field for field in fields) + encoded
    return _padded(head) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _ALIGNMENT)
