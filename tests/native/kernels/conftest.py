"""The kernel is compiled once a session."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.native.kernels.image import compile_kernel
from tests.requirements import needs_package


@pytest.fixture(scope="session")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image of our own kernel, for tests that execute it."""
    needs_package("unicorn (pip install domzero[native])", find_spec("unicorn") is not None)
    return compile_kernel(tmp_path_factory.mktemp("kernel"))
