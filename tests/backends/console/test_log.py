"""Files: what they are called, how large they get, what they still hold."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.console.log import ConsoleLog, LogFolder


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("web", "web.log"),
        ("web 1/../../etc", "web_1_.._.._etc.log"),
        ("../x", "_x.log"),
        ("..", "domain-3.log"),
        ("", "domain-3.log"),
        (".hidden", "hidden.log"),
        ("a\0b\nc", "a_b_c.log"),
        ("ü" * 5, "_.log"),
    ],
)
def test_a_name_becomes_a_file_in_the_folder(tmp_path: Path, name: str, file: str) -> None:
    log = LogFolder(tmp_path / "new" / "folder").new_log(name, 3, 4096)
    assert log.path == tmp_path / "new" / "folder" / file
    assert log.path.read_bytes() == b""


@given(st.text(max_size=300) | st.text(alphabet="./\\~-a\0", max_size=10))
def test_no_name_leads_out_of_the_folder(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    outer = tmp_path_factory.mktemp("outer")
    log = LogFolder(outer / "logs").new_log(name, 3, 4096)
    assert [path.name for path in outer.iterdir()] == ["logs"]
    assert list((outer / "logs").iterdir()) == [log.path]


def test_no_two_consoles_share_a_file(tmp_path: Path) -> None:
    folder = LogFolder(tmp_path)
    logs = [folder.new_log(name, domid, 4096) for name, domid in [("a", 1), ("a", 2), ("a-2", 3), ("a", 2)]]
    assert [log.path.name for log in logs] == ["a.log", "a-2.log", "a-2-3.log", "a-2-2.log"]


@given(st.lists(st.binary(min_size=1, max_size=2048), max_size=40))
def test_the_newest_output_is_kept_and_no_file_exceeds_the_limit(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]
) -> None:
    log = LogFolder(tmp_path_factory.mktemp("log")).new_log("guest", 1, 4096)
    for piece in pieces:
        log.append(piece)
    printed, kept = b"".join(pieces), log.content()
    assert printed.endswith(kept)
    assert len(kept) >= min(len(printed), 4096 - 2048)
    for path in (log.path, log.older_path):
        assert not path.exists() or path.stat().st_size <= 4096


def test_a_file_is_filled_before_the_next_is_begun(tmp_path: Path) -> None:
    log = LogFolder(tmp_path).new_log("guest", 1, 4096)
    for number in range(1000):
        log.append(b"%07d\n" % number)
    assert log.content() == b"".join(b"%07d\n" % number for number in range(1000))


def test_the_log_of_an_earlier_run_is_put_aside_and_not_read(tmp_path: Path) -> None:
    LogFolder(tmp_path).new_log("guest", 1, 4096).append(b"yesterday")
    log = LogFolder(tmp_path).new_log("guest", 1, 4096)
    log.append(b"today")
    assert log.content() == b"today"
    assert log.older_path.read_bytes() == b"yesterday"


def test_a_link_in_the_place_of_the_log_is_not_followed(tmp_path: Path) -> None:
    log = LogFolder(tmp_path).new_log("guest", 1, 4096)
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    log.path.unlink()
    log.path.symlink_to(target)
    log.append(b"x")
    assert log.failure is not None
    assert log.lost_bytes == 1
    assert target.read_bytes() == b"precious"


def test_a_log_goes_on_when_it_can_be_written_again(tmp_path: Path) -> None:
    log = ConsoleLog(tmp_path / "missing" / "guest.log", 4096)
    log.append(b"lost")
    assert isinstance(log.failure, FileNotFoundError)
    (tmp_path / "missing").mkdir()
    log.append(b"kept")
    assert log.failure is None
    assert log.content() == b"kept"
    assert log.lost_bytes == 4


def test_no_file_stays_open(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    log = LogFolder(tmp_path).new_log("guest", 1, 4096)
    log.append(b"x")
    assert os.listdir("/proc/self/fd") == before
