"""Packages, asked of an apt and a dpkg of the test's own."""

import os
from pathlib import Path

import pytest

from guests.native.packages import PackageError, Packages, files_of

APT_CACHE = """\
#!/bin/sh
case "$*" in
    *lists*) printf 'Package: linux-image-amd64\\nDepends: linux-image-6.1.0-56-amd64 (= 6.1), kmod | dash\\n' ;;
    *) echo "E: No packages found" >&2; exit 100 ;;
esac
"""
APT_GET = """\
#!/bin/sh
echo "$*" >>"$LOG"
case "$*" in
    *download*none*) echo "E: Unable to locate package none" >&2; exit 100 ;;
    *download*) : >"grub-xen-host_2.06_amd64.deb" ;;
esac
"""


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What apt-get was asked for, a line each."""
    for name, text in (("apt-cache", APT_CACHE), ("apt-get", APT_GET)):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(text)
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    return tmp_path / "log"


def test_what_is_there_is_not_fetched_again(log: Path, tmp_path: Path) -> None:
    said: list[str] = []
    packages = Packages(tmp_path / "packages", said.append)
    first = packages.download("grub-xen-host")
    assert (
        first == packages.download("grub-xen-host") == tmp_path / "packages" / "grub-xen-host_2.06_amd64.deb"
    )
    assert log.read_text() == "download -qq grub-xen-host\n"
    assert said == ["fetching grub-xen-host"]


def test_lists_of_its_own_are_fetched_if_the_system_s_do_not_know_a_package(
    log: Path, tmp_path: Path
) -> None:
    packages = Packages(tmp_path, lambda line: None)
    assert packages.dependencies("linux-image-amd64") == ["linux-image-6.1.0-56-amd64", "kmod"]
    assert log.read_text().rstrip().endswith("update -qq")
    assert f"Dir::State::lists={tmp_path}/apt/lists" in log.read_text()


def test_a_package_that_does_not_exist(log: Path, tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="none: E: Unable to locate package none") as caught:
        Packages(tmp_path, lambda line: None).download("none")
    assert caught.value.name == "none"


def test_a_file_that_is_no_package(tmp_path: Path) -> None:
    (tmp_path / "a.deb").write_text("nothing")
    with pytest.raises(PackageError, match=r"a\.deb"):
        list(files_of(tmp_path / "a.deb", lambda path: True))
