"""Settings go through a XenStore node and come back the same."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ByteSize, ValidationError

from backends.block.file import FileStoreConfig
from backends.block.memory import MemoryStoreConfig
from backends.params import config_of, params_of


def test_a_path_alone_is_written_as_xl_writes_it() -> None:
    assert params_of(FileStoreConfig(path=Path("/dev/loop0"))) == "/dev/loop0"
    assert config_of(FileStoreConfig, "/dev/loop0") == FileStoreConfig(path=Path("/dev/loop0"))


def test_other_settings_are_json() -> None:
    config = FileStoreConfig(path=Path("/a.img"), size=ByteSize(1 << 20), sector_size=4096)
    assert params_of(config) == '{"path":"/a.img","size":1048576,"sector_size":4096}'
    assert params_of(MemoryStoreConfig(size=ByteSize(512))) == '{"size":512}'


@given(st.text(min_size=1).filter(lambda text: "\0" not in text), st.none() | st.integers(1, 1 << 60))
def test_there_and_back(path: str, size: int | None) -> None:
    config = FileStoreConfig(path=Path(path), size=None if size is None else ByteSize(size))
    assert config_of(FileStoreConfig, params_of(config)) == config


class Nothing(BaseModel):
    """No settings at all."""


def test_no_settings() -> None:
    assert params_of(Nothing()) == "{}"
    assert config_of(Nothing, "") == config_of(Nothing, "{}") == Nothing()


def test_settings_that_do_not_fit() -> None:
    for params in ("{", "{}", '{"path":"a","colour":"red"}', ""):
        with pytest.raises(ValidationError):
            config_of(FileStoreConfig, params)
