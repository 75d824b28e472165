"""Two processes that work on one page at the same time: this one, and a fresh one that knows the page alone."""

import mmap
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

PAGE_SIZE = 4096
HERE, THERE = PAGE_SIZE - 1, PAGE_SIZE - 2
"""bytes by which each says that it is there"""

Work = Callable[[memoryview], None]


@contextmanager
def shared_page() -> Iterator[tuple[int, memoryview]]:
    """A page of zeros: its descriptor, and its bytes."""
    fd = os.memfd_create("page")
    try:
        os.ftruncate(fd, PAGE_SIZE)
        yield fd, memoryview(mmap.mmap(fd, PAGE_SIZE))
    finally:
        os.close(fd)


def at_the_same_time(fd: int, page: memoryview, here: Work, there: Work) -> None:
    """Run `here` in this process and `there`, a function of a module, in another, from the same moment on.
    Both may use the page but for its last two bytes.
    """
    page[HERE] = page[THERE] = 0
    arguments = [str(fd), there.__module__, there.__qualname__]
    command = [sys.executable, "-c", "from tests.two_processes import main; main()", *arguments]
    root = Path(__file__).parent.parent
    with subprocess.Popen(command, pass_fds=[fd], cwd=root) as other:
        try:
            while not page[THERE]:
                assert other.poll() is None
            page[HERE] = 1
            here(page)
            assert other.wait() == 0
        finally:
            other.kill()


def is_other_at_work(page: memoryview) -> bool:
    """Whether the other process has not ended its work."""
    return page[THERE] == 1


def main() -> None:
    """The other process."""
    page = memoryview(mmap.mmap(int(sys.argv[1]), PAGE_SIZE))
    work = getattr(import_module(sys.argv[2]), sys.argv[3])
    page[THERE] = 1
    while not page[HERE]:
        pass
    try:
        work(page)
    finally:
        page[THERE] = 0
