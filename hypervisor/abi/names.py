"""Names of numbers, for reports, counters and the coverage table: read off the ABI modules themselves."""

import re
from types import ModuleType


def numbers(module: ModuleType, prefix: str, but: str = "$^") -> dict[str, int]:
    """The constants of a module whose names start with `prefix`, in the header's order.

    `but` is a regular expression: names that it matches right after the prefix are left out.
    """
    return {
        name: value
        for name, value in vars(module).items()
        if name.startswith(prefix) and isinstance(value, int) and not re.match(but, name[len(prefix) :])
    }


def names(module: ModuleType, prefix: str, but: str = "$^") -> dict[int, str]:
    """The name without `prefix` of each number; of two names for one number, the first in the header."""
    found: dict[int, str] = {}
    for name, value in numbers(module, prefix, but).items():
        found.setdefault(value, name.removeprefix(prefix))
    return found
