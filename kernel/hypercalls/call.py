"""One hypercall, laid out but not made yet, so that it can go alone or in a batch."""

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Call(Generic[T]):
    """name: Xen's, for errors. arguments: what an error shows. decode: turns the non-negative result into the
    value, reading what Xen wrote into the argument area.
    """

    __slots__ = ("args", "arguments", "decode", "name", "number")

    def __init__(
        self, name: str, number: int, args: tuple[int, ...], decode: Callable[[int], T], arguments: object
    ) -> None:
        self.name = name
        self.number = number
        self.args = args
        self.decode = decode
        self.arguments = arguments


def nothing(_result: int) -> None:
    """The decoder of an operation that only succeeds."""


def itself(result: int) -> int:
    """The decoder of an operation whose result is its value."""
    return result
