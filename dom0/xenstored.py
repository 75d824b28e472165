"""XenStore alone on a Unix socket, with no hypervisor: for testing its clients."""

import errno
import threading
from collections.abc import Callable
from pathlib import Path

import anyio

from dom0.launch.interrupts import SIGNALS
from dom0.xenstore.clock import MonotonicClock
from dom0.xenstore.core import no_domains
from dom0.xenstore.daemon import XenStoreDaemon
from dom0.xenstore.errors import CannotConnect
from dom0.xenstore.ring import RingTransport


async def serve_xenstore(path: Path, *, log: Callable[[str], None]) -> None:
    """Serves a fresh store, as Xen's is before any guest, until SIGINT or SIGTERM comes, or it is cancelled.

    Args:
        path: of the socket, which goes when this returns. One that nobody serves any more is replaced.
        log: takes a line: first of all, once clients can connect, that they can.

    Raises:
        OSError: the socket cannot be made, or somebody serves it.
    """
    await _refuse_if_served(path)
    daemon = XenStoreDaemon(
        clock=MonotonicClock(),
        info=no_domains,
        connect_domain=_no_ring,
        log=lambda line: log(f"xenstored: {line}"),
    )
    try:
        async with anyio.create_task_group() as tasks:
            await tasks.start(daemon.run, [path])
            log(f"XenStore is served on {path}; XENSTORED_PATH={path} leads clients to it")
            await _interrupted()
            tasks.cancel_scope.cancel()
    except ExceptionGroup as group:
        raise _about(path, group) from group


def _about(path: Path, error: Exception) -> Exception:
    """What went wrong, out of the groups of the tasks that it passed; with `path`, if it names none."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, OSError) and error.filename is None:
        return OSError(error.errno or errno.EINVAL, error.strerror or str(error), str(path))
    return error


async def _refuse_if_served(path: Path) -> None:
    try:
        stream = await anyio.connect_unix(path)
    except OSError:
        return
    await stream.aclose()
    raise OSError(errno.EADDRINUSE, "a daemon serves this socket already", str(path))


async def _interrupted() -> None:
    if threading.current_thread() is not threading.main_thread():
        await anyio.sleep_forever()
    with anyio.open_signal_receiver(*SIGNALS) as signals:
        await anext(signals)


def _no_ring(domid: int, _gfn: int, _port: int) -> RingTransport:
    raise CannotConnect(domid, "this daemon reaches no rings")
