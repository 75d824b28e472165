"""`python -m benchmarks [NAME …]`: runs benchmarks, prints a table, writes benchmarks/out/results.json."""

import importlib
import sys
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from benchmarks.results import OUTPUT, Result, write_results
from dom0.launch.machine import raise_open_files_limit

SUITES = (
    "ring",
    "block_path",
    "hypercalls",
    "boot",
    "process_path",
    "process_start",
    "native_guests",
    "native_boot",
    "native_engine",
)


def run(names: list[str], console: Console) -> Iterator[Result]:
    """Runs the named suites one after the other; each module has `measure() -> Iterator[Result]`."""
    for name in names:
        with console.status(f"measuring {name}"):
            yield from importlib.import_module(f"benchmarks.{name}").measure()


def show(results: list[Result], console: Console) -> None:
    """Prints the table of figures, each with its bar and verdict."""
    table = Table(box=None, header_style="dim")
    for column, justify in (
        ("what", "left"),
        ("value", "right"),
        ("unit", "left"),
        ("ratio", "right"),
        ("bar", "right"),
        ("", "left"),
    ):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for result in results:
        verdict = {True: "[green]ok", False: "[red]missed", None: ""}[result.ok]
        ratio = "" if result.ratio is None else f"{result.ratio:.3f}"
        table.add_row(
            result.name,
            f"{result.value:,.1f}",
            result.unit,
            ratio,
            "" if result.bar is None else f"{result.bar:g}",
            verdict,
        )
    console.print(table)


def main() -> int:
    """Runs the suites named on the command line, or all; 1 if a bar was missed."""
    raise_open_files_limit()
    console = Console(width=140 if not sys.stdout.isatty() else None)
    names = sys.argv[1:] or list(SUITES)
    if unknown := set(names) - set(SUITES):
        console.print(f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(SUITES)}")
        return 2
    results = list(run(names, console))
    show(results, console)
    write_results(results)
    console.print(f"written: {OUTPUT.relative_to(OUTPUT.parents[2])}")
    return 1 if any(result.ok is False for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
