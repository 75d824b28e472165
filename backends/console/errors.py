"""What can go wrong with the console of a domain, by culprit. Every error carries its fields."""


class ConsoleError(Exception):
    """Base of all errors of the console daemon."""


class NoConsole(ConsoleError):
    """The daemon serves no console of domain `domid`."""

    def __init__(self, domid: int) -> None:
        super().__init__(f"domain {domid} has no console that is served")
        self.domid = domid


class ConsoleClosed(ConsoleError):
    """Nothing can be typed any more: the console was closed, for `reason`."""

    def __init__(self, domid: int, reason: str) -> None:
        super().__init__(f"the console of domain {domid} is closed: {reason}")
        self.domid = domid
        self.reason = reason


class CannotConnect(ConsoleError):
    """The ring of domain `domid` cannot be mapped, or its port not bound; `reason` says why."""

    def __init__(self, domid: int, reason: str) -> None:
        super().__init__(f"the console of domain {domid} cannot be connected: {reason}")
        self.domid = domid
        self.reason = reason


class BadKeys(ConsoleError):
    """What XenStore says of the console of domain `domid` makes no sense: the toolstack's fault."""

    def __init__(self, domid: int, reason: str) -> None:
        super().__init__(f"the console of domain {domid} is badly described: {reason}")
        self.domid = domid
        self.reason = reason
