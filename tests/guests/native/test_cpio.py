"""Archives of initramfs images, read back."""

import stat

from hypothesis import assume, given
from hypothesis import strategies as st

from guests.native.cpio import Archive
from tests.guests.native.archives import Entry, entries

names = st.from_regex(r"[a-z]{1,9}(/[a-z]{1,9}){0,3}", fullmatch=True)


def test_every_kind_of_entry() -> None:
    archive = Archive()
    archive.folder("proc", 0o555)
    archive.file("init", b"#!/bin/sh\n", 0o755)
    archive.link("bin/sh", "busybox")
    archive.node("dev/console", 5, 1)
    assert entries(archive.content()) == [
        Entry("proc", 1, stat.S_IFDIR | 0o555, b"", (0, 0)),
        Entry("init", 2, stat.S_IFREG | 0o755, b"#!/bin/sh\n", (0, 0)),
        Entry("bin", 3, stat.S_IFDIR | 0o755, b"", (0, 0)),
        Entry("bin/sh", 4, stat.S_IFLNK | 0o777, b"busybox", (0, 0)),
        Entry("dev", 5, stat.S_IFDIR | 0o755, b"", (0, 0)),
        Entry("dev/console", 6, stat.S_IFCHR | 0o600, b"", (5, 1)),
    ]


@given(st.dictionaries(names, st.binary(max_size=50), max_size=9))
def test_all_that_goes_in_comes_out_after_the_folders_on_the_way_to_it(files: dict[str, bytes]) -> None:
    assume(not any(other.startswith(f"{name}/") for name in files for other in files))
    archive = Archive()
    for name, content in files.items():
        archive.file(name, content)
    found = entries(archive.content())
    assert {entry.name: entry.content for entry in found if stat.S_ISREG(entry.mode)} == files
    assert len({entry.inode for entry in found}) == len(found)
    seen = {""}
    for entry in found:
        assert entry.name.rpartition("/")[0] in seen
        seen.add(entry.name)


def test_an_archive_of_nothing_is_a_trailer() -> None:
    assert entries(Archive().content()) == []
