"""Reads blocks through libnbd's Python client, `depth` in flight, as quickly as that client can.

What makes it quick: simple replies, which are shorter than structured ones; no clearing of buffers before
they are read into; no second check of arguments; and new requests are sent when a quarter of those in flight
is answered, so that the server finds several each time it wakes.

Debian's own Python runs it, which has libnbd.

Usage: nbd_client.py SOCKET PATTERN BLOCK_BYTES DEPTH COUNT SEED; PATTERN is random or sequential. Prints
requests a second.
"""

import random
import sys
import time

import nbd  # type: ignore[import-not-found]


def main(socket: str, pattern: str, block_bytes: int, depth: int, count: int, seed: int) -> float:  # noqa: PLR0917
    """Requests a second over the Unix socket of a running server."""
    handle = nbd.NBD()
    handle.set_strict_mode(0)
    handle.set_request_structured_replies(False)
    handle.set_pread_initialize(False)
    handle.connect_unix(socket)
    blocks = handle.get_size() // block_bytes
    rng = random.Random(seed)
    numbers = [rng.randrange(blocks) if pattern == "random" else i % blocks for i in range(count)]
    offsets = [number * block_bytes for number in numbers]
    _read_all(handle, block_bytes, depth, offsets[: count // 4])  # so that nothing is done for the first time
    start = time.perf_counter()
    _read_all(handle, block_bytes, depth, offsets)
    return count / (time.perf_counter() - start)


def _read_all(handle: nbd.NBD, block_bytes: int, depth: int, offsets: list[int]) -> None:
    pread, poll = handle.aio_pread, handle.poll
    peek, complete = handle.aio_peek_command_completed, handle.aio_command_completed
    free = [nbd.Buffer(block_bytes) for _ in range(depth)]
    enough = max(depth // 4, 1)
    flying: dict[int, nbd.Buffer] = {}
    waiting = offsets[::-1]
    while waiting or flying:
        if len(free) >= enough:
            while free and waiting:
                buffer = free.pop()
                flying[pread(buffer, waiting.pop())] = buffer
        poll(-1)
        while flying and (cookie := peek()) > 0:
            complete(cookie)
            free.append(flying.pop(cookie))


if __name__ == "__main__":
    print(main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])))
