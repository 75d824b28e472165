"""Paths of the store (docs/misc/xenstore.txt): bytes, '/'-separated, absolute, no trailing '/'."""

import re
from typing import Final

ROOT: Final = b"/"
DOMAINS: Final = b"/local/domain/"
SPECIAL: Final = b"@"  # @introduceDomain and its like are no paths: they can only be watched

_SHAPE: Final = re.compile(rb"/|(?:/[A-Za-z0-9_@-]+)+")
_HOME: Final = re.compile(rb"/local/domain/-?[0-9]{1,5}/")


def is_valid(path: bytes, limit: int) -> bool:
    """Whether `path` may name a node. `limit` bytes are allowed, beyond the home if it is in a domain's home.

    A relative path so has the same limit as its absolute form, and whatever one reaches the other does
    (XSA-323).
    """
    if len(path) > limit:
        home = _HOME.match(path)
        if home is None or len(path) > limit + home.end():
            return False
    return _SHAPE.fullmatch(path) is not None


def parent(path: bytes) -> bytes:
    """The path one level up; the root's is the root."""
    return path[: path.rfind(b"/")] or ROOT


def leaf(path: bytes) -> bytes:
    """The last component."""
    return path[path.rfind(b"/") + 1 :]


def join(directory: bytes, name: bytes) -> bytes:
    """The path of the child `name`."""
    return directory + b"/" + name if len(directory) > 1 else directory + name


def home(domid: int) -> bytes:
    """Where a domain's relative paths start, without the trailing '/'."""
    return b"%s%d" % (DOMAINS, domid)
