"""Our own kernel tries what a hostile guest would: each case on the engine, with its pages in no order.

A case prints a line for each thing that it tries, and powers off. Whatever comes of it, the rules of paging hold
afterwards.
"""

from pathlib import Path

import pytest

from hypervisor.abi.sched import SHUTDOWN_poweroff
from tests.native.kernels.in_process import execute

# How many things each case tries.
CASES = {
    "hello 42 7": 10,
    "map_tables_writable": 49,
    "pin_writable_pages": 15,
    "pin_what_maps_tables": 15,
    "wrong_types": 38,
    "large_pages": 12,
    "linear_tables": 16,
    "deep_recursion": 3,
    "foreign_frames": 365,
    "hypervisor_frames": 51,
    "handles": 167,
    "update_requests": 25,
    "stale_translations": 45,
    "written_entries": 21,
    "code": 12,
    "descriptors": 78,
    "local_descriptors": 18,
    "bases": 25,
    "callbacks": 50,
    "user_mode": 52,
    "compat_mode": 20,
    "no_callbacks": 12,
    "iret": 29,
    "privileged": 102,
    "stepping": 7,
    "clock": 10,
    "timers": 44,
    "smp": 9,
    "ipi": 7,
    "smp_stale": 7,
    "bad_contexts": 36,
    "vcpu_state": 10,
    "places": 77,
    "batches": 8,
    "strict_m2p": 12,
    "breakpoints": 5,
    "nmi": 9,
    "memory": 46,
    "grant_maps 0 8 9": 67,
}

CRASHES = (
    "stack_in_hole",
    "stack_above_hole",
    "stack_at_zero",
    "stack_in_table",
    "no_handler",
    "handler_in_hole",
    "endless_faults",
    "iret_without_frame",
    "iret_frame_in_hole",
    "user_without_root",
    "bad_root_loaded",
)


@pytest.mark.parametrize("case", CASES)
def test_the_kernel_gets_what_xen_would_give_it(case: str, kernel: Path) -> None:
    outcome = execute(kernel, case, vcpus=2)
    assert [line for line in outcome.lines if not line.startswith("ok: ")] == [
        f"{CASES[case]} checks, 0 failed"
    ]
    assert (outcome.shutdown, outcome.crash) == (SHUTDOWN_poweroff, "")
    assert not outcome.audit


def test_what_is_computed_is_right(kernel: Path) -> None:
    mask = (1 << 64) - 1
    words = [0] * 8192
    expected = 0x243F6A8885A308D3
    for _ in range(3):
        for at, word in enumerate(words):
            expected = ((expected << 7 | expected >> 57) & mask) ^ (word + at & mask)
            words[at] = word + expected * 0x9E3779B97F4A7C15 & mask
    assert f"result {expected:x}" in execute(kernel, "compute 3").lines


@pytest.mark.parametrize("case", CRASHES)
def test_the_domain_ends_that_has_left_nowhere_to_go(case: str, kernel: Path) -> None:
    outcome = execute(kernel, case)
    assert outcome.shutdown is None
    assert outcome.crash.startswith("vcpu 0 at ")
    assert "went on" not in outcome.lines
    assert not [line for line in outcome.lines if line.startswith("FAILED")]
    assert not outcome.audit


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("case", ["fuzz_tables", "fuzz_both", "fuzz_hypercalls", "fuzz_operations"])
def test_nonsense_breaks_no_rule(case: str, seed: int, kernel: Path) -> None:
    outcome = execute(kernel, f"{case} {seed} 3000", vcpus=2)
    assert not outcome.crash.startswith(("the process", "not finished"))
    assert not outcome.audit
