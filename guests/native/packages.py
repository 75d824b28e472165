"""Debian's packages as sources of files: found, downloaded and read by apt and dpkg, none of it as root."""

from __future__ import annotations

import re
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Final

_DEPENDS: Final = re.compile(r"^Depends: *(.*)$", re.MULTILINE)


class PackageError(Exception):
    """apt or dpkg could not do something with the package `name`; `why` is what they said."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"{name}: {why}")
        self.name = name
        self.why = why


class Packages:
    """Packages in `folder`. If the system's own lists of packages do not know one, they are fetched into the folder.

    say: takes a line of what is done.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._folder = folder
        self._say = say
        self._lists: list[str] = []

    def dependencies(self, name: str) -> list[str]:
        """The names of the packages that `name` depends on, without versions; of alternatives the first."""
        found = _DEPENDS.search(self._ask(["apt-cache", "show", "--no-all-versions", name], name))
        if found is None:
            return []
        return [clause.split("|")[0].split()[0].split(":")[0] for clause in found[1].split(",")]

    def download(self, name: str) -> Path:
        """The package's file; it is fetched if it is not there."""
        if not (there := sorted(self._folder.glob(f"{name}_*.deb"))):
            self._say(f"fetching {name}")
            self._ask(["apt-get", "download", "-qq", name], name)
            there = sorted(self._folder.glob(f"{name}_*.deb"))
        if not there:
            raise PackageError(name, "apt-get download has left no file")
        return there[-1]

    def _ask(self, command: Sequence[str], name: str) -> str:
        """What apt says. If it knows no such package it is asked once more, with lists that are up to date."""
        try:
            return self._run([command[0], *self._lists, *command[1:]], name)
        except PackageError:
            if self._lists:
                raise
        self._say("fetching lists of packages")
        state = self._folder.absolute() / "apt"
        (state / "lists" / "partial").mkdir(parents=True, exist_ok=True)
        self._lists = [
            *("-o", f"Dir::State::lists={state}/lists", "-o", f"Dir::Cache={state}"),
            *("-o", "Debug::NoLocking=1"),
        ]
        self._run(["apt-get", *self._lists, "update", "-qq"], name)
        return self._ask(command, name)

    def _run(self, command: Sequence[str], name: str) -> str:
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            done = subprocess.run(command, cwd=self._folder, capture_output=True, text=True, check=False)
        except OSError as error:
            raise PackageError(name, f"{command[0]}: {error.strerror}") from error
        if done.returncode:
            raise PackageError(name, done.stderr.strip() or f"{' '.join(command)}: status {done.returncode}")
        return done.stdout


def files_of(package: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """The regular files of a package that are wanted, by their paths without a leading slash.

    Raises:
        PackageError: the package cannot be read.
    """
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        try:
            yield from _members(reader.stdout, wanted)
        except tarfile.TarError as error:
            raise PackageError(package.name, str(error)) from error
    if reader.returncode:
        raise PackageError(package.name, f"dpkg-deb: status {reader.returncode}")


def _members(stream: IO[bytes], wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            path = member.name.removeprefix("./")
            if member.isfile() and wanted(path) and (content := archive.extractfile(member)) is not None:
                yield path, content.read()
    while stream.read(1 << 16):
        pass  # padding: dpkg-deb complains if nobody takes it
