"""Names of disks agree with the toolstack's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dom0.vdev import vdev_number
from frontends.block.names import disk_name


@pytest.mark.parametrize(
    ("devid", "name"),
    [
        (51712, "xvda"),
        (51713, "xvda1"),
        (51728, "xvdb"),
        (51952, "xvdp"),
        (268439552, "xvdq"),
        (768, "vbd-768"),
        (0, "vbd-0"),
    ],
)
def test_names(devid: int, name: str) -> None:
    assert disk_name(devid) == name


@given(st.integers(0, 700), st.integers(0, 15))
def test_there_and_back(disk: int, partition: int) -> None:
    number = 202 << 8 | disk << 4 | partition if disk < 16 else 1 << 28 | disk << 8 | partition
    assert vdev_number(disk_name(number)) == number
