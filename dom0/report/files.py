"""The report as a file."""

import os
from pathlib import Path

from dom0.report.model import RunReport


def prepare(file: Path) -> None:
    """To be called before anything runs: raises OSError if the report could not be written."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.open("a").close()


def write_report(file: Path, report: RunReport) -> None:
    """Whole, or as it was before: the next interrupt ends this program wherever it is. A device or a pipe is written
    to as it is. Raises OSError.
    """
    text = report.model_dump_json(indent=2) + "\n"
    if not file.is_file():
        file.write_text(text, encoding="utf-8")
        return
    beside = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)
