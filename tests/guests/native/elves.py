"""Kernel modules as small as they get."""

import struct


def module(*needs: str, section: bytes = b".modinfo") -> bytes:
    """A 64-bit ELF file whose `.modinfo` says that it needs others."""
    info = b"license=GPL\0depends=" + ",".join(needs).encode() + b"\0name=x\0"
    names = b"\0" + section + b"\0.shstrtab\0"
    info_at, names_at = 64, 64 + len(info)
    table_at = names_at + len(names)
    sections = [
        (0, 0, 0, 0, 0, 0),
        (1, 1, 0, 0, info_at, len(info)),
        (2 + len(section), 3, 0, 0, names_at, len(names)),
    ]
    head = b"\x7fELF\x02\x01\x01".ljust(40, b"\0") + struct.pack("<QIHHHHHH", table_at, 0, 64, 0, 0, 64, 3, 2)
    table = b"".join(struct.pack("<IIQQQQIIQQ", *section, 0, 0, 1, 0) for section in sections)
    return head + info + names + table
