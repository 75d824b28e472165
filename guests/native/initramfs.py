"""A small initramfs: busybox, the modules that a guest needs for its disks, and a first process with a shell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from guests.native.cpio import Archive
from guests.native.modules import decompressed, load_order

_HERE: Final = Path(__file__).parent

MODULES: Final[Mapping[str, Sequence[str]]] = {
    "xen": ("crc32c_generic", "xen_blkfront", "ext4"),
    "pc": ("crc32c_generic", "virtio_pci", "virtio_blk", "ext4"),
}
"""What is loaded on Xen, and on a PC whose disks are virtio-blk: the same guest can then be compared on both."""

_LINKS: Final = ("sh", "cat", "dd", "echo", "env", "ls", "md5sum", "sleep")
"""busybox's shell finds its own programs without links; these are for whoever calls them by path"""


def initramfs(busybox: bytes, modules: Mapping[str, bytes], built_in: Sequence[str]) -> bytes:
    """The archive, not compressed: unpacking would take an emulated processor longer than reading.

    Args:
        busybox: the program, statically linked.
        modules: those that the kernel's package has, by name.
        built_in: names of those that the kernel has in itself.

    Raises:
        NoModule, BadModule: a module that is needed is not there, or makes no sense.
    """
    archive = Archive()
    for folder in ("dev", "proc", "sys", "mnt", "tmp"):
        archive.folder(folder)
    archive.node("dev/console", 5, 1)
    archive.node("dev/null", 1, 3, 0o666)
    archive.file("init", (_HERE / "init").read_bytes(), 0o755)
    archive.file("bin/busybox", busybox, 0o755)
    for name in _LINKS:
        archive.link(f"bin/{name}", "busybox")
    archive.file("etc/shell", (_HERE / "shell").read_bytes())
    archive.file("sbin/poweroff", (_HERE / "poweroff").read_bytes(), 0o755)
    for name in ("halt", "reboot"):
        archive.link(f"sbin/{name}", "poweroff")
    orders = {where: load_order(modules, built_in, wanted) for where, wanted in MODULES.items()}
    for where, order in orders.items():
        archive.file(f"etc/modules.{where}", "".join(f"{name}\n" for name in order).encode())
    for name in dict.fromkeys(name for order in orders.values() for name in order):
        archive.file(f"lib/modules/{name}.ko", decompressed(modules[name]))
    return archive.content()
