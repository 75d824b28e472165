"""Expectations that hold and that do not."""

import hashlib
from pathlib import Path

import pytest

from dom0.report.model import DeviceReport, DomainReport, GrantReport
from dom0.scenario.expectations import check_guest, check_image
from dom0.scenario.model import Bound, GuestExpectations, GuestSpec, ImageExpectation

REPORT = DomainReport(
    name="g",
    domid=1,
    program="hello",
    outcome="poweroff",
    exit_code=0,
    hypercalls={"event_channel_op": 5, "multicall": 2},
    grants=GrantReport(leaked=3),
    devices=[DeviceReport(name="xvda", kind="vbd", bytes_read=4096)],
)


def held(expect: GuestExpectations, console: str = "") -> list[bool]:
    return [
        result.held
        for result in check_guest(GuestSpec(name="g", program="hello", expect=expect), REPORT, console)
    ]


def test_the_default_is_a_clean_end() -> None:
    assert held(GuestExpectations()) == [True, True]
    assert held(GuestExpectations(exit_code=1)) == [True, False]
    assert held(GuestExpectations(exit_code=None)) == [True]


def test_console_patterns_search_line_by_line() -> None:
    assert held(GuestExpectations(console=("^two$", "three")), "one\ntwo\n")[2:] == [True, False]


@pytest.mark.parametrize(
    ("path", "bound", "holds"),
    [
        ("hypercalls.event_channel_op", Bound(min=5, max=5), True),
        ("hypercalls_total", Bound(min=8), False),
        ("grants.leaked", Bound(max=0), False),
        ("devices.xvda.bytes_read", Bound(min=1), True),
        ("devices.xvdb.bytes_read", Bound(max=9), False),
        ("name", Bound(max=9), False),
    ],
)
def test_counters(path: str, bound: Bound, holds: bool) -> None:
    assert held(GuestExpectations(counters={path: bound}))[2:] == [holds]


def test_image_hashes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"data")
    (tmp_path / "b").write_bytes(b"data")
    (tmp_path / "c").write_bytes(b"other")
    digest = hashlib.sha256(b"data").hexdigest()
    assert check_image(ImageExpectation(path=Path("a"), sha256=digest), tmp_path).held
    assert check_image(ImageExpectation(path=Path("a"), same_as=Path("b")), tmp_path).held
    assert not check_image(ImageExpectation(path=Path("a"), same_as=Path("c")), tmp_path).held
    absent = check_image(ImageExpectation(path=Path("x"), same_as=Path("y")), tmp_path)
    assert not absent.held
    assert "No such file" in absent.found
