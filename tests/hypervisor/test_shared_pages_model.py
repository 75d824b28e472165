"""Pages of one extent in any order of moves against a plain array; whoever kept an old memfd sees the past."""

import os

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hypervisor.extent import EXTENT_FRAMES, PAGE_SIZE, Extent

PAGES = 4
offsets = st.integers(0, PAGES - 1)
addresses = st.integers(0, PAGES * PAGE_SIZE - 8)
octets = st.integers(0, 255)


class SharedPages(RuleBasedStateMachine):
    """`past`: descriptors that peers kept, with what they must see for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.extent = Extent(256, EXTENT_FRAMES)
        self.views = [self.extent.view[: PAGES * PAGE_SIZE]]
        self.model = bytearray(PAGES * PAGE_SIZE)
        self.modes: dict[int, bool] = {}
        self.peers: dict[int, int] = {}
        self.past: list[tuple[int, bytes]] = []

    def content(self, offset: int) -> bytes:
        return bytes(self.model[offset * PAGE_SIZE : (offset + 1) * PAGE_SIZE])

    def part(self, offset: int) -> None:
        """The page moves: a peer that had it keeps what is in it now."""
        fd = self.peers.pop(offset, None)
        if fd is not None:
            self.past.append((fd, self.content(offset)))

    @rule(offset=offsets, readonly=st.booleans())
    def share(self, offset: int, readonly: bool) -> None:
        if offset in self.peers and self.modes[offset] != readonly:
            self.part(offset)
        self.extent.share(offset, readonly=readonly)
        self.modes[offset] = readonly

    @rule(offset=offsets, readonly=st.booleans())
    def renew(self, offset: int, readonly: bool) -> None:
        self.part(offset)
        self.extent.renew(offset, readonly=readonly)
        self.modes[offset] = readonly

    @rule(offset=offsets)
    def give(self, offset: int) -> None:
        page = self.extent.shared.get(offset)
        if page is not None and offset not in self.peers:
            assert page.seal()
            self.peers[offset] = os.dup(page.fd)

    @rule(offset=offsets)
    def unshare(self, offset: int) -> None:
        self.part(offset)
        self.extent.unshare(offset)
        self.modes.pop(offset, None)

    @rule(first=offsets, count=st.integers(1, PAGES))
    def scrub(self, first: int, count: int) -> None:
        count = min(count, PAGES - first)
        for offset in range(first, first + count):
            self.part(offset)
            self.modes.pop(offset, None)
        self.extent.scrub(first, count)
        self.model[first * PAGE_SIZE : (first + count) * PAGE_SIZE] = bytes(count * PAGE_SIZE)

    @rule(address=addresses, octet=octets, which=st.integers(0, 10), sideways=st.integers(0, 8))
    def write(self, address: int, octet: int, which: int, sideways: int) -> None:
        """By any view that there has ever been, across a border if it comes so."""
        data = bytes([octet]) * sideways
        self.views[which % len(self.views)][address : address + sideways] = data
        self.model[address : address + sideways] = data

    @rule(offset=offsets, at=st.integers(0, PAGE_SIZE - 1), octet=octets)
    def write_as_peer(self, offset: int, at: int, octet: int) -> None:
        fd = self.peers.get(offset)
        if fd is None:
            return
        try:
            os.pwrite(fd, bytes([octet]), at)
            written = True
        except PermissionError:
            written = False
        assert written is not self.modes[offset]
        if written:
            self.model[offset * PAGE_SIZE + at] = octet

    @rule(at=st.integers(0, 10), octet=octets)
    def write_into_the_past(self, at: int, octet: int) -> None:
        """Whoever kept a writable page writes into his own copy alone."""
        if self.past:
            fd, content = self.past[at % len(self.past)]
            try:
                os.pwrite(fd, bytes([octet]), 0)
            except PermissionError:
                return
            self.past[at % len(self.past)] = (fd, bytes([octet]) + content[1:])

    @rule()
    def look(self) -> None:
        self.views.append(self.extent.view[: PAGES * PAGE_SIZE])

    @invariant()
    def everybody_sees_what_the_model_says(self) -> None:
        assert {offset: page.readonly for offset, page in self.extent.shared.items()} == self.modes
        for view in self.views:
            assert view == self.model
        for offset in range(PAGES):
            page = self.extent.shared.get(offset)
            if page is None:
                assert os.pread(self.extent.fd, PAGE_SIZE, offset * PAGE_SIZE) == self.content(offset)
            else:
                assert os.pread(page.fd, PAGE_SIZE, 0) == self.content(offset)
        for offset, fd in self.peers.items():
            assert os.pread(fd, PAGE_SIZE, 0) == self.content(offset)
        for fd, content in self.past:
            assert os.pread(fd, PAGE_SIZE, 0) == content

    def teardown(self) -> None:
        self.extent.close()
        for fd in (*self.peers.values(), *(fd for fd, _ in self.past)):
            os.close(fd)


TestSharedPages = SharedPages.TestCase
TestSharedPages.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
