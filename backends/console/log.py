"""Console output in files: `<name>.log` and, when that is full, the older half in `<name>.log.1`.

A domain's name becomes a file name of letters, digits, `-`, `_` and `.`; no two consoles share a file. A file
is only open while something is written, so that a thousand consoles need no thousand descriptors. A guest
can fill two files of the console's limit and no more (XSA-180).
"""

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Final

MAX_NAME_CHARACTERS: Final = 128
_UNFIT: Final = re.compile(r"[^A-Za-z0-9._-]+")
_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
_MODE: Final = 0o600


class LogFolder:
    """Gives each console a file of its own in `folder`, which is made if it is missing."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._taken: set[str] = set()

    def new_log(self, name: str, domid: int, limit_bytes: int) -> "ConsoleLog":
        """An empty log; what an earlier daemon left under its name becomes the older file. Raises OSError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        wanted = _UNFIT.sub("_", name)[:MAX_NAME_CHARACTERS].lstrip(".") or f"domain-{domid}"
        chosen, attempt = wanted, 1
        while chosen in self._taken:
            chosen = f"{wanted}-{domid}" if attempt == 1 else f"{wanted}-{domid}-{attempt}"
            attempt += 1
        self._taken.add(chosen)
        log = ConsoleLog(self._folder / f"{chosen}.log", limit_bytes)
        log.begin()
        return log


class ConsoleLog:
    """The output of one console.

    path: the newer file. failure: why the last write failed, None if it did not. lost_bytes: those that could
    not be written.
    """

    def __init__(self, path: Path, limit_bytes: int) -> None:
        self.path = path
        self.older_path = path.with_name(f"{path.name}.1")
        self.failure: OSError | None = None
        self.lost_bytes = 0
        self._limit = limit_bytes
        self._size = 0
        self._rotated = False

    def begin(self) -> None:
        """Begin with an empty file. Raises OSError."""
        with suppress(FileNotFoundError):
            self.path.replace(self.older_path)
        self._write(b"")

    def append(self, data: bytes) -> None:
        """Write what was printed in one go. An error is kept in `failure`: the console goes on without."""
        try:
            if self._size and self._size + len(data) > self._limit:
                self.path.replace(self.older_path)
                self._rotated = True
                self._size = 0
            self._write(data)
        except OSError as error:
            self.failure = error
            self.lost_bytes += len(data)
        else:
            self.failure = None

    def _write(self, data: bytes) -> None:
        descriptor = os.open(self.path, _FLAGS, _MODE)
        try:
            written = os.write(descriptor, data)
        finally:
            os.close(descriptor)
        self._size += written
        self.lost_bytes += len(data) - written

    def content(self) -> bytes:
        """All of this console that is kept, oldest first; what cannot be read is left out."""
        kept = b""
        for path in (self.older_path, self.path)[not self._rotated :]:
            with suppress(OSError):
                kept += path.read_bytes()
        return kept
