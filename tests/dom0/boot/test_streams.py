"""Descriptors of every kind, read and written without keeping others waiting."""

import os
import pty
import termios
from contextlib import suppress
from pathlib import Path

import anyio
import pytest

from dom0.boot.streams import Sink, Source, can_wait, raw_mode

pytestmark = pytest.mark.anyio


async def everything(source: Source) -> bytes:
    found = b""
    while data := await source.read():
        found += data
    return found


async def test_a_pipe_is_read_to_its_end() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"one")
    source = Source(reader)
    assert await source.read() == b"one"
    os.write(writer, b"two")
    os.close(writer)
    assert await everything(source) == b"two"
    os.close(reader)


async def test_whoever_waits_for_a_pipe_lets_others_go_on() -> None:
    reader, writer = os.pipe()
    async with anyio.create_task_group() as tasks:

        async def write() -> None:
            os.write(writer, b"late")

        tasks.start_soon(write)
        assert await Source(reader).read() == b"late"
    os.close(reader)
    os.close(writer)


async def test_files_and_devices_are_always_ready(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(10000))
    for path, content in ((str(tmp_path / "file"), bytes(10000)), (os.devnull, b"")):
        fd = os.open(path, os.O_RDWR)
        assert not can_wait(fd)
        assert await everything(Source(fd)) == content
        await Sink(fd).write(b"more")
        os.close(fd)
    assert (tmp_path / "file").read_bytes().endswith(b"more")


async def test_a_pipe_that_is_full_keeps_the_writer_waiting_and_nobody_else() -> None:
    reader, writer = os.pipe()
    data = bytes(range(256)) * 1024
    found = bytearray()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Sink(writer).write, data)
        while len(found) < len(data):
            await anyio.wait_readable(reader)
            found += os.read(reader, 1000)
    assert found == data
    os.close(reader)
    os.close(writer)


async def test_a_pipe_that_nobody_reads_is_an_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with pytest.raises(BrokenPipeError):
        await Sink(writer).write(b"x")
    os.close(writer)


async def test_a_terminal_that_is_gone_is_at_its_end() -> None:
    master, slave = pty.openpty()
    os.close(master)
    assert await Source(slave).read() == b""
    os.close(slave)


def test_a_terminal_is_raw_for_a_while_and_then_as_it_was() -> None:
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    with raw_mode(slave) as raw:
        during = termios.tcgetattr(slave)
    assert raw
    assert not during[3] & (termios.ICANON | termios.ECHO | termios.ISIG)
    assert not during[0] & termios.IXON
    assert termios.tcgetattr(slave) == before
    with suppress(KeyError), raw_mode(slave):
        raise KeyError
    assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)


def test_what_is_no_terminal_stays_as_it_is() -> None:
    reader, writer = os.pipe()
    with raw_mode(reader) as raw:
        assert not raw
    os.close(reader)
    os.close(writer)
