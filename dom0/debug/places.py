"""Where the sockets of running machines are: one for each process, in a folder of its user's alone."""

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_SUFFIX: Final = ".sock"


def sockets_folder() -> Path:
    """$XDG_RUNTIME_DIR/domzero, or a folder named after the user where temporary files are. It may not exist."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime, "domzero") if runtime else Path(tempfile.gettempdir(), f"domzero-{os.getuid()}")


def make_sockets_folder() -> Path:
    """The folder, made if it is missing. PermissionError if it is somebody else's, or others may write to it."""
    folder = sockets_folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise PermissionError(f"{folder} is no folder that only this user may write to")
    return folder


def socket_of(pid: int) -> Path:
    """The socket of the machine that process `pid` runs."""
    return sockets_folder() / f"{pid}{_SUFFIX}"


def running_machines() -> Iterator[int]:
    """Processes that have such a socket; one may be left by a process that is no more."""
    for path in sorted(sockets_folder().glob(f"*{_SUFFIX}")):
        if path.stem.isdecimal():
            yield int(path.stem)
