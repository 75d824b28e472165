"""A program whose standard input and output are a guest's console, and when it has printed what."""

import os
import select
import subprocess
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

PATIENCE_S: Final = 180.0


class Silence(Exception):
    """What was awaited did not come: the program has ended, or takes too long; `seen` is what came last."""

    def __init__(self, wanted: bytes, seen: bytes) -> None:
        super().__init__(f"waited for {wanted!r}, the last that was printed is {seen[-500:]!r}")
        self.wanted = wanted
        self.seen = seen


class ConsoleOf:
    """Starts the program. started: when, on time.perf_counter's clock. Killed at the end of the context."""

    def __init__(self, command: Sequence[str], environment: dict[str, str] | None = None) -> None:
        self.started = time.perf_counter()
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, bufsize=0
        )
        self._seen = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.kill()
        self._process.wait()

    def wait_for(self, text: bytes) -> float:
        """The time when `text` had come; what stands before it is forgotten. Raises Silence."""
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        deadline = time.perf_counter() + PATIENCE_S
        while text not in self._seen:
            ready, _, _ = select.select([fd], [], [], max(deadline - time.perf_counter(), 0))
            data = os.read(fd, 1 << 16) if ready else b""
            now = time.perf_counter()
            if not data:
                raise Silence(text, self._seen)
            self._seen += data
        now = time.perf_counter()
        self._seen = self._seen.partition(text)[2]
        return now

    def type(self, text: str) -> None:
        """A line, with its return key."""
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode() + b"\r")

    def status(self) -> int:
        """Waits for its end."""
        return self._process.wait(PATIENCE_S)
