"""What a domain says on the hypervisor's own console: why its kernel crashed, which grants leaked."""

from collections.abc import Callable
from typing import Final

from kernel.kernel import LEAK_PREFIX

LINES_KEPT: Final = 200
LEAKS_KEPT: Final = 4096
MAX_LINE: Final = 4096
"""A longer line is cut into pieces."""


class DomainWords:
    """One domain's words. tell: called with each line when it is complete. leaks: grants named as leaked."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.leaks: list[str] = []
        self._tell = tell
        self._lines: list[str] = []
        self._unfinished = ""

    def hear(self, data: bytes) -> None:
        """The domain has written `data`; lines may be cut anywhere."""
        *lines, rest = (self._unfinished + data.decode("utf-8", "replace")).split("\n")
        for line in lines:
            self._keep(line)
        while len(rest) > MAX_LINE:
            self._keep(rest[:MAX_LINE])
            rest = rest[MAX_LINE:]
        self._unfinished = rest

    def end(self) -> None:
        """The domain will say nothing more."""
        if self._unfinished:
            self._keep(self._unfinished)
            self._unfinished = ""

    @property
    def text(self) -> str:
        """Its last lines, without those about leaks."""
        return "\n".join(self._lines).strip("\n")

    def _keep(self, line: str) -> None:
        self._tell(line)
        if line.startswith(LEAK_PREFIX):
            self.leaks.append(line.removeprefix(LEAK_PREFIX))
            del self.leaks[LEAKS_KEPT:]
            return
        self._lines.append(line)
        del self._lines[:-LINES_KEPT]
