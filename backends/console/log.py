"""The log of one console: a file of bounded size, and the one before it.

What a guest prints is kept as it is, but never more than twice `limit_bytes` of it on the disk (XSA-180): a full file
becomes `<name>.1`, in place of the `<name>.1` before. The same happens to the file of an earlier run when a log is opened.
"""

import os
from pathlib import Path
from typing import Final

DEFAULT_LIMIT_BYTES: Final = 8 << 20


class ConsoleLog:
    """Appends to `path`. rotations: how often it was full."""

    def __init__(self, path: Path, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        """Opens the log. Raises OSError."""
        self.path = path
        self.rotations = 0
        self._limit_bytes = limit_bytes
        path.parent.mkdir(parents=True, exist_ok=True)
        self._keep()
        self._size = 0
        self._fd = self._open()

    @property
    def older(self) -> Path:
        """Where the file before this one is, if there is one."""
        return self.path.with_name(f"{self.path.name}.1")

    def write(self, data: bytes) -> None:
        """Appends `data`. Raises OSError."""
        while data:
            room = self._limit_bytes - self._size
            if not room:
                self._rotate()
                continue
            self._size += os.write(self._fd, data[:room])
            data = data[room:]

    def content(self) -> bytes:
        """Everything that is kept of what was written since the log was opened. Raises OSError."""
        before = self.older.read_bytes() if self.rotations else b""
        return before + self.path.read_bytes()

    def close(self) -> None:
        """Closes the file; `content` works as before."""
        os.close(self._fd)

    def _rotate(self) -> None:
        os.close(self._fd)
        self._keep()
        self.rotations += 1
        self._size = 0
        self._fd = self._open()

    def _keep(self) -> None:
        if self.path.exists():
            self.path.replace(self.older)

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(self.path, flags, 0o644)
