"""A guest program in a process of its own: what is sent there, and what is done with it.

The process is forked from one that has imported what every guest needs. It maps its memory, gives up every
right that it does not need, and only then looks at the program, which may be anybody's.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import cloudpickle  # type: ignore[import-untyped]

from hypervisor.vcpu.process.confinement import Confinement, confine
from hypervisor.vcpu.process.execution import Image
from hypervisor.vcpu.process.idling import run
from hypervisor.vcpu.process.platform import attach
from kernel.errors import KernelError
from kernel.kernel import Kernel
from kernel.program import run_program

PRELOADED: Final = (
    "anyio._backends._asyncio",
    "anyio._backends._trio",
    "backends.block.backend",
    "backends.block.file",
    "dom0.isolation",
    "frontends.block.disk",
    "frontends.console.attach",
    "guests.block_exerciser",
    "kernel.program",
)
"""what the processes of guests find imported"""

OPEN_FILES: Final = 1024
DATA_BYTES: Final = 1 << 30
"""what a program may use beside the memory of its domain"""

Main = Callable[[Kernel], Awaitable[int | None]]


class NotSendable(Exception):
    """A program, or something that it refers to, cannot be sent to a process."""


class FileNotThere(KernelError):
    """A process can be let to files that are there; the folder of one that is not would be too much."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"{path} is not there: make it before a domain in a process of its own is to open it"
        )
        self.path = path


@dataclass(frozen=True, slots=True)
class _Order:
    """What a process is told. program: a pickled Main. origin_ns: CLOCK_MONOTONIC when system time was 0.
    outspoken: whether it says which rights this system does not let it give up.
    """

    loop: str
    origin_ns: int
    confinement: Confinement
    outspoken: bool
    program: bytes


def isolated_image(
    main: Main, *, loop: str, origin_ns: int, files: Sequence[Path] = (), outspoken: bool = False
) -> Image:
    """What a process executes to be a guest that runs `main`, which is sent by value where it cannot be
    imported.

    files: that it may read and write. Of all others it may read what Python needs. outspoken: let it say what
    this system cannot keep it from.

    Raises NotSendable, FileNotThere.
    """
    for file in files:
        if not file.exists():
            raise FileNotThere(file)
    confinement = Confinement(
        writable_paths=tuple(map(str, files)),
        open_files=OPEN_FILES,
        data_bytes=DATA_BYTES,
    )
    try:
        program = cloudpickle.dumps(main)
    except (pickle.PicklingError, TypeError) as error:
        raise NotSendable(str(error)) from error
    order = _Order(loop, origin_ns, confinement, outspoken, program)
    return Image(f"{__name__}:enter", pickle.dumps(order))


def enter(payload: bytes, fds: list[int]) -> None:
    """What the process does from its first moment to its last."""
    order: _Order = pickle.loads(payload)
    platform = attach(fds, order.origin_ns)
    shortcomings = confine(order.confinement)
    if order.outspoken:
        for shortcoming in shortcomings:
            print(f"not confined: {shortcoming}", file=sys.stderr)
    main: Main = pickle.loads(order.program)
    run(platform.idling, partial(run_program, platform, main), order.loop)
