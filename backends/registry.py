"""Finds a store class: by its name in the entry-point group `domzero.backends`, or as `module:Class`."""

import importlib
import inspect
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Final

from pydantic import BaseModel

from backends.contract import BlockStore

GROUP: Final = "domzero.backends"


class BackendError(Exception):
    """No store goes by `name`; the message says what was expected instead."""

    def __init__(self, name: str, expected: str) -> None:
        super().__init__(expected)
        self.name = name
        self.expected = expected


def known_backends() -> list[str]:
    """Names that the entry-point group offers, sorted."""
    return sorted(_entry_points())


@cache
def load_backend(name: str) -> type[BlockStore]:
    """The store class called `name`.

    Raises:
        BackendError: there is none, it cannot be imported, or it is no `BlockStore`.
    """
    entry = _entry_points().get(name)
    if entry is None:
        if ":" not in name:
            raise BackendError(name, f"one of {', '.join(known_backends())}, or module:Class")
        entry = EntryPoint(name=name, value=name, group=GROUP)
    return _checked(name, _imported(name, entry))


@cache
def _entry_points() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def _imported(name: str, entry: EntryPoint) -> object:
    module_name, _, attribute = entry.value.partition(":")
    try:
        return getattr(importlib.import_module(module_name.strip()), attribute.strip())
    except ImportError as error:
        raise BackendError(name, f"a module that can be imported ({error})") from error
    except (AttributeError, ValueError) as error:
        raise BackendError(name, f"a class of {module_name}, which has no {attribute!r}") from error


def _checked(name: str, found: object) -> type[BlockStore]:
    if not (isinstance(found, type) and issubclass(found, BlockStore)):
        raise BackendError(name, "a subclass of backends.contract.BlockStore")
    if inspect.isabstract(found):
        missing = ", ".join(sorted(found.__abstractmethods__))
        raise BackendError(name, f"a class that implements {missing}")
    config = getattr(found, "Config", None)
    if not (isinstance(config, type) and issubclass(config, BaseModel)):
        raise BackendError(name, "a class with a pydantic model called Config")
    return found
