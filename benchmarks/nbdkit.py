"""nbdkit's Python plugin read by libnbd's Python client: what a user would pick instead."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
DEBIAN_PYTHON = "/usr/bin/python3"


@cache
def available() -> bool:
    """Whether nbdkit with its Python plugin and libnbd's Python client are on this machine."""
    if shutil.which("nbdkit") is None or not os.path.exists(DEBIAN_PYTHON):
        return False
    plugin = subprocess.run(["nbdkit", "python", "--version"], capture_output=True, check=False)
    client = subprocess.run([DEBIAN_PYTHON, "-c", "import nbd"], capture_output=True, check=False)
    return plugin.returncode == 0 and client.returncode == 0


@contextmanager
def _server(image: Path) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        socket = f"{folder}/nbd.sock"
        command = ["nbdkit", "--foreground", "--exit-with-parent", "--unix", socket, "--readonly"]
        command += ["--pidfile", f"{folder}/pid", "python", str(HERE / "nbd_plugin.py"), f"file={image}"]
        with subprocess.Popen(command, stdout=sys.stderr) as process:
            while not os.path.exists(f"{folder}/pid"):  # nbdkit writes it when it accepts connections
                if process.poll() is not None:
                    raise RuntimeError(f"nbdkit ended with status {process.returncode}")
            try:
                yield socket
            finally:
                process.terminate()


def random_reads_per_second(image: Path, depth: int, count: int, seed: int) -> float:
    """4 KiB random reads a second of nbdkit's Python plugin, `depth` in flight."""
    with _server(image) as socket:
        command = [DEBIAN_PYTHON, str(HERE / "nbd_client.py"), socket, str(depth), str(count), str(seed)]
        return float(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
