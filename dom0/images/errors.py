"""What can be wrong with the file of a kernel."""

from kernel.errors import KernelError


class BadImage(KernelError):
    """The file cannot be a kernel that is executed here. `offset` is in bytes from where `file` begins; where
    the file is compressed, `file` says of which unpacked part the offset is.
    """

    def __init__(self, file: str, offset: int, what: str, expected: str) -> None:
        super().__init__(f"{file}: at offset {offset:#x}: {what}, expected {expected}")
        self.file = file
        self.offset = offset
        self.what = what
        self.expected = expected


class MissingDecompressor(KernelError):
    """The image is packed in a way that needs a Python package that is not installed."""

    def __init__(self, file: str, method: str, package: str) -> None:
        super().__init__(
            f"{file} is compressed with {method}: install {package} (part of the extra domzero[native])"
        )
        self.file = file
        self.method = method
        self.package = package
