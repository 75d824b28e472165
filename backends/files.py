"""Which files a store's settings name: what the process that runs the store must be let to."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import BaseModel


def files_of(config: BaseModel) -> list[Path]:
    """Every path among the settings, those of nested models and lists included, in their order, each once."""
    return list(dict.fromkeys(_paths(value for _, value in config)))


def _paths(values: Iterable[object]) -> Iterable[Path]:
    for value in values:
        if isinstance(value, Path):
            yield value
        elif isinstance(value, BaseModel):
            yield from _paths(inner for _, inner in value)
        elif isinstance(value, Mapping):
            yield from _paths(value.values())
        elif isinstance(value, list | tuple | set | frozenset):
            yield from _paths(value)
