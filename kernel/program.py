"""A program on its kernel, from boot to SCHEDOP_shutdown: what a Python domain executes."""

from __future__ import annotations

import traceback
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import anyio

from hypervisor.abi.sched import SHUTDOWN_crash
from kernel.errors import KernelError
from kernel.kernel import Kernel
from kernel.ledger import owned_by
from kernel.platform import Platform
from kernel.xenstore.errors import StoreConnectionBroken, StoreError

Program = Callable[..., Awaitable[int | None]]
"""`async def main(kernel, **args)`; returns the exit code, None for 0."""

EXIT_CODE_PATH: Final = "data/exit-code"
REPORT_FOLDER: Final = "data/report"
"""Where the reports of a kernel's drivers are left for the toolstack, a node each."""

LAST_WORDS_SECONDS: Final = 1.0
"""How long the store may take to hear of the end."""


async def run_program(platform: Platform, program: Program, args: Mapping[str, Any] | None = None) -> int:
    """Boot, run `program(kernel, **args)`, close its devices, name leaked grants, shut the domain down;
    returns the reason.

    The reason is SHUTDOWN_crash if the program, or a task that it started, raised (in a task, sys.exit is an
    error, too): the traceback goes to the hypervisor's console. The exit code of a program that returned is
    left in data/exit-code, and what its drivers have counted in data/report.
    """
    kernel: Kernel | None = None
    reason = SHUTDOWN_crash  # unless the program says otherwise
    try:
        async with Kernel.boot(platform) as kernel:
            reason = await _execute(kernel, program, args or {})
    except BaseException as error:
        if kernel is None or not _is_its_own(error):
            raise
        kernel.log(traceback.format_exc())
        reason = SHUTDOWN_crash
    kernel.report_leaks()
    kernel.hypercalls.sched_shutdown(reason)
    return reason


async def _execute(kernel: Kernel, program: Program, args: Mapping[str, Any]) -> int:
    """Run the program, or cancel it when the toolstack asks for an end; then end what it used, in order."""
    request = kernel.shutdown_requested
    last_words: dict[str, str] = {}
    try:
        with anyio.CancelScope() as scope, request.calling(scope.cancel), owned_by("program"):
            code = await _exit_code(program(kernel, **args))
            last_words[EXIT_CODE_PATH] = str(code)
        reason = request.reason
    except BaseException as error:
        if not _is_its_own(error):
            raise
        kernel.log(traceback.format_exc())
        reason = SHUTDOWN_crash
    await kernel.close_devices()
    last_words |= {f"{REPORT_FOLDER}/{name}": report() for name, report in kernel.reports.items()}
    await _tell_the_store(kernel, last_words)
    return reason


async def _exit_code(running: Awaitable[object]) -> int:
    """What the program returned, or handed to sys.exit, which must not end the loop that others run in.

    Raises BadExitCode.
    """
    try:
        code = await running
    except SystemExit as leaving:
        code = leaving.code
    if code is not None and not isinstance(code, int):
        raise BadExitCode(code)
    return int(code or 0)


def _is_its_own(error: BaseException) -> bool:
    """Whether the program has failed, by an exception or by sys.exit in a task of its own, and nobody else
    wants it to end.
    """
    if isinstance(error, BaseExceptionGroup):
        return all(map(_is_its_own, error.exceptions))
    return isinstance(error, Exception | SystemExit)


class BadExitCode(KernelError):
    """A program ended with something that is no exit code."""

    def __init__(self, found: object) -> None:
        super().__init__(f"the program returned {found!r}, expected an int or None")
        self.found = found


async def _tell_the_store(kernel: Kernel, values: Mapping[str, str]) -> None:
    """Leave something for the toolstack, if the store still works and lets us."""
    try:
        with anyio.move_on_after(LAST_WORDS_SECONDS):
            await kernel.store.write_many(values)
    except (StoreError, StoreConnectionBroken) as error:
        kernel.log(f"{', '.join(values)}: {error}")
