"""A Linux guest's view of the machine, held against a recording of a real Xen 4.17 (tests/data).

The differences that there may be, and why, are a table in docs/golden-differences.md, which is read here: in its cells,
… stands for any text.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.dom0.stores import DATA, Tree

TABLE = Path(__file__).parents[2] / "docs" / "golden-differences.md"
WHATEVER = "…"


@dataclass(frozen=True)
class Difference:
    """A row: lines that only the recording has, lines that only we have; "" stands for none."""

    view: str
    recorded: str
    here: str
    why: str

    @property
    def varies(self) -> bool:
        """Whether it says that something is different each time, rather than different here."""
        return self.recorded == self.here

    def explains(self, line: str, *, ours: bool) -> bool:
        pattern = self.here if ours else self.recorded
        parts = (re.escape(part) for part in pattern.split(WHATEVER))
        return bool(pattern) and re.fullmatch(".*".join(parts), line) is not None


def table() -> list[Difference]:
    """The rows of the page, of all its tables."""
    rows = []
    for line in TABLE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        if line.startswith("| ") and len(cells) == 4 and cells[0] in VIEWS:
            view, recorded, here, why = cells
            rows.append(Difference(view, _pattern(recorded), _pattern(here), why))
    return rows


def _pattern(cell: str) -> str:
    return "" if cell == "–" else cell.strip("`")


VIEWS = ("dmesg", "sysfs", "store, paused", "store, running")


def unexplained(view: str, recorded: Iterable[str], here: Iterable[str]) -> Iterator[str]:
    """What differs although the table does not say so, and what the table says and is not so."""
    theirs, ours = Counter(recorded), Counter(here)
    rows = [row for row in table() if row.view == view]
    used: set[Difference] = set()
    for lines, mine in ((theirs - ours, False), (ours - theirs, True)):
        for line in lines.elements():
            found = [row for row in rows if row.explains(line, ours=mine)]
            used.update(found)
            if not found:
                yield f"{view}: {'only here' if mine else 'only recorded'}: {line}"
    yield from (
        f"{view}: no difference any more: {row}" for row in rows if row not in used and not row.varies
    )


# The views, as lines


def recorded_lines(name: str) -> list[str]:
    """A recording without the comments that begin it."""
    return [line for line in (DATA / name).read_text().splitlines() if not line.startswith("# ")]


def dmesg_lines(text: str) -> list[str]:
    """The kernel's messages without their times."""
    return [re.sub(r"^\[ *[0-9.]+\] ", "", line) for line in text.splitlines()]


def sections(lines: Iterable[str]) -> dict[str, list[str]]:
    """The parts of a file whose parts begin with a line @@@ and their name."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in lines:
        if line.startswith("@@@ "):
            name = line.removeprefix("@@@ ")
        else:
            found.setdefault(name, []).append(line)
    return found


SECTIONS: Mapping[str, str] = {
    "/proc/interrupts": "cat /proc/interrupts",
    "/sys/hypervisor": (
        "find /sys/hypervisor -type f | sort | while read f;"
        " do cat $f >/tmp/v 2>/dev/null && echo $f = $(cat /tmp/v) || echo $f = '<denied>'; done"
    ),
    "per-device": (
        "for d in /sys/bus/xen/devices/*; do"
        " echo -- $(basename $d) '->' $(readlink -f $d) driver=$(basename $(readlink $d/driver));"
        " for f in modalias nodename devtype state uevent; do echo $f:; cat $d/$f; done; ls -1 $d; done"
    ),
    "block": (
        "ls -l /dev/xvda; for f in size ro removable queue/logical_block_size queue/physical_block_size"
        " queue/max_segments queue/max_hw_sectors_kb queue/discard_granularity queue/write_cache;"
        " do echo xvda/$f=$(cat /sys/block/xvda/$f); done; ls /sys/block"
    ),
    "tty": "ls /dev | grep hvc; cat /proc/consoles",
    "/proc/cpuinfo": "cat /proc/cpuinfo",
    "/proc/meminfo (head)": "head -5 /proc/meminfo",
    "clocksource": (
        "for f in available current unbind; do"
        " cat /sys/devices/system/clocksource/clocksource0/${f}_clocksource 2>&1; done; true"
    ),
    "balloon": (
        "find /sys/devices/system/xen_memory -type f | sort |"
        " while read f; do echo $f = $(cat $f 2>/dev/null); done"
    ),
}
"""Those parts of the recording that are about what our guest has, too, and what prints them."""

_NOT_OURS = re.compile(r"\b(vif|vfb|vkbd)")
_COUNTS = re.compile(r"^\s*\w+:\s+\d+\s+(?=\S)")
_DATE = re.compile(r" (DATE|\w{3} \d+ \d\d:\d\d) /")


def sysfs_lines(found: Mapping[str, Iterable[str]]) -> Iterator[str]:
    """One line for each fact: its section and what it says, without numbers of interrupts, dates and columns."""
    for section in SECTIONS:
        lines = found.get(section, ())
        if section == "per-device":
            lines = _words_of_the_disk(lines)
        if section == "/proc/interrupts":
            lines = (_COUNTS.sub("", line) for line in lines if not _NOT_OURS.search(line))
        for line in lines:
            text = _DATE.sub(" /", re.sub(r"\s+", " ", line).strip())
            if text:
                yield f"{section}: {text}"


def _words_of_the_disk(lines: Iterable[str]) -> Iterator[str]:
    ours = False
    for line in lines:
        if line.startswith("-- "):
            ours = line.startswith("-- vbd")
        if ours:
            yield from [line] if line.startswith("-- ") else line.split()


_STORE_NOT_OURS = re.compile(
    r"/(vif|vfb|vkbd)(/|$)|^/local/domain/0/device-model(/|$)|/vnc-|/device-model-pid$"
)


def store_lines(tree: Tree, uuid: str) -> list[str]:
    """A line for each node, with the recording's UUID."""
    return [
        f'{path} = "{value}" ({permissions})'.replace(uuid, "11111111-2222-3333-4444-555555555555")
        for path, (value, permissions) in tree.items()
        if not _STORE_NOT_OURS.search(path)
    ]


def out_of_order(recorded: Iterable[str], here: Iterable[str]) -> list[str]:
    """Nodes that both have, where they come in another order: a folder's nodes come as they were written."""
    theirs, ours = _paths(recorded), _paths(here)
    common = theirs.keys() & ours.keys()
    ranks = [theirs[path] for path in ours if path in common]
    return [
        path for path, rank in zip((p for p in ours if p in common), sorted(ranks)) if theirs[path] != rank
    ]


def _paths(lines: Iterable[str]) -> dict[str, int]:
    return {line.split(" = ")[0]: number for number, line in enumerate(lines)}
