"""Stores by name, and what is said of names that lead to none."""

import pytest
from pydantic import BaseModel

from backends.block.file import FileStore
from backends.block.memory import MemoryStore
from backends.contract import BlockStore
from backends.registry import BackendError, known_backends, load_backend


class Abstract(BlockStore):
    """Lacks read and write."""

    Config = BaseModel


class NoConfig(MemoryStore):
    """Has settings that are no model."""

    Config = dict  # type: ignore[assignment]


def test_entry_points() -> None:
    assert load_backend("file") is FileStore
    assert load_backend("memory") is MemoryStore
    assert {"file", "memory"} <= set(known_backends())


def test_module_and_class() -> None:
    assert load_backend("backends.block.memory:MemoryStore") is MemoryStore


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("flie", r"one of .*file.*memory.*, or module:Class"),
        ("", r"one of .*file"),
        ("no.such.module:Store", r"a module that can be imported"),
        ("backends.block.memory:Nothing", r"a class of backends.block.memory, which has no 'Nothing'"),
        ("backends.registry:load_backend", r"a subclass of backends.contract.BlockStore"),
        ("pathlib:Path", r"a subclass of backends.contract.BlockStore"),
        ("tests.backends.test_registry:Abstract", r"a class that implements read, write"),
        ("tests.backends.test_registry:NoConfig", r"a class with a pydantic model called Config"),
        (":", r"a module that can be imported|a class of"),
        ("a:", r"a module that can be imported|a class of"),
    ],
)
def test_names_that_lead_nowhere(name: str, expected: str) -> None:
    with pytest.raises(BackendError, match=expected) as refused:
        load_backend(name)
    assert refused.value.name == name
