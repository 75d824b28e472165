"""Holds a finished run against what its scenario expected."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from dom0.report.model import DomainReport, ExpectationResult
from dom0.scenario.counters import counter_at
from dom0.scenario.model import Bound, GuestSpec, ImageExpectation

_CHUNK_BYTES = 1 << 20


def check_guest(guest: GuestSpec, report: DomainReport, console: str) -> Iterator[ExpectationResult]:
    """Yields one result for each thing that `guest` was expected to do."""
    expect = guest.expect
    yield _result(f"{guest.name}: shutdown", expect.shutdown.value, report.outcome)
    if expect.exit_code is not None and guest.kernel is None:
        yield _result(f"{guest.name}: exit code", str(expect.exit_code), str(report.exit_code))
    for pattern in expect.console:
        found = re.search(pattern, console, re.MULTILINE)
        shown = repr(found[0]) if found else "no match"
        yield ExpectationResult(
            subject=f"{guest.name}: console", expected=f"/{pattern}/", found=shown, held=found is not None
        )
    for path, bound in expect.counters.items():
        yield _check_counter(f"{guest.name}: {path}", counter_at(report, path), bound)


def check_image(image: ImageExpectation, folder: Path) -> ExpectationResult:
    """Hashes an image when all guests have ended; relative paths start at `folder`."""
    subject = f"image {image.path}"
    if image.sha256 is not None:
        return _result(subject, image.sha256, _hash_or_reason(folder / image.path))
    if image.same_as is None:
        raise TypeError(f"{subject}: the model allows no expectation without a claim")
    other = _hash_or_reason(folder / image.same_as)
    found = _hash_or_reason(folder / image.path)
    held = found == other and len(found) == 64
    return ExpectationResult(subject=subject, expected=f"{image.same_as}: {other}", found=found, held=held)


def sha256_of(file: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _hash_or_reason(file: Path) -> str:
    try:
        return sha256_of(file)
    except OSError as error:
        return f"unreadable: {error.strerror}"


def _check_counter(subject: str, found: float | None, bound: Bound) -> ExpectationResult:
    low = "" if bound.min is None else f"{bound.min} <= "
    high = "" if bound.max is None else f" <= {bound.max}"
    held = (
        found is not None
        and (bound.min is None or found >= bound.min)
        and (bound.max is None or found <= bound.max)
    )
    shown = "no such counter" if found is None else str(found)
    return ExpectationResult(subject=subject, expected=f"{low}n{high}", found=shown, held=held)


def _result(subject: str, expected: str, found: str) -> ExpectationResult:
    return ExpectationResult(subject=subject, expected=expected, found=found, held=expected == found)
