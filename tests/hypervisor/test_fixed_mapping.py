"""Mappings at fixed addresses, and seals."""

import ctypes
import mmap
import os
from collections.abc import Iterator
from errno import EINVAL, ENOMEM, EPERM

import pytest

from hypervisor.fixed_mapping import MappingFailed, address_of, map_nothing, map_shared, reserve
from hypervisor.sealed_memfd import SEALED, SEALED_READONLY, SEALED_SIZE, seal, sealed_memfd, seals_of

PAGE = mmap.PAGESIZE


@pytest.fixture
def fd() -> Iterator[int]:
    fd = sealed_memfd(4 * PAGE, SEALED_SIZE)
    os.pwrite(fd, b"0" * PAGE + b"1" * PAGE + b"2" * PAGE, 0)
    yield fd
    os.close(fd)


def is_mapped(address: int) -> bool:
    """Whether the kernel can read there; to look would end this process."""
    reader, writer = os.pipe()
    try:
        return os.writev(writer, [(ctypes.c_char * 1).from_address(address)]) == 1
    except OSError:
        return False
    finally:
        os.close(reader)
        os.close(writer)


def test_a_page_appears_in_the_middle_of_what_is_there(fd: int) -> None:
    with mmap.mmap(-1, 3 * PAGE) as memory:
        memory[:] = b"-" * 3 * PAGE
        map_shared(fd, 2 * PAGE, address_of(memory) + PAGE, PAGE)
        assert memory[PAGE - 1 : PAGE + 1] + memory[2 * PAGE - 1 : 2 * PAGE + 1] == b"-22-"
        memory[PAGE] = ord("x")
        assert os.pread(fd, 2, 2 * PAGE) == b"x2"


def test_reserved_addresses_are_nowhere_until_something_is_mapped(fd: int) -> None:
    address = reserve(4 * PAGE)
    assert not is_mapped(address)
    map_shared(fd, PAGE, address, 2 * PAGE)
    assert ctypes.string_at(address + PAGE - 1, 2) == b"12"
    assert [is_mapped(address + page * PAGE) for page in range(4)] == [True, True, False, False]
    map_nothing(address, PAGE)
    assert [is_mapped(address + page * PAGE) for page in range(4)] == [False, True, False, False]
    map_nothing(address, 4 * PAGE)


def test_a_read_only_mapping_of_a_page_sealed_against_writing_is_all_there_is(fd: int) -> None:
    address = reserve(PAGE)
    assert seal(fd, SEALED_READONLY)
    with pytest.raises(MappingFailed) as refused:
        map_shared(fd, 0, address, PAGE)
    assert (refused.value.errno, refused.value.address, refused.value.length) == (EPERM, address, PAGE)
    map_shared(fd, 0, address, PAGE, writable=False)
    assert ctypes.string_at(address, 1) == b"0"
    map_nothing(address, PAGE)


def test_what_the_kernel_refuses_changes_nothing(fd: int) -> None:
    with mmap.mmap(-1, PAGE) as memory:
        memory[0] = 7
        with pytest.raises(MappingFailed) as refused:
            map_shared(fd, 1, address_of(memory), PAGE)
        assert refused.value.errno == EINVAL
        assert memory[0] == 7
    with pytest.raises(MappingFailed) as refused:
        reserve(1 << 60)
    assert refused.value.errno == ENOMEM


def test_an_address_keeps_no_mapping_open() -> None:
    memory = mmap.mmap(-1, PAGE)
    address_of(memory)
    memory.close()


def test_seals_are_added_once_and_say_what_they_are(fd: int) -> None:
    assert seals_of(fd) == SEALED_SIZE
    assert seal(fd, SEALED)
    assert seal(fd, SEALED)
    assert not seal(fd, SEALED_READONLY)
    assert seals_of(fd) == SEALED


def test_a_memfd_that_cannot_be_made_leaves_no_descriptor() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for size in (-1, 1 << 63):
        with pytest.raises((OSError, OverflowError)):
            sealed_memfd(size)
    assert len(os.listdir("/proc/self/fd")) == before
