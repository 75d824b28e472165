"""Reads 4 KiB blocks through libnbd's Python client, `depth` in flight.

Debian's own Python runs it, which has libnbd.

Usage: nbd_client.py SOCKET DEPTH COUNT SEED; prints requests a second.
"""

import random
import sys
import time

import nbd  # type: ignore[import-not-found]

BLOCK_BYTES = 4096


def main(socket: str, depth: int, count: int, seed: int) -> float:
    """Requests a second over the Unix socket of a running server."""
    handle = nbd.NBD()
    handle.connect_unix(socket)
    _read_all(handle, depth, count // 4, seed + 1)  # so that nothing is measured for the first time
    start = time.perf_counter()
    _read_all(handle, depth, count, seed)
    return count / (time.perf_counter() - start)


def _read_all(handle: nbd.NBD, depth: int, count: int, seed: int) -> None:
    blocks = handle.get_size() // BLOCK_BYTES
    rng = random.Random(seed)
    offsets = [rng.randrange(blocks) * BLOCK_BYTES for _ in range(count)]
    free = [nbd.Buffer(BLOCK_BYTES) for _ in range(depth)]
    flying: dict[int, nbd.Buffer] = {}
    issued = done = 0
    while done < count:
        while free and issued < count:
            buffer = free.pop()
            flying[handle.aio_pread(buffer, offsets[issued])] = buffer
            issued += 1
        handle.poll(-1)
        while flying and (cookie := handle.aio_peek_command_completed()) > 0:
            handle.aio_command_completed(cookie)
            free.append(flying.pop(cookie))
            done += 1


if __name__ == "__main__":
    print(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
