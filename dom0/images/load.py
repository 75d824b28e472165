"""From a file to a KernelImage."""

from pathlib import Path

from dom0.images.kernel_image import KernelImage


def read_kernel(path: Path) -> KernelImage:
    """A kernel from a file: an ELF image, one compressed with gzip, or a bzImage.

    Raises:
        OSError: the file cannot be read.
        BadImage, MissingDecompressor.
    """
    raise NotImplementedError


def parse_kernel(data: bytes | memoryview, file: str) -> KernelImage:
    """The same, of bytes that are in memory. They are kept alive by the result and must not change."""
    raise NotImplementedError
