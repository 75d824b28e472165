"""What can go wrong with a console, by culprit."""

from kernel.errors import KernelError


class NoConsole(KernelError):
    """The toolstack gave this domain no console, or the daemon has broken it."""

    def __init__(self) -> None:
        super().__init__("this domain has no console")
