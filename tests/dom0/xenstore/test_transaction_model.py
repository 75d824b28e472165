"""Random requests in and out of transactions, against the plain model: answers, events, tree, counters."""

from collections.abc import Callable

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from tests.dom0.xenstore.clients import Client, FakeMachine
from tests.dom0.xenstore.model import Model, Private, View, answer

QUOTA = 7
FOLDERS = ["", "/shared", "/local/domain/1/data", "/local/domain/2/data"]
PATHS = st.builds(
    lambda top, names: (top + "".join(f"/{name}" for name in names)) or "/",
    st.sampled_from(FOLDERS),
    st.lists(st.sampled_from(["a", "b"]), max_size=3),
)
WHO = st.sampled_from([0, 1, 2])
VALUES = st.sampled_from(["", "x", "long" * 5])
ENTRIES = st.lists(st.tuples(st.sampled_from("nrwb"), st.sampled_from([0, 1, 2, 9])), min_size=1, max_size=3)


class Open:
    """A transaction, as both sides know it."""

    def __init__(self, client: Client, who: int, tx: int, model: Private) -> None:
        self.client = client
        self.who = who
        self.tx = tx
        self.model = model


class StoreAndModel(RuleBasedStateMachine):
    """The real store and the model side by side. Each of three clients watches the root."""

    begun: Bundle[Open] = Bundle("begun")
    within = st.one_of(st.none(), begun)

    @initialize()
    def start(self) -> None:
        self.real = FakeMachine()
        self.real.core.quotas.nodes = QUOTA
        self.model = Model(QUOTA)
        self.clients: dict[int, Client] = {0: self.real.tool()}
        store = self.model.store
        self.model.make(store, 0, "/tool/xenstored")
        self.clients[0].write("/shared")
        self.model.write(store, 0, "/shared", "")
        self.clients[0].permit("/shared", "b0")
        self.model.permit(store, 0, "/shared", [("b", 0)])
        for who in (0, 1, 2):
            self.boot(who)

    def boot(self, who: int) -> None:
        """A domain with a home, as FakeMachine.guest makes it, and a watch."""
        self.model.lives.setdefault(who, 0)
        if who:
            self.clients[who] = self.real.guest(who)
            store, home = self.model.store, f"/local/domain/{who}"
            self.model.write(store, 0, home, "")
            self.model.permit(store, 0, home, [("n", 0), ("r", who)])
            self.model.write(store, 0, f"{home}/data", "")
            self.model.permit(store, 0, f"{home}/data", [("n", who)])
        self.real.pass_time(1)
        self.clients[who].ask("WATCH", "/", "t")
        self.forget_events()
        self.model.heard[who] = set()

    def forget_events(self) -> None:
        for client in self.clients.values():
            client.take_events()
        for paths in self.model.heard.values():
            paths.clear()

    def compare(
        self,
        who: int,
        within: Open | None,
        ask: Callable[[Client, int], bytes],
        expect: Callable[[int, View], str],
    ) -> None:
        """Both sides do the same, in the transaction if that is still open, and answer the same."""
        if within is not None and within.client.connection.closed:
            within = None
        self.real.pass_time(1)  # whoever let a transaction fail has waited then
        if within is not None:
            got = ask(within.client, within.tx)
            assert got.decode() == answer(lambda: expect(within.who, within.model))
        else:
            got = ask(self.clients[who], 0)
            assert got.decode() == answer(lambda: expect(who, self.model.store))

    @rule(who=WHO, within=within, path=PATHS)
    def read(self, who: int, within: Open | None, path: str) -> None:
        self.compare(
            who,
            within,
            lambda client, tx: client.value(path, tx=tx),
            lambda who, view: self.model.find(view, who, path, "r").value,
        )

    @rule(who=WHO, within=within, path=PATHS)
    def directory(self, who: int, within: Open | None, path: str) -> None:
        self.compare(
            who,
            within,
            lambda client, tx: client.ask("DIRECTORY", path, tx=tx),
            lambda who, view: "".join(name + "\0" for name in self.model.find(view, who, path, "r").children),
        )

    @rule(who=WHO, within=within, path=PATHS, value=VALUES)
    def write(self, who: int, within: Open | None, path: str, value: str) -> None:
        self.compare(
            who,
            within,
            lambda client, tx: client.write(path, value, tx=tx),
            lambda who, view: self.model.write(view, who, path, value),
        )

    @rule(who=WHO, within=within, path=PATHS)
    def make(self, who: int, within: Open | None, path: str) -> None:
        self.compare(
            who,
            within,
            lambda client, tx: client.ask("MKDIR", path, tx=tx),
            lambda who, view: self.model.make(view, who, path),
        )

    @rule(who=WHO, within=within, path=PATHS)
    def remove(self, who: int, within: Open | None, path: str) -> None:
        self.compare(
            who,
            within,
            lambda client, tx: client.ask("RM", path, tx=tx),
            lambda who, view: self.model.remove(view, who, path),
        )

    @rule(who=WHO, within=within, path=PATHS, entries=ENTRIES)
    def permit(self, who: int, within: Open | None, path: str, entries: list[tuple[str, int]]) -> None:
        self.compare(
            who,
            within,
            lambda client, tx: client.permit(path, *(f"{a}{b}" for a, b in entries), tx=tx),
            lambda who, view: self.model.permit(view, who, path, entries),
        )

    @rule(target=begun, who=WHO)
    def begin(self, who: int) -> Open | MultipleResults[Open]:
        self.real.pass_time(1)
        client = self.clients[who]
        if len(client.connection.transactions) >= 3:
            return multiple()
        return Open(client, who, client.start(), Private(self.model.store, who))

    @rule(ended=consumes(begun), commit=st.sampled_from([True, True, True, False]))
    def end(self, ended: Open, commit: bool) -> None:
        if ended.client.connection.closed:
            return
        self.real.pass_time(1)
        got = ended.client.end(ended.tx, "T" if commit else "F").decode()
        if commit:
            assert got == answer(lambda: ended.model.commit(self.model.lives, QUOTA) or "OK\0")
        else:
            assert got == "OK\0"

    @rule(domid=st.sampled_from([1, 2]))
    def reboot(self, domid: int) -> None:
        """The domain dies, and another gets its number."""
        self.real.destroy(domid)
        self.model.bury(domid)
        self.boot(domid)

    @invariant()
    def the_trees_are_the_same(self) -> None:
        real = {
            path.decode(): (
                node.value.decode(),
                node.permissions.wire.decode(),
                [name.decode() for name in node.children],
            )
            for path, node in self.real.core.store.nodes.items()
        }
        plain = {
            path: (node.value, node.spelled(), node.children) for path, node in self.model.store.nodes.items()
        }
        assert real == plain

    @invariant()
    def the_watches_heard_the_same(self) -> None:
        for who, client in self.clients.items():
            heard = {event.removesuffix(" t") for event in client.take_events()}
            assert heard == self.model.heard[who], who
            self.model.heard[who].clear()

    @invariant()
    def everything_adds_up(self) -> None:
        self.real.require_consistency()


TestStoreAndModel = StoreAndModel.TestCase
TestStoreAndModel.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
