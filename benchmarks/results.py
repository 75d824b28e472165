"""One measured figure, and the file that later tools read."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

OUTPUT = Path(__file__).parent / "out" / "results.json"


@dataclass(frozen=True, slots=True)
class Result:
    """A figure; `ratio` compares it within the run, `bar` is what the ratio must reach (or stay under)."""

    name: str
    value: float
    unit: str
    ratio: float | None = None
    bar: float | None = None
    ok: bool | None = None

    @classmethod
    def at_least(cls, name: str, value: float, unit: str, ratio: float, bar: float) -> "Result":
        """A figure whose ratio must be `bar` or more."""
        return cls(name, value, unit, ratio, bar, ratio >= bar)

    @classmethod
    def at_most(cls, name: str, value: float, unit: str, ratio: float, bar: float) -> "Result":
        """A figure whose ratio must be `bar` or less."""
        return cls(name, value, unit, ratio, bar, ratio <= bar)


def write_results(results: Sequence[Result], file: Path = OUTPUT) -> None:
    """Writes the list that `benchmarks/out/results.json` holds."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rounded = [
        {key: round(value, 4) if isinstance(value, float) else value for key, value in asdict(result).items()}
        for result in results
    ]
    file.write_text(json.dumps(rounded, indent=2) + "\n")
