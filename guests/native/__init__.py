"""What native guests boot: kernels out of Debian's packages, and initramfs images made here. `make guests`.

Nothing of it needs root, and nothing of it is committed. See docs/native.md.
"""

from pathlib import Path
from typing import Final

FOLDER: Final = Path(".guests")
"""where `make guests` puts everything, below the checkout"""

GRUB: Final = "grub-x86_64-xen.bin"
FLAVOURS: Final = ("amd64", "cloud-amd64")
"""of Debian's kernel; each has a metapackage linux-image-<flavour>"""


def kernel_file(flavour: str) -> str:
    """What the kernel of a flavour is called in the folder."""
    return f"vmlinuz-{flavour}"


def initramfs_file(flavour: str) -> str:
    """What the initramfs with that kernel's modules is called there."""
    return f"initramfs-{flavour}.img"
