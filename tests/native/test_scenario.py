"""The scenario that ships: native guests next to Python ones, one of which serves a disk to Linux."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dom0.cli import app
from dom0.report.model import RunReport
from tests.native.guests import GUESTS, ROOT

pytestmark = pytest.mark.usefixtures("native_guests")


@pytest.mark.parametrize("isolation", ["coroutine", "process"])
@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_native_and_python_guests_in_one_machine(tmp_path: Path, loop: str, isolation: str) -> None:
    text = (ROOT / "scenarios" / "native.yaml").read_text().replace("../.guests", str(GUESTS))
    served = "program: driver-domain\n"
    file = tmp_path / "native.yaml"
    file.write_text(
        text.replace("../native-out", "out").replace(served, f"{served}    isolation: {isolation}\n")
    )
    report = tmp_path / "report.json"
    result = CliRunner().invoke(app, ["launch", str(file), "--loop", loop, "--json", str(report)])
    assert result.exit_code == 0, result.output[-5000:]
    domains = {domain.name: domain for domain in RunReport(**json.loads(report.read_text())).domains}
    assert domains["copier"].isolation == "native"
    assert domains["copier"].native.mean_us["mmu_update"] > 0
    assert domains["copier"].native.traps["page_fault"] > 0
    assert domains["disks"].isolation == isolation
