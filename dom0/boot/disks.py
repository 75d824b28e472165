"""`--disk VDEV=PATH[,ro]`: an image and what it is called in the guest."""

from pathlib import Path
from typing import Final

import typer

from dom0.scenario.model import DiskSpec
from dom0.vdev import VirtualDeviceName, parse_vdev

_READ_ONLY: Final = ",ro"


class BadDisk(typer.BadParameter):
    """A disk was asked for in a way that makes no sense; the text says what was expected."""


def parse_disk(text: str) -> DiskSpec:
    """The disk that an option stands for; its image is served by dom0, as raw as it is.

    Raises:
        BadDisk: the option is wrong, or there is no such image.
    """
    vdev, equals, path = text.partition("=")
    mode = "r" if path.endswith(_READ_ONLY) else "w"
    image = Path(path.removesuffix(_READ_ONLY)).absolute()
    if not (vdev and equals and path.removesuffix(_READ_ONLY)):
        raise BadDisk(f"{text!r}: expected VDEV=PATH or VDEV=PATH,ro, such as xvda=disk.img")
    try:
        parse_vdev(vdev)
    except VirtualDeviceName as error:
        raise BadDisk(
            f"{text!r}: expected a disk's name such as xvda, xvdb1 or d5p2 ({error.why})"
        ) from error
    if not image.exists():
        raise BadDisk(f"{text!r}: expected an image that is there")
    return DiskSpec(vdev=vdev, mode="r" if mode == "r" else "w", config={"path": str(image)})
