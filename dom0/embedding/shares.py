"""Checks what callers say of a guest's share of the processors, as a scenario's file is checked."""

from typing import Final

from pydantic import TypeAdapter

from dom0.scenario.model import Cap, Weight

_WEIGHT: Final = TypeAdapter[int](Weight)
_CAP: Final = TypeAdapter[int](Cap)


def checked_weight(weight: int) -> int:
    """A guest's weight. Raises pydantic.ValidationError."""
    return _WEIGHT.validate_python(weight)


def checked_cap(cap: int) -> int:
    """A guest's cap in percent of one processor, 0: none. Raises pydantic.ValidationError."""
    return _CAP.validate_python(cap)
