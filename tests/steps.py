"""What a test lets a guest do, wherever that guest is: steps.

A step is `async def step(kernel, state, *args)`, where `state` is a dictionary that stays in the guest from step
to step. Where the guest is a coroutine it is simply called. Where it is a process, it is sent there by value with
copies of what it refers to (so it says what it has found by its result, or by what it raises), as nodes of the
guest's own folder in XenStore: the one way that a confined process has, and nothing that a user has not.

    calls/N    how many parts (base64 of a pickle) parts/N has; written last
    calls/N/cancel   nobody waits for it any more
    done/N     how many parts results/N has; written last
"""

import base64
import sys
import traceback
import zlib
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from typing import Any, Final, Protocol, TypeVar

import anyio
import cloudpickle  # type: ignore[import-untyped]

from hypervisor.vcpu.parking import Parker, new_parker
from kernel.kernel import Kernel
from kernel.xenstore.client import XenStoreClient
from kernel.xenstore.errors import StoreError

T = TypeVar("T")
State = dict[str, Any]
Step = Callable[..., Awaitable[T]]

PART_BYTES: Final = 1900
"""a node's value and permissions are 2048 bytes at most"""
CANCEL_SECONDS: Final = 10.0


class GuestGone(Exception):
    """The guest has ended before it has ended a step."""


class Steps(Protocol):
    """What drives a guest."""

    async def run(self, step: Step[T], *args: Any) -> T:
        """What the step returns, or raises."""


class DirectSteps:
    """Those of a guest in the test's own event loop."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.state: State = {}

    async def run(self, step: Step[T], *args: Any) -> T:
        return await step(self.kernel, self.state, *args)


class SentSteps:
    """Those of a guest elsewhere, which executes `serve_steps`. ended: it executes nothing any more."""

    def __init__(self, store: XenStoreClient, domid: int, ended: anyio.Event) -> None:
        self._store = store
        self._home = f"/local/domain/{domid}/data"
        self._domid = domid
        self._ended = ended
        self._numbers = count(1)
        self._waiting: set[Parker] = set()

    async def watch_end(self) -> None:
        """To be run beside the steps."""
        await self._ended.wait()
        for parker in self._waiting:
            parker.unpark()

    async def run(self, step: Step[T], *args: Any) -> T:
        for function in (step, *args):
            send_by_value(function)
        number = next(self._numbers)
        parts = _parts(cloudpickle.dumps((step, args)))
        path = f"{self._home}/parts/{number}"
        await self._store.write_many({f"{path}/{index}": part for index, part in enumerate(parts)})
        await self._store.write(f"{self._home}/calls/{number}", str(len(parts)))
        try:
            found = await self._result(number)
        except anyio.get_cancelled_exc_class():
            with anyio.move_on_after(CANCEL_SECONDS, shield=True):
                await self._cancel(number)
            raise
        value, error, text = cloudpickle.loads(found)
        if error is None:
            return value  # type: ignore[no-any-return]
        error.add_note(f"in domain {self._domid}:\n{text}")
        raise error

    async def finish(self) -> None:
        """Let `serve_steps` return; steps that still run are cancelled."""
        with suppress(StoreError):
            await self._store.write(f"{self._home}/calls/finish", "0")

    async def _cancel(self, number: int) -> None:
        with suppress(StoreError, GuestGone):
            await self._store.write(f"{self._home}/calls/{number}/cancel", "")
            await self._result(number)

    async def _result(self, number: int) -> bytes:
        done, parts = f"{self._home}/done/{number}", f"{self._home}/results/{number}"
        parker = new_parker()
        self._waiting.add(parker)
        changed = [True]

        def change() -> None:
            changed[0] = True
            parker.unpark()

        try:
            async with self._store.watch(done, change):
                while True:
                    while not changed[0] and not self._ended.is_set():
                        await parker.park()
                    changed[0] = False
                    (value,) = await self._store.read_many([done])
                    if value is not None:
                        break
                    if self._ended.is_set():
                        raise GuestGone(f"domain {self._domid}")
            pieces = await self._store.read_many([f"{parts}/{index}" for index in range(int(value))])
            for folder in (parts, done):
                await self._store.rm(folder)
            return _joined([piece or "" for piece in pieces])
        except StoreError as error:
            raise GuestGone(f"domain {self._domid}: {error}") from error
        finally:
            self._waiting.discard(parker)


def send_by_value(thing: object) -> None:
    """Let what a module of tests defines go to guests as it is, rather than be imported there: pytest has
    rewritten its assertions, and what it imports is much.
    """
    if isinstance(thing, partial):
        for part in (thing.func, *thing.args, *thing.keywords.values()):
            send_by_value(part)
        return
    name = getattr(thing, "__module__", None)
    if isinstance(name, str) and name.startswith("tests.") and name in sys.modules and name != __name__:
        cloudpickle.register_pickle_by_value(sys.modules[name])


async def serve_steps(kernel: Kernel) -> int:
    """The program of a guest that is driven by steps."""
    begun: dict[str, anyio.CancelScope] = {}
    state: State = {}
    async with anyio.create_task_group() as tasks, kernel.store.watch("data/calls") as watch:
        async for path in watch:
            if path.endswith("/cancel"):
                begun[path.split("/")[-2]].cancel()
                continue
            for name in await _names(kernel):
                if name == "finish":
                    tasks.cancel_scope.cancel()
                    return 0
                if name not in begun:
                    begun[name] = anyio.CancelScope()
                    tasks.start_soon(_serve, kernel, state, name, begun[name])
    return 0


async def _names(kernel: Kernel) -> list[str]:
    try:
        return await kernel.store.directory("data/calls")
    except StoreError:
        return []


async def _serve(kernel: Kernel, state: State, name: str, scope: anyio.CancelScope) -> None:
    store = kernel.store
    size = int(await store.read(f"data/calls/{name}"))
    pieces = await store.read_many([f"data/parts/{name}/{index}" for index in range(size)])
    await store.rm(f"data/parts/{name}")
    found: tuple[Any, BaseException | None, str] = None, GuestGone("cancelled"), ""
    with scope:
        found = await _run(kernel, state, _joined([piece or "" for piece in pieces]))
    parts = _parts(_dumped(found))
    await store.write_many({f"data/results/{name}/{index}": part for index, part in enumerate(parts)})
    await store.write(f"data/done/{name}", str(len(parts)))


async def _run(kernel: Kernel, state: State, call: bytes) -> tuple[Any, BaseException | None, str]:
    try:
        step, args = cloudpickle.loads(call)
        return await step(kernel, state, *args), None, ""
    except anyio.get_cancelled_exc_class():
        raise
    except BaseException as error:  # pytest's own among them
        return None, error.with_traceback(None), traceback.format_exc()


class StepFailed(Exception):
    """A step has returned or raised what cannot be sent."""


def _dumped(found: tuple[Any, BaseException | None, str]) -> bytes:
    value, error, text = found
    try:
        dumped: bytes = cloudpickle.dumps((value, error, text))
        cloudpickle.loads(dumped)
    except Exception as failure:
        what = repr(error) if error is not None else f"{value!r}: {failure!r}"
        dumped = cloudpickle.dumps((None, StepFailed(what), text))
    return dumped


def _parts(data: bytes) -> list[str]:
    text = base64.b64encode(zlib.compress(data, 1)).decode()
    return [text[first : first + PART_BYTES] for first in range(0, len(text), PART_BYTES)]


def _joined(parts: Sequence[str]) -> bytes:
    return zlib.decompress(base64.b64decode("".join(parts)))
