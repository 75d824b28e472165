"""The kernels that `make guests` fetches; none of them is part of the sources."""

from pathlib import Path

from tests.native.guests import GUESTS
from tests.requirements import needs_package


def guest_image(name: str) -> Path:
    """The path of one of them. Skips the test where it is not there; in CI (`CI=true`), fails it."""
    path = GUESTS / name
    needs_package(f"of {name} (make guests)", path.exists())
    return path
