"""Asks a C compiler what Xen's headers say: the values of integer expressions, and the names of macros."""

import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from tests.requirements import needs_package

_PROGRAM = """
{includes}
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#define SHOW(e) \\
    printf("%s%llu\\n", (e) < 0 ? "-" : "", \\
           (e) < 0 ? -(unsigned long long)(e) : (unsigned long long)(e))
int main(void)
{{
{shows}
    return 0;
}}
"""
_XEN_4_17 = "0x00000015"
"""XEN_DOMCTL_INTERFACE_VERSION of the release that we follow; every release has its own."""


class HeadersDiffer(AssertionError):
    """The program does not compile: the headers lack something that we declare."""


class Headers:
    """A set of Xen's public headers, seen as `defines` (`__XEN_TOOLS__`, `__XEN__`) make them."""

    def __init__(self, names: Iterable[str], defines: Iterable[str] = ("__XEN_TOOLS__",)) -> None:
        self._arguments = ["cc", "-std=gnu11", "-w", *(f"-D{define}" for define in defines)]
        standard = ["<errno.h>", "<stdint.h>", "<stddef.h>"]
        self._includes = "\n".join(f"#include {name}" for name in [*standard, *(f"<xen/{n}>" for n in names)])

    def evaluate(self, expressions: Iterable[str], directory: Path) -> list[int]:
        """The value of each integer expression. Raises HeadersDiffer with what the compiler misses."""
        shows = "\n".join(f"    SHOW({expression});" for expression in expressions)
        source, binary = directory / "probe.c", directory / "probe"
        source.write_text(_PROGRAM.format(includes=self._includes, shows=shows))
        compiled = subprocess.run(
            [*self._arguments, "-o", binary, source], capture_output=True, text=True, check=False
        )
        if compiled.returncode:
            errors = [line for line in compiled.stderr.splitlines() if "error:" in line]
            raise HeadersDiffer("\n".join(errors))
        output = subprocess.run([binary], capture_output=True, text=True, check=True).stdout
        return [int(line) for line in output.splitlines()]

    def macros(self) -> dict[str, str]:
        """The text of each macro without parameters."""
        return dict(re.findall(r"^#define (\w+) (.*)$", self._preprocess("-dM"), re.MULTILINE))

    def enumerators(self, tag: str) -> set[str]:
        """The names in `enum tag`."""
        body = re.search(rf"enum {tag}\s*{{(.*?)}}", self._preprocess("-P"), re.DOTALL)
        return set() if body is None else set(re.findall(r"\b([A-Z]\w+)\b\s*(?:=[^,]*)?,?", body[1]))

    def _preprocess(self, option: str) -> str:
        arguments = [*self._arguments, option, "-E", "-"]
        return subprocess.run(
            arguments, input=self._includes, capture_output=True, text=True, check=True
        ).stdout


def require_headers() -> None:
    """Skip, or fail in CI, where there is no C compiler or where libxen-dev is not that of Xen 4.17."""
    needs_package("gcc", shutil.which("cc") is not None)
    try:
        found = Headers(["domctl.h"]).macros().get("XEN_DOMCTL_INTERFACE_VERSION")
    except subprocess.CalledProcessError:
        found = None
    needs_package("libxen-dev of Xen 4.17", found == _XEN_4_17)
