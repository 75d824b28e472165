"""Names of numbers, for reports, counters and the coverage table: read off the modules themselves."""

from types import ModuleType


def numbers(module: ModuleType, prefix: str) -> dict[str, int]:
    """The constants of an ABI module whose names start with `prefix`, in the header's order."""
    return {
        name: value
        for name, value in vars(module).items()
        if name.startswith(prefix) and isinstance(value, int)
    }


def names(module: ModuleType, prefix: str) -> dict[int, str]:
    """The name without `prefix` of each number; of two names for one number, the first in the header."""
    found: dict[int, str] = {}
    for name, value in numbers(module, prefix).items():
        found.setdefault(value, name.removeprefix(prefix))
    return found
