"""What SIGINT and SIGTERM mean while a scenario runs: the first asks for an orderly end, the next ends it."""

import signal
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final

import anyio

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


Ending = Callable[[], Coroutine[Any, Any, None]]


async def heed_interrupts(orderly: Ending, at_once: Ending) -> None:
    """Calls `orderly` at the first signal; at the second, cancels that and calls `at_once`. More are ignored.

    Signals come to a process's main thread only; in any other one there is nothing to do.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    with anyio.open_signal_receiver(*SIGNALS) as signals:
        await anext(signals)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(orderly)
            await anext(signals)
            tasks.cancel_scope.cancel()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(at_once)
            async for _ in signals:
                pass  # one that nobody took would be raised as KeyboardInterrupt in the end
