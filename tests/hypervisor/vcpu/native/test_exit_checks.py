"""The engine's blocks look by themselves whether to stop, as test_slices tries; here, that they do so cheaply."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from pathlib import Path

from hypervisor.vcpu.native import exit_checks
from hypervisor.vcpu.native.library import library
from hypervisor.vcpu.native.machine_code import address
from tests.hypervisor.vcpu.native.guest_rig import SYSCALL, Rig

CALL = re.compile(rb"\x48\xbf.{8}\x33\xf6\xe8", re.DOTALL)
COMPARISON = re.compile(rb"\x83\x7d\xf0\x00\x7d\x0b\xe8.{4}\x66\x0f\x1f\x44\x00\x00", re.DOTALL)
LOOKED_AT_BYTES = 1 << 20


def test_the_function_of_the_build_that_we_know_is_replaced() -> None:
    Rig()
    function = library().held.helper_check_exit_request_x86_64
    assert exit_checks.make_cheap(library())
    assert ctypes.string_at(address(function), 2) == b"\xff\x25"


def test_a_block_that_was_executed_compares_and_does_not_call() -> None:
    """In a process of its own: only the first engine's buffer is certain to be near the library."""
    program = "from tests.hypervisor.vcpu.native.test_exit_checks import look; look()"
    subprocess.run([sys.executable, "-c", program], check=True)


def look() -> None:
    rig = Rig()
    rig.run(b"\xeb\x00" * 20 + SYSCALL)
    with Path("/proc/self/maps").open() as maps:
        executable = [line.split()[0].split("-") for line in maps if " rwxp " in line]
    ranges = [(int(start, 16), int(end, 16)) for start, end in executable]
    (start,) = [start for start, end in ranges if end - start > LOOKED_AT_BYTES]
    code = ctypes.string_at(start, LOOKED_AT_BYTES)
    assert len(COMPARISON.findall(code)) > 20
    assert not CALL.findall(code)
