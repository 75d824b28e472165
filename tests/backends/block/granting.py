"""The grants of one frontend without a machine: pages that can be mapped, and a count of everything."""

from collections.abc import Sequence

from kernel.errors import KernelError
from kernel.mapping import GrantError, Mapping

PAGE_BYTES = 4096


class FakeGrants:
    """memory: the frontend's pages by gref. mapped: how often each is mapped now. calls: hypercalls by kind."""

    def __init__(self, pages: int) -> None:
        self.memory = {gref: memoryview(bytearray(PAGE_BYTES)) for gref in range(pages)}
        self.mapped: dict[int, list[bool]] = {}
        self.bad: set[int] = set()
        self.calls: list[tuple[str, int]] = []
        self.fails = False
        self._handles = 0

    def map(
        self, domid: int, references: Sequence[int], *, readonly: bool = False
    ) -> list[Mapping | GrantError]:
        """Maps what is there."""
        self.calls.append(("map", len(references)))
        if self.fails:
            raise KernelError("no")
        results: list[Mapping | GrantError] = []
        for gref in references:
            if gref in self.bad or gref not in self.memory:
                results.append(GrantError(domid, gref, -3))
                continue
            self._handles += 1
            self.mapped.setdefault(gref, []).append(readonly)
            view = self.memory[gref][:]
            results.append(Mapping(view.toreadonly() if readonly else view, self._handles, 0, domid, gref))
        return results

    def joined(self, mappings: Sequence[Mapping]) -> list[memoryview]:
        """No two pages lie side by side here."""
        return [mapping.page for mapping in mappings]

    def unmap(self, mappings: Sequence[Mapping]) -> None:
        """Undoes it; a view that is used afterwards raises."""
        self.calls.append(("unmap", len(mappings)))
        for mapping in mappings:
            mapping.release()
            self.mapped[mapping.reference].pop()
            if not self.mapped[mapping.reference]:
                del self.mapped[mapping.reference]
