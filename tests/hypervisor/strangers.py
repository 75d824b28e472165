"""Processes that hold the descriptor of one page (stranger.py)."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

PROGRAM = Path(__file__).with_name("stranger.py")


class Stranger:
    """One such process, while the block runs."""

    def __init__(self, fd: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(PROGRAM), str(fd)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=[fd],
        )

    def __enter__(self) -> Self:
        self.ask("ready")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=60)
        assert self._process.returncode == 0

    def ask(self, command: str) -> Any:
        """Its answer to a command."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def read(self, size: int) -> bytes:
        """The first bytes of the page as it sees them."""
        return bytes.fromhex(self.ask(f"read {size}"))

    def put(self, data: bytes) -> None:
        """Let it write `data` at the start of the page."""
        self.ask(f"put {data.hex()}")
