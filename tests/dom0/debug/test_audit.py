"""`domzero debug audit`: what machines answer, and what they do not."""

import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import anyio
import pytest
from typer.testing import CliRunner

from dom0.cli import app
from dom0.debug.audit import DomainAudit, MachineAudit, audit_machine
from dom0.debug.client import NoAnswer, ask_for_audit
from dom0.debug.places import make_sockets_folder, running_machines, socket_of, sockets_folder
from dom0.debug.server import answering
from dom0.embedding import running_machine
from hypervisor.errors import Busy

PID = 4711


@dataclass
class Native:
    """A native guest's process."""

    found: list[str] = field(default_factory=list)
    fails: bool = False

    async def audit(self) -> list[str]:
        if self.fails:
            raise Busy("something else")
        return self.found


def machine_of(*natives: Native | None, found: list[str] | None = None, paused: int = 0) -> SimpleNamespace:
    guests: dict[_Guest, None] = {}
    for number, native in enumerate(natives, 1):
        guests[_Guest(number, native, SimpleNamespace(pause_count=paused))] = None
    return SimpleNamespace(core=SimpleNamespace(audit=lambda: found or []), guests=guests, log=print)


@dataclass(eq=False)
class _Guest:
    domid: int
    native: Native | None
    domain: SimpleNamespace

    @property
    def name(self) -> str:
        return f"guest{self.domid}"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


@pytest.mark.anyio
async def test_python_guests_have_no_page_tables_to_walk() -> None:
    audit = await audit_machine(machine_of(None, Native()), PID)
    assert audit == MachineAudit(pid=PID, machine=[], page_tables=[DomainAudit(domid=2, name="guest2")])
    assert audit.agrees


@pytest.mark.anyio
async def test_findings_and_failures_are_told() -> None:
    audit = await audit_machine(
        machine_of(Native(["mfn 1 is odd"]), Native(fails=True), found=["frame"]), PID
    )
    assert audit.machine == ["frame"]
    assert [domain.found for domain in audit.page_tables] == [["mfn 1 is odd"], []]
    assert audit.page_tables[1].not_done == "busy: something else"
    assert not audit.agrees


@pytest.mark.anyio
async def test_paused_guests_are_left_alone() -> None:
    audit = await audit_machine(machine_of(Native(["never asked"]), paused=1), PID)
    assert audit.page_tables[0].not_done == "it is paused"
    assert audit.agrees


@pytest.mark.anyio
async def test_a_running_machine_answers(tmp_path: Path) -> None:
    with anyio.fail_after(30):
        async with running_machine(tmp_path / "output") as machine, answering(machine):
            (pid,) = running_machines()
            audit = await anyio.to_thread.run_sync(ask_for_audit, pid)
            assert audit == MachineAudit(pid=pid, machine=[], page_tables=[])
            assert (await anyio.to_thread.run_sync(ask_for_audit, pid)).agrees
    assert list(running_machines()) == []


@pytest.mark.anyio
@pytest.mark.parametrize("asked", [b"\n", b"audi\n", b"audit and more\n", b"\xff" * 100])
async def test_other_words_get_no_answer(tmp_path: Path, asked: bytes) -> None:
    with anyio.fail_after(30):
        async with answering(machine_of(Native())):
            (pid,) = running_machines()
            async with await anyio.connect_unix(socket_of(pid)) as stream:
                await stream.send(asked)
                with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                    await stream.receive()
            assert (await anyio.to_thread.run_sync(ask_for_audit, pid)).agrees


@pytest.mark.anyio
async def test_a_machine_runs_without_where_no_socket_can_be_made(tmp_path: Path) -> None:
    sockets_folder().write_text("not a folder")
    said: list[str] = []
    machine = machine_of()
    machine.log = said.append
    async with answering(machine):
        assert len(said) == 1
    assert "no `domzero debug`" in said[0]


def test_folders_that_others_may_write_to_are_not_used() -> None:
    folder = make_sockets_folder()
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    with pytest.raises(PermissionError):
        make_sockets_folder()


def test_answers_that_are_none() -> None:
    with pytest.raises(NoAnswer):
        ask_for_audit(PID)
    make_sockets_folder()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(socket_of(PID)))
        with pytest.raises(NoAnswer):
            ask_for_audit(PID)


def test_command_without_machines() -> None:
    assert CliRunner().invoke(app, ["debug", "audit"]).exit_code == 2
    result = CliRunner().invoke(app, ["debug", "audit", str(PID)])
    assert result.exit_code == 2
    make_sockets_folder()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(socket_of(PID)))
    assert CliRunner().invoke(app, ["debug", "audit"]).exit_code == 2
    assert not socket_of(PID).exists()


@pytest.mark.parametrize(("found", "status"), [([], 0), (["mfn 1 is odd"], 1)])
def test_command_says_what_was_found(monkeypatch: pytest.MonkeyPatch, found: list[str], status: int) -> None:
    audit = MachineAudit(pid=PID, machine=[], page_tables=[DomainAudit(domid=3, name="linux", found=found)])
    monkeypatch.setattr("dom0.debug.command.ask_for_audit", lambda pid: audit)
    result = CliRunner().invoke(app, ["debug", "audit", str(PID)])
    assert result.exit_code == status
    assert "frames, events and grants agree" in result.output
    assert ("mfn 1 is odd" in result.output) == bool(found)
    result = CliRunner().invoke(app, ["debug", "audit", str(PID), "--json"])
    assert MachineAudit.model_validate_json(result.output) == audit
