"""Kernel modules: what they need and in which order they are loaded.

depmod's job, for the few modules of an initramfs: Debian's packages bring no modules.dep, but every module says what
it needs in its section `.modinfo` (include/linux/module.h), `depends=a,b`.
"""

from __future__ import annotations

import lzma
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Final

_ELF_MAGIC: Final = b"\x7fELF\x02\x01"
_SECTION: Final = struct.Struct("<IIQQQQIIQQ")
"""Elf64_Shdr: name, type, flags, address, offset, size, link, info, alignment, entry size"""


class NoModule(Exception):
    """The kernel's package has no module `name`, and it is not built in; `needed_by` wants it."""

    def __init__(self, name: str, needed_by: str) -> None:
        super().__init__(f"there is no kernel module {name}, which {needed_by} needs")
        self.name = name
        self.needed_by = needed_by


class BadModule(Exception):
    """The module `name` is no 64-bit ELF file with a section `.modinfo`."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the kernel module {name} is no 64-bit ELF file that says what it needs")
        self.name = name


def module_name(path: str) -> str:
    """`kernel/drivers/block/xen-blkfront.ko.xz` → `xen_blkfront`, as the kernel calls it."""
    return PurePosixPath(path).name.split(".ko")[0].replace("-", "_")


def is_module(path: str) -> bool:
    """Whether a file of a kernel's package is a module."""
    return path.endswith((".ko", ".ko.xz"))


def load_order(modules: Mapping[str, bytes], built_in: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """The names of `wanted` and of all that they need, each after what it needs itself.

    Args:
        modules: content, decompressed or not, by name.
        built_in: names of those that the kernel has in itself, which need not be loaded.

    Raises:
        NoModule, BadModule.
    """
    order: dict[str, None] = {}

    def add(name: str, needed_by: str) -> None:
        if name in order or name in built_in:
            return
        if name not in modules:
            raise NoModule(name, needed_by)
        for other in _needs(name, modules[name]):
            add(other, name)
        order[name] = None

    for name in wanted:
        add(name, "the initramfs")
    return list(order)


def decompressed(content: bytes) -> bytes:
    """A module as `insmod` takes it."""
    return lzma.decompress(content) if content.startswith(b"\xfd7zXZ") else content


def _needs(name: str, content: bytes) -> Iterator[str]:
    for line in _section(name, decompressed(content), b".modinfo").split(b"\0"):
        if line.startswith(b"depends="):
            yield from (part.replace("-", "_") for part in line[8:].decode().split(",") if part)


def _section(name: str, elf: bytes, wanted: bytes) -> bytes:
    """A section of an ELF file by its name."""
    try:
        if not elf.startswith(_ELF_MAGIC):
            raise BadModule(name)
        (table,) = struct.unpack_from("<Q", elf, 40)
        size, count, names_index = struct.unpack_from("<HHH", elf, 58)
        sections = [_SECTION.unpack_from(elf, table + index * size) for index in range(count)]
        names = sections[names_index][4]
        for section in sections:
            start = names + section[0]
            if elf[start : elf.index(b"\0", start)] == wanted:
                return elf[section[4] : section[4] + section[5]]
    except (struct.error, IndexError, ValueError) as error:
        raise BadModule(name) from error
    raise BadModule(name)
