"""A whole life of domains on a real Xen, replayed: every request that changed the store, by whom, in its
order.

After each phase the store has to be what `xenstore-ls -fp` showed there: nodes, order, values and
permissions. Requests that failed have to fail alike. The trace does not say which transaction of a kernel a
request belonged to, so kernels' requests are replayed one by one; tools have one transaction at a time.
"""

import re
from pathlib import Path
from typing import Final

from dom0.xenstore import paths
from dom0.xenstore.connection import Failure
from dom0.xenstore.domain import DomainInfo
from dom0.xenstore.output import Output
from tests.dom0.xenstore.clients import Client, FakeMachine

DATA: Final = Path(__file__).parents[1] / "data"
REFUSED: Final = re.compile(r"<- ERROR (\w+) \[(\w+) (.*)\]")
SNAPSHOTS: Final = {
    "idle-recorded": "xenstore-dom0-idle.txt",
    "xl-create-paused-end": "xenstore-domU-paused.txt",
    "domU-ready": "xenstore-domU-running.txt",
    "domU-write-probe-done": "xenstore-domU-2disks.txt",
    "xl-shutdown-end": "xenstore-after-shutdown.txt",
    "u2-created": "xenstore-domU-minimal.txt",
    "u2-destroy-end": "xenstore-after-destroy.txt",
}
# The trace leaves out the commands that only recorded. `xl mem-set` was among them.
LEFT_OUT: Final = {
    "xl-outputs-done": (
        "tool WRITE /local/domain/0/memory/target 1835008",
        "tool WRITE /local/domain/0/memory/static-max 1835008",
        "tool WRITE /vm/11111111-2222-3333-4444-555555555555/memory 256",
    )
}
LOOKS: Final = ("READ", "DIRECTORY")
NODE: Final = re.compile(r'(?P<path>/\S*) = "(?P<value>.*)"   \((?P<permissions>[^)]*)\)')


class SilentRing:
    """A ring that nobody looks at."""

    def attach(self, wake: object) -> None: ...

    def restarted(self) -> bool:
        return False

    def fill(self) -> bytes:
        return b""

    def flush(self, output: Output) -> bool:
        return False

    def fail(self, failure: Failure) -> None: ...

    def close(self) -> None: ...


class Replay:
    """The machine of the trace."""

    def __init__(self) -> None:
        self.store = FakeMachine(connect=lambda _domid, _gfn, _port: SilentRing())
        self.clients: dict[str, Client] = {}
        self.transactions: dict[str, int] = {}
        self.failed: dict[tuple[str, str], bytes] = {}
        self.store.alive.update({1: DomainInfo(), 3: DomainInfo()})

    def client(self, name: str) -> Client:
        if name not in self.clients:
            if name.startswith("dom") and name != "dom0":
                connection = self.store.core.domains.known[int(name[3:])].connection
                assert connection is not None
                self.clients[name] = Client(self.store, connection)
            else:
                self.clients[name] = self.store.tool()
        return self.clients[name]

    def request(self, name: str, kind: str, rest: str) -> bytes:
        client = self.client(name)
        if kind == "TRANSACTION_START":
            if name.startswith("tool"):
                self.transactions[name] = client.start()
            return b"\0"
        if kind == "TRANSACTION_END":
            tx = self.transactions.pop(name, 0)
            return client.end(tx, rest.strip()) if tx else b"\0"
        tx = self.transactions.get(name, 0)
        if kind == "WRITE":
            path, _, value = rest.partition(" ")
            return client.write(path, value, tx=tx)
        answer = client.ask(kind, *rest.split(), tx=tx)
        client.take_events()
        return answer

    def line(self, text: str) -> None:
        name, _, request = text.partition(" ")
        if name == "DESTROY-CONNECTION":
            self.store.destroy(int(request[3:]))
            del self.clients[request]
            return
        request = request.strip() + " "
        refused = REFUSED.match(request)
        if refused is None:
            kind, _, rest = request.partition(" ")
            answer = self.request(name, kind, rest[:-1])
            if not answer.endswith(b"\0") and kind not in ("WATCH", "UNWATCH"):
                self.failed[name, request] = answer
        elif refused[2] in LOOKS:
            assert self.request(name, refused[2], refused[3]) == refused[1].encode(), text
        else:
            asked = f"{refused[2]} {refused[3].strip()} "
            assert self.failed.pop((name, asked)) == refused[1].encode(), text

    def listing(self) -> list[str]:
        """What `xenstore-ls -fp` prints."""
        client = self.client("lister")
        lines: list[str] = []
        stack = [("/", iter(client.children("/")))]
        while stack:
            path, names = stack[-1]
            name = next(names, None)
            if name is None:
                stack.pop()
                continue
            below = paths.join(path.encode(), name.encode()).decode()
            permissions = client.ask("GET_PERMS", below).decode().rstrip("\0").replace("\0", ",")
            lines.append(f'{below} = "{client.value(below).decode()}"   ({permissions})')
            stack.append((below, iter(client.children(below))))
        return lines


def snapshot(name: str) -> list[str]:
    return [line for line in (DATA / name).read_text().splitlines() if not line.startswith("#")]


def test_the_store_is_what_xen_had_after_every_phase() -> None:
    replay = Replay()
    compared = 0
    for line in (DATA / "xenbus-trace-writes.txt").read_text().splitlines():
        if line.startswith("## phase: "):
            phase = line.removeprefix("## phase: ")
            for left_out in LEFT_OUT.get(phase, ()):
                replay.line(left_out)
            if phase in SNAPSHOTS:
                assert replay.listing() == snapshot(SNAPSHOTS[phase]), phase
                compared += 1
        elif line and not line.startswith("#"):
            replay.line(line)
    assert compared == len(SNAPSHOTS)
    assert not replay.failed, "refused here, but not by Xen"
    replay.store.require_consistency()
