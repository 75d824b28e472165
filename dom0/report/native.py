"""What a native domain has counted in its own process, by name (hypervisor/pv/tally.py)."""

from typing import Final

from dom0.report.model import NativeReport
from hypervisor.abi.operations import HYPERCALLS
from hypervisor.pv.tally import TRAPS, Tally

VECTOR_NAMES: Final = {
    0: "divide_error",
    1: "debug",
    2: "nmi",
    3: "int3",
    4: "overflow",
    5: "bounds",
    6: "invalid_opcode",
    7: "device_not_available",
    8: "double_fault",
    10: "invalid_tss",
    11: "segment_not_present",
    12: "stack_segment",
    13: "general_protection",
    14: "page_fault",
    16: "x87_error",
    17: "alignment_check",
    18: "machine_check",
    19: "simd_error",
} | {vector: f"int_{vector:#x}" for vector in range(0x20, TRAPS)}
"""exceptions by vector, and the software interrupts of the rest"""


def native_report(tally: Tally) -> NativeReport:
    """A section of the domain's report."""
    mean_us = {
        name: round(tally.nanoseconds[number] / tally.hypercalls[number] / 1000, 2)
        for number, name in HYPERCALLS.items()
        if tally.hypercalls[number]
    }
    traps = {name: tally.traps[vector] for vector, name in VECTOR_NAMES.items() if tally.traps[vector]}
    return NativeReport(
        mean_us=mean_us,
        traps=dict(sorted(traps.items(), key=lambda item: -item[1])),
        syscalls=tally.syscalls,
        slices=tally.slices,
    )


def hypercall_counts(tally: Tally) -> dict[str, int]:
    """How often each hypercall was made, entries of multicalls too."""
    return {name: tally.hypercalls[number] for number, name in HYPERCALLS.items() if tally.hypercalls[number]}
