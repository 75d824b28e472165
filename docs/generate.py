"""Writes the pages of docs/ that are made from the code: `python docs/generate.py`; with --check, only compares.

abi.md lists every operation that Xen's headers define, whether this hypervisor does it, and who may ask for it;
it is made from the ABI modules and the privilege table. xenbus.md is drawn from the handshake's transition table,
and scenario.schema.json is what editors complete scenario files from.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from dom0.scenario.model import Scenario
from hypervisor.abi import xen
from hypervisor.abi.operations import HYPERCALLS, OPERATIONS
from hypervisor.privileges import NO_OPERATION, PRIVILEGES
from hypervisor.pv.cpu_hypercalls import CPU_HYPERCALLS
from kernel.xenbus.diagram import document as xenbus_page

HERE = Path(__file__).parent

LOCAL = {
    *CPU_HYPERCALLS,
    xen.HYPERVISOR_mmu_update,
    xen.HYPERVISOR_mmuext_op,
    xen.HYPERVISOR_update_va_mapping,
    xen.HYPERVISOR_update_va_mapping_otherdomain,
}
"""hypercalls of native guests that never leave their own process (hypervisor/pv/hypercalls.py)"""


def abi_page() -> str:
    """The ABI coverage table, in Markdown."""
    numbers = {name: number for number, name in HYPERCALLS.items()}
    done, known = _count(numbers)
    lines = [
        "# ABI coverage",
        "",
        "Made from the code by `make docs`. What is not done returns `-ENOSYS`. What is **local** a native guest's",
        "own process does (`hypervisor/pv/`): page tables and the processor are that guest's alone.",
        f"Done: {done} of the {known} operations that the headers of Xen 4.17 define for these hypercalls.",
        "",
        "| hypercall | number | done | operations | who may |",
        "|---|---|---|---|---|",
        *(_hypercall_row(number, HYPERCALLS[number]) for number in sorted(HYPERCALLS)),
        "",
    ]
    for name in sorted(OPERATIONS, key=lambda name: numbers[name]):
        lines += _operations(numbers[name], name)
    return "\n".join(lines)


def _count(numbers: Mapping[str, int]) -> tuple[int, int]:
    done = sum(
        operation in PRIVILEGES.get(numbers[name], {})
        for name, known in OPERATIONS.items()
        for operation in known
    )
    return done, sum(len(known) for known in OPERATIONS.values())


def _hypercall_row(number: int, name: str) -> str:
    rights = PRIVILEGES.get(number)
    if rights is None:
        done, who = ("**local**", "native guests") if number in LOCAL else ("no", "")
        return f"| `{name}` | {number} | {done} | |{who and f' {who}'} |"
    known = OPERATIONS.get(name)
    count = f"{sum(operation in rights for operation in known)} of {len(known)}" if known else ""
    who = sorted({who.value for operation, who in rights.items()})
    return f"| `{name}` | {number} | **yes** | {count} | {'; '.join(who)} |"


def _operations(number: int, name: str) -> Iterator[str]:
    rights = PRIVILEGES.get(number)
    if rights is None:
        return
    yield from (f"## {name}", "", "| operation | number | done | who may |", "|---|---|---|---|")
    for operation, label in sorted(OPERATIONS[name].items()):
        who = rights.get(operation)
        inside = who is not None and (operation != NO_OPERATION or name not in ("domctl", "sysctl"))
        yield f"| `{label}` | {operation} | {'**yes**' if inside else 'no'} | {who.value if who and inside else ''} |"
    yield ""


def schema_page() -> str:
    """The JSON Schema of scenario files."""
    return json.dumps(Scenario.model_json_schema(), indent=2) + "\n"


PAGES: Mapping[str, Callable[[], str]] = {
    "abi.md": abi_page,
    "xenbus.md": xenbus_page,
    "scenario.schema.json": schema_page,
}


def stale() -> list[str]:
    """The names of pages that do not say what the code says."""
    return [
        name
        for name, page in PAGES.items()
        if not (HERE / name).exists() or (HERE / name).read_text(encoding="utf-8") != page()
    ]


def main() -> int:
    """Writes all pages, or with --check names those that are stale and returns 1."""
    if "--check" in sys.argv[1:]:
        found = stale()
        for name in found:
            print(f"docs/{name} is not what the code says; run make docs")
        return 1 if found else 0
    for name, page in PAGES.items():
        (HERE / name).write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
