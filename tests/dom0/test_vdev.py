"""Virtual disk names and numbers, against values of Xen's own documentation and recordings."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dom0.vdev import VirtualDeviceName, parse_vdev, vdev_number


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("xvda", 51712),
        ("xvdb", 51728),
        ("xvda1", 51713),
        ("xvdp15", 51967),
        ("xvdq", (1 << 28) | (16 << 8)),
        ("xvda16", (1 << 28) | 16),
        ("xvdaa", (1 << 28) | (26 << 8)),
        ("d0", 51712),
        ("d5p2", 51794),
        ("d536p37", (1 << 28) | (536 << 8) | 37),
    ],
)
def test_numbers(name: str, number: int) -> None:
    assert vdev_number(name) == number


@pytest.mark.parametrize(
    "name", ["", "xvd", "xvdA", "hda", "sda1", "xvda256", "d", "d1p", "d1048576", "xvda\n", "xvdaaa"]
)
def test_what_is_no_name_is_refused_by_name(name: str) -> None:
    with pytest.raises(VirtualDeviceName) as caught:
        vdev_number(name)
    assert caught.value.name == name


@given(st.integers(0, (1 << 20) - 1), st.integers(0, 255))
def test_every_disk_and_partition_has_one_number(disk: int, partition: int) -> None:
    name = f"d{disk}p{partition}" if partition else f"d{disk}"
    assert parse_vdev(name) == (disk, partition)
    number = vdev_number(name)
    decoded = (number >> 8 & 0xFFFFF, number & 0xFF) if number >> 28 else (number >> 4 & 0xF, number & 0xF)
    assert decoded == (disk, partition)
