"""`domzero`: launch or check a scenario, boot a native kernel, look into machines that run, print the schema that
editors use, serve XenStore alone.
"""

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, NoReturn

import anyio
import typer

from dom0.boot.command import boot
from dom0.debug.command import app as debug
from dom0.launch.machine import raise_open_files_limit
from dom0.report.files import prepare, write_report
from dom0.scenario.model import Loop, Scenario

EXIT_FAILED = 1
EXIT_BAD_FILE = 2
LOG_COLUMNS = 132
"""How wide the report is where no terminal says how wide it may be."""

app = typer.Typer(
    name="domzero",
    help="A Xen you can pip install.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_File = Annotated[Path, typer.Argument(metavar="FILE", help="a scenario in YAML")]


@app.command()
def launch(
    file: _File,
    report: Annotated[
        Path | None, typer.Option("--json", metavar="REPORT", help="write the report here")
    ] = None,
    loop: Annotated[Loop | None, typer.Option(help="the event loop, whatever the file says")] = None,
) -> None:
    """Run a scenario; status 0 only if every guest ended well and every expectation held."""
    # What only this command needs: whoever boots a kernel shall not wait for it.
    from rich.console import Console  # noqa: PLC0415

    from dom0.launch.run import launch_scenario  # noqa: PLC0415
    from dom0.report.render import print_report  # noqa: PLC0415

    scenario = _load(file)
    if loop is not None:
        scenario = scenario.model_copy(update={"loop": loop})
    console = Console()
    if not console.is_terminal:
        console = Console(width=LOG_COLUMNS)
    try:
        if report is not None:
            prepare(report)
        result = launch_scenario(scenario, file.parent, console)
        print_report(result, console)
        if report is not None:
            write_report(report, result)
    except OSError as error:
        _fail(error)
    raise typer.Exit(0 if result.ok else EXIT_FAILED)


app.command()(boot)
app.add_typer(debug)


@app.command()
def check(file: _File) -> None:
    """Check a scenario without running it: keys, programs, arguments, backends and their settings."""
    scenario = _load(file)
    disks = sum(len(guest.disks) for guest in scenario.guests)
    typer.echo(f"{file}: {scenario.name}: {len(scenario.guests)} guests, {disks} disks: nothing wrong")


@app.command()
def schema() -> None:
    """Print the JSON Schema of scenario files, for editors."""
    typer.echo(json.dumps(Scenario.model_json_schema(), indent=2))


@app.command()
def xenstored(
    socket: Annotated[
        Path, typer.Option("--socket", metavar="PATH", help="the Unix socket; only you can open it")
    ],
    loop: Annotated[Loop, typer.Option(help="the event loop")] = Loop.ASYNCIO,
) -> None:
    """Serve a fresh XenStore on a Unix socket until interrupted: to test clients with no hypervisor."""
    from dom0.xenstored import serve_xenstore  # noqa: PLC0415 - as above

    try:
        anyio.run(partial(serve_xenstore, socket, log=typer.echo), backend=loop.value)
    except OSError as error:
        _fail(error)


def _load(file: Path) -> Scenario:
    from dom0.scenario.load import load_scenario  # noqa: PLC0415 - as above
    from dom0.scenario.source import ScenarioError  # noqa: PLC0415 - as above

    try:
        return load_scenario(file)
    except ScenarioError as error:
        for problem in error.problems:
            typer.echo(str(problem), err=True)
        raise typer.Exit(EXIT_BAD_FILE) from error


def _fail(error: OSError) -> NoReturn:
    where = f"{error.filename}: " if error.filename else ""
    typer.echo(f"{where}{error.strerror or error}", err=True)
    raise typer.Exit(EXIT_FAILED) from error


def main() -> None:
    """The console script. A scenario's `module:name` is looked for where one stands, too."""
    sys.path.insert(0, os.getcwd())
    raise_open_files_limit()
    app()
