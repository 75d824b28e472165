"""Virtual block device names and numbers, after Xen's docs/man/xen-vbd-interface.

`xvda` is 51712 (major 202, sixteen minors a disk) for the first sixteen disks; later disks use the
extended form (1 << 28 | disk << 8 | partition).
"""

import re
from typing import Final

XVD_MAJOR: Final = 202
_NAME = re.compile(r"xvd([a-z]{1,2})(\d{0,3})|d(\d{1,7})(?:p(\d{1,3}))?")
_LETTERS = 26
_MAX_DISK: Final = (1 << 20) - 1


class VirtualDeviceName(Exception):
    """`name` is no virtual block device."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"{name!r} is no virtual disk name: {why}; expected one such as xvda, xvdb1 or d5p2")
        self.name = name
        self.why = why


def _disk_of_letters(letters: str) -> int:
    index = 0
    for letter in letters:
        index = index * _LETTERS + ord(letter) - ord("a") + 1
    return index - 1


def parse_vdev(name: str) -> tuple[int, int]:
    """Disk and partition (0: the whole disk) that `name` stands for.

    Raises:
        VirtualDeviceName: the name has another form or is out of range.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise VirtualDeviceName(name, "unknown form")
    if match[1] is not None:
        disk, partition = _disk_of_letters(match[1]), int(match[2] or 0)
    else:
        disk, partition = int(match[3]), int(match[4] or 0)
    if disk > _MAX_DISK:
        raise VirtualDeviceName(name, f"disk {disk} is above {_MAX_DISK}")
    if partition > 255:
        raise VirtualDeviceName(name, f"partition {partition} is above 255")
    return disk, partition


def vdev_number(name: str) -> int:
    """The number that names the device's folders in XenStore: `xvda` → 51712."""
    disk, partition = parse_vdev(name)
    if disk < 16 and partition < 16:
        return XVD_MAJOR << 8 | disk << 4 | partition
    return 1 << 28 | disk << 8 | partition
