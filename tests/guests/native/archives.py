"""Reads back what the writer of cpio archives has written, entry by entry."""

from dataclasses import dataclass

HEAD_BYTES = 110


@dataclass(frozen=True)
class Entry:
    """One file of an archive in the new ASCII format."""

    name: str
    inode: int
    mode: int
    content: bytes
    device: tuple[int, int]


def entries(archive: bytes) -> list[Entry]:
    """All entries before the trailer; checks the places of everything."""
    found: list[Entry] = []
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        numbers = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        inode, mode, _, _, _, _, size, _, _, major, minor, name_bytes, check = numbers
        assert check == 0
        name = archive[at + HEAD_BYTES : at + HEAD_BYTES + name_bytes]
        assert name.endswith(b"\0")
        at += -(-(HEAD_BYTES + name_bytes) // 4) * 4
        content = archive[at : at + size]
        at += -(-size // 4) * 4
        if name == b"TRAILER!!!\0":
            assert at == len(archive)
            return found
        found.append(Entry(name[:-1].decode(), inode, mode, content, (major, minor)))
