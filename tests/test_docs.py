"""Pages that are made from the code are current, and what the README and the examples show does run."""

import re
import subprocess
import sys
from pathlib import Path
from textwrap import indent
from typing import Any

import anyio
import pytest
from typer.testing import CliRunner

from dom0.cli import app
from tests.native.guests import needs_guests

ROOT = Path(__file__).parent.parent


def test_generated_pages_say_what_the_code_says() -> None:
    check = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert check.stdout == ""
    assert check.returncode == 0


def test_relative_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_names_only_make_targets_that_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`make (\w+)`|^make (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert {first or second for first, second in named} <= targets
    assert named


@pytest.mark.parametrize(
    "file", sorted([*ROOT.glob("scenarios/*.yaml"), *ROOT.glob("examples/*.yaml")], key=str)
)
def test_every_shipped_scenario_is_right(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if file.name == "native.yaml":
        needs_guests()
    monkeypatch.syspath_prepend(str(ROOT))
    result = CliRunner().invoke(app, ["check", str(file)])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
@pytest.mark.parametrize("file", sorted(ROOT.glob("examples/*.yaml"), key=str))
def test_every_example_runs(file: Path, loop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    copy = tmp_path / file.name
    copy.write_text(file.read_text())
    result = CliRunner().invoke(app, ["launch", str(copy), "--loop", loop])
    assert result.exit_code == 0, result.output


def shown(page: str, language: str) -> str:
    """The first block of a language on a page of docs/."""
    found = re.search(rf"```{language}\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)
    assert found is not None
    return found[1]


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_the_scenario_on_driver_domains_runs_as_it_stands(loop: str, tmp_path: Path) -> None:
    file = tmp_path / "served.yaml"
    file.write_text(shown("driver-domains.md", "yaml"))
    for command in (["check", str(file)], ["launch", str(file), "--loop", loop]):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_the_program_on_driver_domains_runs_as_it_stands(loop: str, tmp_path: Path) -> None:
    body = shown("driver-domains.md", "python")
    names: dict[str, Any] = {"tmp_path": tmp_path}
    exec(f"async def main():\n{indent(body, '    ')}", names)
    anyio.run(names["main"], backend=loop)
