"""Conversations as text: one request a line, with who sends it, and what has to come back.

    tool        WRITE /a =value     -> OK
    dom1:A      READ data           -> ENOENT       ; in the transaction A of domain 1
    dom1:A      START               -> begun        ; begins it
    tool        EVENTS              -> /a token, /b token

Strings of a payload are separated by blanks and end with NUL; `=x` is a value that ends without one. In
answers `|` is NUL, `OK` stands for `OK|`, and nothing for an empty answer.
"""

from tests.dom0.xenstore.clients import Client, FakeMachine


class Conversation:
    """The machine, and its clients by name: `tool…` are sockets, `domN` guests."""

    def __init__(self, machine: FakeMachine | None = None) -> None:
        self.machine = machine or FakeMachine()
        self.clients: dict[str, Client] = {}
        self.transactions: dict[str, int] = {}

    def client(self, name: str) -> Client:
        if name not in self.clients:
            domid = name.removeprefix("dom")
            self.clients[name] = self.machine.tool() if domid == name else self.machine.guest(int(domid))
        return self.clients[name]

    def play(self, script: str) -> None:
        """Say all lines in order and compare; whoever speaks is there from the start."""
        lines = [text for line in script.splitlines() if (text := line.split(" ; ")[0].strip())]
        for line in lines:
            self.client(line.split()[0].partition(":")[0])
        for line in lines:
            request, _, expected = line.partition("->")
            who, *words = request.split()
            assert self._answer(who, words) == _spell(expected.strip()), line
        self.machine.require_consistency()

    def _answer(self, who: str, words: list[str]) -> str:
        name, _, label = who.partition(":")
        client = self.client(name)
        kind, *strings = words
        if kind == "EVENTS":
            return ", ".join(client.take_events())
        if kind == "START":
            self.transactions[who] = client.start()
            return "begun"
        tx = self.transactions[who] if label else 0
        if kind == "END":
            return client.end(tx, strings[0]).decode()
        if strings and strings[-1].startswith("="):
            return client.ask(kind, *strings[:-1], value=strings[-1][1:].encode(), tx=tx).decode()
        return client.ask(kind, *strings, tx=tx).decode()


def _spell(expected: str) -> str:
    return "OK\0" if expected == "OK" else expected.replace("|", "\0")
