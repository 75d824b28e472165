"""One hypercall, laid out but not made yet, so that it can go alone or in a batch."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from kernel.errors import KernelMisuse
from kernel.hypercalls.errors import refusal

T = TypeVar("T")


class NotCalledYet(KernelMisuse):
    """A result was asked for inside the block that queues its hypercall."""

    def __init__(self, op: str) -> None:
        super().__init__("result", f"of {op}, which is still queued", "a batch that has been left")


class Pending(Generic[T]):
    """name: Xen's, for errors. arguments: what an error shows. decode: turns the non-negative result into the
    value, reading what Xen wrote into the argument area.
    """

    __slots__ = ("_outcome", "args", "arguments", "decode", "name", "number")

    def __init__(
        self, name: str, number: int, args: tuple[int, ...], decode: Callable[[int], T], arguments: object
    ) -> None:
        self.name = name
        self.number = number
        self.args = args
        self.decode = decode
        self.arguments = arguments
        self._outcome: Any = self  # that is, none yet

    def settle(self, result: int) -> None:
        """Take Xen's result. What it wrote is read now, before the arguments' place is used again."""
        self._outcome = self.decode(result) if result >= 0 else refusal(self.name, result, self.arguments)

    def result(self) -> T:
        """The value. Raises HypercallError if it was refused, NotCalledYet if it has not been made."""
        outcome = self._outcome
        if outcome is self:
            raise NotCalledYet(self.name)
        if isinstance(outcome, Exception):
            raise outcome
        value: T = outcome
        return value


def nothing(_result: int) -> None:
    """The decoder of an operation that only succeeds."""


def itself(result: int) -> int:
    """The decoder of an operation whose result is its value."""
    return result
