"""What kernel modules need, and in which order they are loaded."""

import lzma

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guests.native.modules import BadModule, NoModule, decompressed, is_module, load_order, module_name
from tests.guests.native.elves import module


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("kernel/drivers/block/xen-blkfront.ko", "xen_blkfront"),
        ("lib/modules/6.12/kernel/fs/ext4/ext4.ko.xz", "ext4"),
    ],
)
def test_names_are_the_kernel_s(path: str, name: str) -> None:
    assert is_module(path)
    assert module_name(path) == name


def test_each_comes_after_what_it_needs_and_once() -> None:
    modules = {
        "ext4": module("jbd2", "crc-16"),
        "jbd2": module("crc-16"),
        "crc_16": module(),
        "other": module(),
    }
    assert load_order(modules, [], ["ext4", "jbd2"]) == ["crc_16", "jbd2", "ext4"]


def test_what_is_built_in_is_not_loaded() -> None:
    modules = {"ext4": module("jbd2", "mbcache")}
    assert load_order(modules, ["jbd2", "mbcache"], ["ext4", "jbd2"]) == ["ext4"]


def test_one_that_is_missing_is_named_with_who_needs_it() -> None:
    with pytest.raises(NoModule) as caught:
        load_order({"ext4": module("jbd2")}, [], ["ext4"])
    assert (caught.value.name, caught.value.needed_by) == ("jbd2", "ext4")


def test_compressed_ones_are_read_and_handed_on_decompressed() -> None:
    packed = lzma.compress(module("jbd2"))
    assert load_order({"ext4": packed}, ["jbd2"], ["ext4"]) == ["ext4"]
    assert decompressed(packed) == decompressed(module("jbd2")) == module("jbd2")


@pytest.mark.parametrize("content", [b"", b"\x7fELF\x01\x01" + bytes(90), module(section=b".other")])
def test_what_is_no_module_is_refused(content: bytes) -> None:
    with pytest.raises(BadModule):
        load_order({"x": content}, [], ["x"])


@given(cut=st.integers(0, len(module("a")) - 1))
def test_a_module_that_is_cut_short_is_refused_or_read(cut: int) -> None:
    with pytest.raises((BadModule, NoModule)):
        load_order({"x": module("a")[:cut]}, [], ["x"])
