"""The kernel is compiled once a session."""

from pathlib import Path

import pytest

from tests.native.kernels.image import compile_kernel


@pytest.fixture(scope="session")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image of our own kernel."""
    return compile_kernel(tmp_path_factory.mktemp("kernel"))
