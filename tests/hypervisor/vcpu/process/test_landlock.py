"""Landlock's numbers, and what is told of kernels that have little of it. What rules do is in test_confinement
and the hostile tests.
"""

import re
from pathlib import Path

import pytest

from hypervisor.vcpu.process import landlock
from tests.requirements import needs_package

HEADER = Path("/usr/include/linux/landlock.h")


def test_rights_are_those_of_the_kernel_s_header() -> None:
    needs_package("linux-libc-dev", HEADER.exists())
    rights = re.findall(r"#define LANDLOCK_ACCESS_FS_(\w+)\s+\(1ULL << (\d+)\)", HEADER.read_text())
    assert len(rights) >= 13
    assert {name: getattr(landlock, name) for name, _ in rights} == {
        name: 1 << int(bit) for name, bit in rights
    }


@pytest.mark.parametrize(
    ("version", "told"),
    [(0, 1), (1, 3), (2, 3), (3, 2), (4, 2), (5, 1), (6, 0), (7, 0), (99, 0)],
)
def test_what_a_version_lacks_is_told(version: int, told: int) -> None:
    assert len(landlock.missing(version)) == told


@pytest.mark.parametrize(
    ("version", "handled"),
    [(1, 0x1FFF), (2, 0x3FFF), (3, 0x7FFF), (4, 0x7FFF), (5, 0xFFFF), (7, 0xFFFF)],
)
def test_all_that_a_version_knows_is_handled(
    version: int, handled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, ...]] = []
    monkeypatch.setattr(landlock, "syscall", lambda *args: asked.append(args) or 99)
    assert landlock.Ruleset(version, network=False).handled == handled
    (number, _, size, flags) = asked[0]
    assert (number, flags) == (444, 0)
    assert size == (8 if version < 4 else 16 if version < 6 else 24)


def test_a_file_has_no_rights_of_folders(tmp_path: Path) -> None:
    if not landlock.abi():
        pytest.skip("this kernel has no Landlock")
    (tmp_path / "file").touch()
    rules = landlock.Ruleset(landlock.abi(), network=True)
    rules.allow(str(tmp_path / "file"), landlock.READ | landlock.CHANGE)  # EINVAL otherwise
    rules.allow(str(tmp_path), landlock.READ | landlock.CHANGE)
    with pytest.raises(FileNotFoundError):
        rules.allow(str(tmp_path / "absent"), landlock.READ)
    rules.close()
