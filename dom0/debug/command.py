"""`domzero debug`: look into machines that run."""

from enum import IntEnum
from typing import Annotated

import typer

from dom0.debug.audit import MachineAudit
from dom0.debug.client import NoAnswer, ask_for_audit
from dom0.debug.places import running_machines, socket_of

app = typer.Typer(name="debug", help="Look into machines that run.", no_args_is_help=True)


class Status(IntEnum):
    """Exit status of `domzero debug audit`."""

    AGREES = 0
    FOUND = 1
    NO_MACHINE = 2


@app.callback()
def debug() -> None:
    """Look into machines that run."""


@app.command()
def audit(
    pid: Annotated[
        int | None,
        typer.Argument(metavar="[PID]", help="the process that runs the machine; all of yours if none"),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="print what was found as JSON, a line for each machine")
    ] = False,
) -> None:
    """Let running machines count again whatever they count, and walk all page tables of native guests.

    Status 0 if everything agrees, 1 if something does not, 2 if there is no machine.
    """
    status = Status.NO_MACHINE
    for number in [pid] if pid is not None else list(running_machines()):
        try:
            found = ask_for_audit(number)
        except NoAnswer as error:
            if pid is not None:
                typer.echo(error, err=True)
            else:
                socket_of(number).unlink(missing_ok=True)
            continue
        typer.echo(found.model_dump_json() if json else "\n".join(_lines(found)))
        if not found.agrees:
            status = Status.FOUND
        elif status is Status.NO_MACHINE:
            status = Status.AGREES
    if status is Status.NO_MACHINE and pid is None:
        typer.echo("no machine of yours runs", err=True)
    raise typer.Exit(status)


def _lines(found: MachineAudit) -> list[str]:
    lines = [f"machine {found.pid}: " + _said(found.machine, "frames, events and grants")]
    lines += [f"  {line}" for line in found.machine]
    for domain in found.page_tables:
        what = domain.not_done or _said(domain.found, "page tables")
        lines.append(f"machine {found.pid}, {domain.name} (domain {domain.domid}): {what}")
        lines += [f"  {line}" for line in domain.found]
    return lines


def _said(found: list[str], what: str) -> str:
    return f"{what} agree" if not found else f"{what}: {len(found)} findings"
