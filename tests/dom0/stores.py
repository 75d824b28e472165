"""Whole stores to compare: as a running daemon has them, and as a real Xen 4.17 was recorded (tests/data)."""

import re
from pathlib import Path
from typing import Final

from kernel.xenstore.client import XenStoreClient

DATA: Final = Path(__file__).parents[1] / "data"

Tree = dict[str, tuple[str, str]]
"""path → (value, permissions), as `xenstore-ls -fp` prints them."""


def recorded(name: str) -> Tree:
    """A recording."""
    lines = (DATA / name).read_text().splitlines()
    found = (re.fullmatch(r'(/\S+) = "(.*)"   \((.*)\)', line) for line in lines)
    return {match[1]: (match[2], match[3]) for match in found if match}


async def dumped(store: XenStoreClient, folder: str = "/") -> Tree:
    """What `store` holds below `folder` now."""
    tree: Tree = {}
    for name in await store.directory(folder):
        path = f"{folder.rstrip('/')}/{name}"
        tree[path] = await store.read(path), ",".join(await store.get_perms(path))
        tree |= await dumped(store, path)
    return tree
