"""nbdkit read by libnbd's Python client: what a user would pick instead.

Two servers of the same file: nbdkit's Python plugin, which is a Python backend without domzero, and its own
file plugin, which is C. A thread for each processor is what both are quickest with.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

HERE = Path(__file__).parent
DEBIAN_PYTHON = "/usr/bin/python3"
MIB: Final = 1 << 20
SEQUENTIAL_DEPTH: Final = 2  # requests in flight with which large reads are quickest

# What comes on nbdkit's command line before the name of the image.
PLUGINS: Final = {"python": ("python", str(HERE / "nbd_plugin.py"), "file="), "file": ("file", "")}


@cache
def missing() -> str | None:
    """What of nbdkit, its two plugins and libnbd's Python client is not on this machine; None if nothing."""
    if shutil.which("nbdkit") is None:
        return "nbdkit"
    for plugin in PLUGINS:
        if _fails("nbdkit", plugin, "--version"):
            return f"nbdkit's {plugin} plugin"
    if not os.path.exists(DEBIAN_PYTHON) or _fails(DEBIAN_PYTHON, "-c", "import nbd"):
        return "libnbd for Debian's Python"
    return None


@dataclass(frozen=True, slots=True)
class Server:
    """A running nbdkit. plugin: one of PLUGINS."""

    plugin: str
    socket: str

    def random_reads_per_second(self, depth: int, count: int, seed: int) -> float:
        """4 KiB random reads a second, `depth` in flight."""
        return self._client("random", 4096, depth, count, seed)

    def sequential_bytes_per_second(self, count: int) -> float:
        """Bytes a second of `count` reads of 1 MiB, one behind the other."""
        return self._client("sequential", MIB, SEQUENTIAL_DEPTH, count, 0) * MIB

    def _client(self, pattern: str, *numbers: int) -> float:
        command = [DEBIAN_PYTHON, str(HERE / "nbd_client.py"), self.socket, pattern, *map(str, numbers)]
        return float(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


@contextmanager
def serving(image: Path, plugin: str) -> Iterator[Server]:
    """nbdkit with one of PLUGINS, read-only, until the block ends. Raises RuntimeError if it does not start."""
    with tempfile.TemporaryDirectory() as folder:
        socket = f"{folder}/nbd.sock"
        command = ["nbdkit", "--foreground", "--exit-with-parent", "--unix", socket, "--readonly"]
        command += ["--threads", str(os.cpu_count() or 1), "--pidfile", f"{folder}/pid"]
        *arguments, prefix = PLUGINS[plugin]
        command += [*arguments, f"{prefix}{image}"]
        with subprocess.Popen(command, stdout=sys.stderr) as process:
            while not os.path.exists(f"{folder}/pid"):  # nbdkit writes it when it accepts connections
                if process.poll() is not None:
                    raise RuntimeError(f"nbdkit ended with status {process.returncode}")
            try:
                yield Server(plugin, socket)
            finally:
                process.terminate()


def _fails(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode != 0
