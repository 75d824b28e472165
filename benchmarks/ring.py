"""A bare ring between two processes against `multiprocessing.Pipe`: requests a second, and round trips.

The ring is what the block drivers use: 112-byte slots on pages of a memfd that both processes map, one fence
for each run that is published, event indices, an eventfd for whoever sleeps. Its figure is requests a second,
each filled in from Python values by one process, unpacked into Python values and judged by the other, and
answered; the answer is unpacked and judged, too. The pipe's is messages of as many bytes a second, one way,
which are neither packed nor unpacked. Both take turns, and the median of the rounds counts.

A round trip is one request in flight and its answer, of ends that look at the ring without pause and of ends
that sleep at once.
"""

import mmap
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from multiprocessing import Pipe
from pathlib import Path
from typing import Final

from benchmarks.results import Result
from benchmarks.ring_ends import DISK_SECTORS, Bell, ColumnsFrontend, Frontend, Unexpected
from ringbuffers.protocols.blkif import REQUEST_SLOT_SIZE
from ringbuffers.ring import FrontRing

ROUNDS: Final = 7
REQUESTS: Final = 300_000
MESSAGES: Final = 150_000
TRIPS: Final = 3_000
SEED: Final = 20
BAR: Final = 3.0
ENDLESS: Final = 1 << 40  # looks of an end that never sleeps


@dataclass(frozen=True, slots=True)
class Case:
    """One way to use a ring.

    pages: of the ring. share: how many runs fill it; several, so that both ends work at once. rounds: of
    `requests` each. looks: None for as many as are worth while.
    """

    name: str
    frontend: type[Frontend]
    answer: str
    pages: int = 16
    share: int = 4
    requests: int = REQUESTS
    looks: int | None = None


FIELDS: Final = Case("ring.fields, 16 pages", Frontend, "answer_fields")
RATES: Final = (
    FIELDS,
    Case("ring.columns, 16 pages", ColumnsFrontend, "answer_columns"),
    Case("ring.fields, 4 pages", Frontend, "answer_fields", pages=4),
    Case("ring.fields, 1 page", Frontend, "answer_fields", pages=1, share=2, requests=REQUESTS // 3),
)
ROUND_TRIPS: Final = (
    Case("ring.round_trip, polling", Frontend, "answer_fields", 1, requests=TRIPS, looks=ENDLESS),
    Case("ring.round_trip, sleeping", Frontend, "answer_fields", 1, requests=TRIPS, looks=0),
    Case("ring.round_trip, adaptive", Frontend, "answer_fields", 1, requests=TRIPS),
)


class RingPair:
    """A frontend here and a backend in a process of its own, which serves one round more than `rounds`."""

    def __init__(self, case: Case, rounds: int) -> None:
        length = case.pages * mmap.PAGESIZE
        self._memory = os.memfd_create("ring")
        os.ftruncate(self._memory, length)
        ring = FrontRing([memoryview(mmap.mmap(self._memory, length))], REQUEST_SLOT_SIZE)
        self._bells = os.eventfd(0), os.eventfd(0)
        self._frontend = case.frontend(ring, Bell(*self._bells, case.looks), case.share)
        self._total = case.requests * (rounds + 1)
        self._answered = 0
        self._sum = 0
        self._rng = random.Random(SEED)
        looks = "adaptive" if case.looks is None else case.looks
        descriptors = [self._memory, *reversed(self._bells)]
        self._backend = _peer("ring", descriptors, case.pages, case.share, looks, case.answer, self._total)
        try:
            self.exchange(case.requests)  # until both ends run, and nothing is done for the first time
        except BaseException:
            self.close()
            raise

    def exchange(self, count: int) -> float:
        """Seconds for that many requests of random sectors."""
        sectors = self._random_sectors(count)
        start = time.perf_counter()
        self._frontend.exchange(sectors)
        seconds = time.perf_counter() - start
        self._answered += count
        return seconds

    def one_by_one(self, count: int) -> float:
        """Microseconds of a round trip, the median of so many."""
        exchange, clock = self._frontend.exchange, time.perf_counter_ns
        times = []
        for sector in self._random_sectors(count):
            start = clock()
            exchange((sector,))
            times.append(clock() - start)
        self._answered += count
        return statistics.median(times) / 1000

    def close(self) -> None:
        """Ends the backend. Raises Unexpected if it has served everything and read something else."""
        if self._answered < self._total:
            self._backend.kill()
        said, _ = self._backend.communicate()
        for descriptor in (self._memory, *self._bells):
            os.close(descriptor)
        if self._answered == self._total and said.strip() != str(self._sum):
            raise Unexpected(f"the backend has read sectors whose sum is {said}")

    def _random_sectors(self, count: int) -> list[int]:
        sectors = [self._rng.randrange(DISK_SECTORS >> 3) << 3 for _ in range(count)]
        self._sum += sum(sectors)
        return sectors


class PipePair:
    """A writer here and a reader in a process of its own."""

    def __init__(self) -> None:
        there, self._outgoing = Pipe(duplex=False)
        self._incoming, back = Pipe(duplex=False)
        self._reader = _peer("pipe", [there.fileno(), back.fileno()])
        there.close()
        back.close()
        self.send(1)

    def send(self, count: int) -> float:
        """Seconds for that many messages, one that announces them, and one back. 0 is a round trip."""
        announcement = count.to_bytes(REQUEST_SLOT_SIZE, "little")
        message = random.Random(SEED).randbytes(REQUEST_SLOT_SIZE)
        send = self._outgoing.send_bytes
        start = time.perf_counter()
        send(announcement)
        for _ in range(count):
            send(message)
        self._incoming.recv_bytes()
        return time.perf_counter() - start

    def close(self) -> None:
        """Ends the reader."""
        self._outgoing.close()
        self._reader.communicate()
        self._incoming.close()


def _peer(kind: str, descriptors: list[int], *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.ring_peer", kind, *map(str, (*descriptors, *arguments))]
    root = Path(__file__).parents[1]
    return subprocess.Popen(command, pass_fds=descriptors, stdout=subprocess.PIPE, text=True, cwd=root)


def measure() -> Iterator[Result]:
    """All figures."""
    with closing(PipePair()) as pipe:
        for case in RATES:
            with closing(RingPair(case, ROUNDS)) as ring:
                rounds = [
                    (MESSAGES / pipe.send(MESSAGES), case.requests / ring.exchange(case.requests))
                    for _ in range(ROUNDS)
                ]
            rate = statistics.median(ours for _, ours in rounds)
            ratio = statistics.median(ours / theirs for theirs, ours in rounds)
            if case is FIELDS:
                yield Result("pipe.one_way", statistics.median(theirs for theirs, _ in rounds), "messages/s")
                yield Result.at_least(case.name, rate, "requests/s", ratio, BAR)
            else:
                yield Result(case.name, rate, "requests/s", ratio)
        trip_us = statistics.median(pipe.send(0) for _ in range(TRIPS)) * 1e6
    yield Result("pipe.round_trip", trip_us, "us")
    for case in ROUND_TRIPS:
        with closing(RingPair(case, 1)) as ring:
            ours_us = ring.one_by_one(case.requests)
        yield Result(case.name, ours_us, "us", ours_us / trip_us)
