"""An nbdkit Python plugin that serves a file: what a Python block backend is without domzero."""

import os

API_VERSION = 2
_settings: dict[str, str] = {}


def config(key: str, value: str) -> None:
    """Takes `file=PATH`."""
    _settings[key] = value


def open(readonly: bool) -> int:  # noqa: A001 - nbdkit looks for this name
    """Opens the file for one client."""
    return os.open(_settings["file"], os.O_RDONLY if readonly else os.O_RDWR)


def close(handle: int) -> None:
    """Ends one client."""
    os.close(handle)


def get_size(handle: int) -> int:
    """Bytes of the export."""
    return os.fstat(handle).st_size


def pread(handle: int, buf: bytearray, offset: int, flags: int) -> None:
    """Fills `buf` from `offset`."""
    os.preadv(handle, [buf], offset)
