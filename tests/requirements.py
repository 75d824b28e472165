"""What a test needs of the machine that pip cannot install."""

import os

import pytest


def needs_package(name: str, present: bool) -> None:
    """Skip the test when the distribution's package `name` is missing; in CI (`CI=true`), fail it."""
    if present:
        return
    reason = f"needs the package {name}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
