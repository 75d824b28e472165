"""Which files a store's settings name, and how those come to be that the settings ask for.

It is what the process that runs the store must be let to. A process can be let to files that are there; the folder
of one that is not would be too much. So whoever starts the process makes them first.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from pydantic import BaseModel


@runtime_checkable
class MakesFile(Protocol):
    """Settings that say what a missing file is to be like."""

    def make_missing(self) -> None:
        """Makes the file if it is not there and the settings say how. Raises StoreError."""


def files_of(config: BaseModel) -> list[Path]:
    """Every path among the settings, those of nested models and lists included, in their order, each once."""
    return list(dict.fromkeys(found for found in _within((config,)) if isinstance(found, Path)))


def make_files(config: BaseModel) -> None:
    """Makes what is not there of those files, as far as the settings ask for it. Raises StoreError."""
    for found in _within((config,)):
        if isinstance(found, MakesFile):
            found.make_missing()


def _within(values: Iterable[object]) -> Iterable[Path | BaseModel]:
    """All paths and models that there are among `values` and inside of them."""
    for value in values:
        if isinstance(value, Path):
            yield value
        elif isinstance(value, BaseModel):
            yield value
            yield from _within(inner for _, inner in value)
        elif isinstance(value, Mapping):
            yield from _within(value.values())
        elif isinstance(value, list | tuple | set | frozenset):
            yield from _within(value)
