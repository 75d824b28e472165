"""The command line: what it prints, where, and its exit status."""

import json
import os
from pathlib import Path

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml
from typer.testing import CliRunner, Result

from dom0.cli import app
from dom0.report.model import RunReport

GOOD = """\
name: good
output: out
guests:
  - name: a
    program: hello
"""
FAILING = GOOD + "    expect: {exit_code: 3}\n"
BAD = GOOD + "    memroy: 5\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "good.yaml").write_text(GOOD)
    (tmp_path / "failing.yaml").write_text(FAILING)
    (tmp_path / "bad.yaml").write_text(BAD)
    return tmp_path


def domzero(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.mark.parametrize(("file", "status"), [("good", 0), ("failing", 1), ("bad", 2), ("none", 2)])
def test_the_status_says_how_it_went(folder: Path, file: str, status: int) -> None:
    assert domzero("launch", folder / f"{file}.yaml").exit_code == status


@pytest.mark.parametrize(("file", "status"), [("good", 0), ("failing", 0), ("bad", 2), ("none", 2)])
def test_a_check_runs_nothing(folder: Path, file: str, status: int) -> None:
    assert domzero("check", folder / f"{file}.yaml").exit_code == status
    assert not (folder / "out").exists()


def test_a_check_of_a_right_file_says_what_it_saw(folder: Path) -> None:
    result = domzero("check", folder / "good.yaml")
    assert result.stdout == f"{folder}/good.yaml: good: 1 guests, 0 disks: nothing wrong\n"


@pytest.mark.parametrize("command", ["check", "launch"])
def test_complaints_go_to_standard_error(folder: Path, command: str) -> None:
    result = domzero(command, folder / "bad.yaml")
    assert result.stdout == ""
    assert result.stderr == (
        f"{folder}/bad.yaml:6: guests[0].memroy: found the unknown key 'memroy'; expected 'memory', perhaps\n"
    )


def test_a_file_that_is_not_there(folder: Path) -> None:
    result = domzero("check", folder / "none.yaml")
    assert (
        result.stderr
        == f"{folder}/none.yaml: found No such file or directory; expected a file that can be read\n"
    )


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_the_loop_of_the_command_line_counts(folder: Path, loop: str) -> None:
    result = domzero("launch", folder / "good.yaml", "--loop", loop)
    assert f"on {loop}\n" in result.stdout
    assert domzero("launch", folder / "good.yaml", "--loop", "curio").exit_code == 2


@pytest.mark.parametrize(("file", "ok"), [("good", True), ("failing", False)])
def test_the_report_as_json(folder: Path, file: str, ok: bool) -> None:
    target = folder / "new" / "report.json"
    assert domzero("launch", folder / f"{file}.yaml", "--json", target).exit_code == (0 if ok else 1)
    report = RunReport.model_validate_json(target.read_text())
    assert (report.scenario, report.ok) == ("good", ok)
    schema = RunReport.model_json_schema(mode="serialization")
    jsonschema.validate(json.loads(target.read_text()), schema, cls=jsonschema.Draft202012Validator)


def test_a_report_that_cannot_be_written_is_told_before_anything_runs(folder: Path) -> None:
    (folder / "file").write_text("")
    for target in (folder / "file" / "report.json", folder):
        result = domzero("launch", folder / "good.yaml", "--json", target)
        assert result.exit_code == 1
        assert result.stderr.startswith(f"{target.parent if target != folder else target}: ")
        assert not (folder / "out").exists()


def test_an_output_folder_that_cannot_be_made(folder: Path) -> None:
    (folder / "out").write_text("in the way")
    result = domzero("launch", folder / "good.yaml")
    assert result.exit_code == 1
    assert result.stderr == f"{folder}/out: File exists\n"


def test_relative_paths_start_at_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    assert domzero("launch", os.path.relpath(folder / "good.yaml")).exit_code == 0
    assert (folder / "out" / "a.log").read_text() == "Hello from a, domain 1\n"


def test_the_schema_is_one_and_takes_a_right_file() -> None:
    schema = json.loads(domzero("schema").stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(yaml.safe_load(GOOD), schema, cls=jsonschema.Draft202012Validator)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(BAD), schema, cls=jsonschema.Draft202012Validator)


def test_without_a_command_there_is_help() -> None:
    result = domzero()
    for command in ("launch", "check", "schema", "xenstored"):
        assert command in result.output


def test_a_socket_that_cannot_be_made(folder: Path) -> None:
    for path, says in (
        (folder / "none" / "socket", "No such file or directory"),
        (folder / "good.yaml", "Address already in use"),
        (folder / ("x" * 150), "AF_UNIX path too long"),
    ):
        result = domzero("xenstored", "--socket", path)
        assert result.exit_code == 1
        assert result.stderr == f"{path}: {says}\n"
    assert (folder / "good.yaml").read_text() == GOOD
