"""A store with clients that talk to it in bytes, without any I/O."""

from collections import deque
from collections.abc import Callable
from typing import Final

from dom0.xenstore.check import problems
from dom0.xenstore.connection import Connection, Transport
from dom0.xenstore.core import XenStore
from dom0.xenstore.domain import DomainInfo
from ringbuffers.protocols import xs_wire
from ringbuffers.protocols.xs_wire import XS_ERROR, XS_WATCH_EVENT, Message, Parser

SECOND: Final = 10**9
_EVERYTHING: Final = 1 << 30

KINDS: Final = {
    name.removeprefix("XS_"): value
    for name, value in vars(xs_wire).items()
    if name.startswith("XS_") and isinstance(value, int)
}


class Client:
    """One connection. events: what was received and not looked at."""

    def __init__(self, store: "FakeMachine", connection: Connection) -> None:
        self.store = store
        self.connection = connection
        self.parser = Parser()
        self.answers: deque[Message] = deque()
        self.events: list[bytes] = []
        self.last_id = 0

    def send(self, kind: str, payload: bytes, tx: int = 0) -> None:
        """Send a request and do not read."""
        self.last_id += 1
        self.store.core.receive(self.connection, Message(KINDS[kind], self.last_id, tx, payload).pack())
        self.store.serve()

    def read(self, limit: int = _EVERYTHING) -> None:
        """Read up to `limit` bytes of what was sent to us."""
        for message in self.parser.feed(self.connection.output.take(limit)):
            if message.type == XS_WATCH_EVENT:
                self.events.append(message.payload)
            else:
                self.answers.append(message)
        self.connection.relieved()
        self.store.serve()

    def ask(self, kind: str, *strings: bytes | str, tx: int = 0, value: bytes | None = None) -> bytes:
        """Send strings, each with its NUL, then `value`; the answer, or the error's name."""
        payload = b"".join((s.encode() if isinstance(s, str) else s) + b"\0" for s in strings)
        return self.ask_raw(kind, payload + (value or b""), tx)

    def ask_raw(self, kind: str, payload: bytes, tx: int = 0) -> bytes:
        """The same with the payload as it is."""
        self.send(kind, payload, tx)
        self.read()
        answer = self.answers.popleft()
        assert (answer.req_id, answer.tx_id) == (self.last_id, tx)
        assert not self.answers
        if answer.type == XS_ERROR:
            return answer.payload.rstrip(b"\0")
        assert answer.type == KINDS[kind]
        return answer.payload

    def write(self, path: str, value: str = "", tx: int = 0) -> bytes:
        return self.ask("WRITE", path, value=value.encode(), tx=tx)

    def value(self, path: str, tx: int = 0) -> bytes:
        return self.ask("READ", path, tx=tx)

    def children(self, path: str, tx: int = 0) -> list[str]:
        return self.ask("DIRECTORY", path, tx=tx).decode().split("\0")[:-1]

    def permit(self, path: str, *entries: str, tx: int = 0) -> bytes:
        return self.ask("SET_PERMS", path, *entries, tx=tx)

    def start(self) -> int:
        return int(self.ask("TRANSACTION_START", "").rstrip(b"\0"))

    def end(self, tx: int, verdict: str = "T") -> bytes:
        return self.ask("TRANSACTION_END", verdict, tx=tx)

    def take_events(self) -> list[str]:
        """The events received so far as `path token`."""
        self.read()
        events, self.events = self.events, []
        return [" ".join(event.decode().split("\0")[:-1]) for event in events]


class FakeMachine:
    """A store core, time that is set by hand, and domains that exist because we say so."""

    def __init__(self, connect: Callable[[int, int, int], Transport] | None = None) -> None:
        self.now = 0
        self.alive: dict[int, DomainInfo] = {}
        self.log: list[str] = []
        extra = {} if connect is None else {"connect": connect}
        self.core = XenStore(now_ns=lambda: self.now, info=self.alive.get, log=self.log.append, **extra)

    def serve(self) -> None:
        """Give turns until nobody wants one; everything still adds up then."""
        for _ in range(100_000):
            if not self.core.ready:
                return
            self.core.turn()
        raise AssertionError("somebody gets turns for ever")

    def tool(self) -> Client:
        """A client on a socket."""
        return Client(self, self.core.connect())

    def guest(self, domid: int, identity: object = None) -> Client:
        """An introduced domain, with a home as the toolstack makes it."""
        self.alive[domid] = DomainInfo(identity=identity)
        domain = self.core.domains.find(domid)
        assert domain is not None
        domain.connection = self.core.connect(domain)
        tool = self.tool()
        tool.write(f"/local/domain/{domid}")
        tool.permit(f"/local/domain/{domid}", "n0", f"r{domid}")
        tool.write(f"/local/domain/{domid}/data")
        tool.permit(f"/local/domain/{domid}/data", f"n{domid}")
        self.core.disconnect(tool.connection)
        return Client(self, domain.connection)

    def destroy(self, domid: int) -> None:
        """The domain is gone, and the daemon is told that something happened."""
        del self.alive[domid]
        self.core.domains.check(self.core)
        self.serve()

    def pass_time(self, seconds: float) -> None:
        self.now += int(seconds * SECOND)
        self.core.expire()
        self.serve()

    def require_consistency(self) -> None:
        assert problems(self.core) == []
