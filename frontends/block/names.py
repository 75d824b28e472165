"""How a virtual block device is called, after Xen's docs/man/xen-vbd-interface: 51712 is xvda."""

from typing import Final

_XVD_MAJOR: Final = 202
_EXTENDED: Final = 1 << 28


def disk_name(devid: int) -> str:
    """The name of device `devid`, such as xvda or, with a partition, xvdb1; vbd-<devid> for numbers of
    other buses.
    """
    if devid & _EXTENDED:
        disk, partition = (devid ^ _EXTENDED) >> 8, devid & 0xFF
    elif devid >> 8 == _XVD_MAJOR:
        disk, partition = (devid >> 4) & 0xF, devid & 0xF
    else:
        return f"vbd-{devid}"
    return f"xvd{_letters(disk)}{partition or ''}"


def _letters(disk: int) -> str:
    """0 is a, 25 is z, 26 is aa."""
    letters = ""
    disk += 1
    while disk:
        disk, digit = divmod(disk - 1, 26)
        letters = chr(ord("a") + digit) + letters
    return letters
