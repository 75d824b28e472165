"""The end of a console's output, kept in memory."""

import re
from typing import Final

TAIL_BYTES: Final = 16 * 1024
LAST_LINE_CHARACTERS: Final = 200
_LOOK_BACK_BYTES: Final = 2048
_LINE_END: Final = re.compile(r"[\r\n]+")
_ESCAPES: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]?|\][^\x07\x1b]*(?:\x07|\x1b\\)?|.?)")


class History:
    """The last TAIL_BYTES of output, and the last line among them as a person may see it."""

    __slots__ = ("_last_line", "_stale", "_tail")

    def __init__(self) -> None:
        self._tail = bytearray()
        self._last_line = ""
        self._stale = False

    def append(self, data: bytes) -> None:
        """The guest has printed `data`."""
        self._tail += data
        del self._tail[:-TAIL_BYTES]
        self._stale = True

    @property
    def tail(self) -> bytes:
        """The output's end, as it was printed."""
        return bytes(self._tail)

    @property
    def last_line(self) -> str:
        """The last line that is not blank, without escape sequences and control characters, at most
        LAST_LINE_CHARACTERS: whatever a guest prints, it does nothing to the terminal that shows this.
        """
        if self._stale:
            self._stale = False
            self._last_line = last_line(bytes(self._tail[-_LOOK_BACK_BYTES:]))
        return self._last_line


def last_line(output: bytes) -> str:
    """The last line of `output` that shows anything."""
    text = _ESCAPES.sub("", output.decode("utf-8", "replace"))
    for line in reversed(_LINE_END.split(text)):
        shown = "".join(character for character in line if character.isprintable()).strip()
        if shown:
            return shown[:LAST_LINE_CHARACTERS]
    return ""
