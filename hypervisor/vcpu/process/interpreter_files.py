"""The files that Python needs while it runs: its library, packages, shared libraries, time zones.

A folder of sys.path that is not the interpreter's own may hold anything besides: of a project's folder only what
can be imported is named, not its disk images and secrets.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

SYSTEM: Final = (
    *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache", "/usr/share/locale"),
    *("/usr/share/zoneinfo", "/etc/localtime", "/dev/zero", "/dev/urandom", "/dev/random"),
)
RESOLVER: Final = (
    *("/etc/resolv.conf", "/etc/hosts", "/etc/host.conf", "/etc/nsswitch.conf", "/etc/gai.conf"),
    *("/etc/services", "/etc/protocols", "/etc/ssl", "/usr/share/ca-certificates"),
)
SINK: Final = "/dev/null"
"""which is written to"""

MODULE_SUFFIXES: Final = (".py", ".pyc", ".so")
METADATA_SUFFIXES: Final = (".dist-info", ".egg-info")


class Needed(NamedTuple):
    """Paths that are there. trees: read all of it. listed: folders of which only the names are read."""

    trees: tuple[str, ...]
    listed: tuple[str, ...]


@cache
def needed(path: tuple[str, ...]) -> Needed:
    """What an interpreter with this sys.path needs. Looked at once in the life of a fork server."""
    own = {
        prefix
        for prefix in map(os.path.realpath, (sys.prefix, sys.base_prefix, sys.exec_prefix))
        if prefix != "/"
    }
    trees = [*sorted(own), *filter(os.path.exists, SYSTEM)]
    listed = []
    for entry in map(Path, map(os.path.realpath, path)):
        if any(entry.is_relative_to(tree) for tree in own):
            continue
        if entry.is_dir():
            listed.append(str(entry))
            trees += _importable(entry)
        elif entry.exists():
            trees.append(str(entry))
    return Needed(tuple(dict.fromkeys(trees)), tuple(dict.fromkeys(listed)))


def _importable(folder: Path) -> Iterator[str]:
    """The modules, packages and package metadata that lie in `folder`."""
    try:
        children = sorted(folder.iterdir())
    except OSError:
        return
    for child in children:
        if child.suffix in METADATA_SUFFIXES or (
            _holds_modules(child) if child.is_dir() else child.suffix in MODULE_SUFFIXES
        ):
            yield str(child)


def _holds_modules(folder: Path) -> bool:
    if not folder.name.isidentifier():
        return False
    try:
        with os.scandir(folder) as children:
            return any(child.name.endswith(MODULE_SUFFIXES) for child in children)
    except OSError:
        return False
