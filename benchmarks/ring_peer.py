"""The other process of `benchmarks.ring`: a ring's backend, or the reader of a `multiprocessing.Pipe`.

Usage: ring_peer.py ring MEMORY BELL THEIR_BELL PAGES SHARE LOOKS ANSWER REQUESTS
       ring_peer.py pipe INCOMING OUTGOING
"""

import mmap
import sys
from multiprocessing.connection import Connection

from benchmarks import ring_ends
from ringbuffers.protocols.blkif import REQUEST_SLOT_SIZE
from ringbuffers.ring import BackRing


def serve_ring(ring: BackRing, bell: ring_ends.Bell, share: int, answer: str, requests: int) -> None:
    """Serves `requests` and prints the sum of their sectors."""
    try:
        print(ring_ends.serve(ring, bell, share, getattr(ring_ends, answer), requests), flush=True)
    finally:
        bell.leave()


def read_pipe(incoming: Connection, outgoing: Connection) -> None:
    """Reads as many messages as a first one says, and sends the last one back; until the pipe is closed."""
    while True:
        try:
            message = incoming.recv_bytes()
        except EOFError:
            return
        for _ in range(int.from_bytes(message, "little")):
            message = incoming.recv_bytes()
        outgoing.send_bytes(message)


def main(kind: str, *arguments: str) -> None:
    """Either of the two."""
    if kind == "pipe":
        read_pipe(*map(Connection, map(int, arguments)))
        return
    memory, mine, theirs, pages, share, looks, answer, requests = arguments
    bell = ring_ends.Bell(int(mine), int(theirs), None if looks == "adaptive" else int(looks))
    view = memoryview(mmap.mmap(int(memory), int(pages) * mmap.PAGESIZE))
    serve_ring(BackRing.attach([view], REQUEST_SLOT_SIZE), bell, int(share), answer, int(requests))


if __name__ == "__main__":
    main(*sys.argv[1:])
