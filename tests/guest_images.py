"""The kernels that `make guests` fetches; none of them is part of the sources."""

import os
from pathlib import Path
from typing import Final

import pytest

FOLDER: Final = Path(__file__).parents[1] / ".guests"


def guest_image(name: str) -> Path:
    """The path of one of them. Skips the test where it is not there; in CI (`CI=true`), fails it."""
    path = FOLDER / name
    if not path.exists():
        reason = f"needs {name}, which `make guests` fetches"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return path
