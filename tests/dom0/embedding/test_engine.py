"""Native kernels need an engine, which is an extra: without it, nothing is begun."""

from pathlib import Path

import pytest

from dom0.embedding import running_machine
from dom0.toolstack.errors import BuildError
from hypervisor.vcpu.native import library
from hypervisor.vcpu.native.library import EngineUnavailable

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("PACKAGE", "no_such_package_at_all", "it is not installed"),
        ("VERSION", "0.0.0", "is installed, whose insides are not known"),
    ],
)
async def test_an_engine_that_is_not_there_is_named_before_anything_is_built(
    name: str, value: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, name, value)
    async with running_machine(tmp_path) as machine:
        domains = set(machine.core.domains)
        with pytest.raises(BuildError, match=why) as error:
            await machine.boot("kernel")
        assert isinstance(error.value.cause, EngineUnavailable)
        assert set(machine.core.domains) == domains
