"""The report of a run as pydantic models: what `--json` writes and the terminal shows."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, computed_field, model_validator


class Section(BaseModel):
    """A part of the report; counters are totals over the run unless a name says otherwise."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _without_what_follows_from_the_rest(cls, given: Any) -> Any:
        """A written report holds computed fields, too; reading it back computes them again."""
        if not isinstance(given, dict):
            return given
        return {key: value for key, value in given.items() if key not in cls.model_computed_fields}


class MulticallReport(Section):
    """How hypercalls were batched."""

    batches: int = 0
    entries: int = 0

    @computed_field  # type: ignore[prop-decorator]
    @property
    def mean_length(self) -> float:
        """Entries a batch, on average."""
        return round(self.entries / self.batches, 2) if self.batches else 0.0


class GrantReport(Section):
    """What a domain did with other domains' grants, and what it left behind of its own."""

    mapped: int = 0
    unmapped: int = 0
    copied: int = 0
    bytes_copied: int = 0
    leaked: int = Field(default=0, description="grants given and not taken back when the domain shut down")
    leaks: list[str] = Field(default=[], description="each leak by name: who, what, still mapped or not")


class LatencyReport(Section):
    """Time from a request's submission to its completion, in microseconds."""

    samples: int = Field(default=0, ge=0)
    p50_us: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    p99_us: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    max_us: float = Field(default=0.0, ge=0, allow_inf_nan=False)


class RingReport(Section):
    """One side of a device's ring, or of all its rings: then notifications are added up."""

    size: int = Field(default=0, ge=0, description="slots of each ring")
    high_water: int = Field(
        default=0, ge=0, description="most requests that were in flight at once on one ring"
    )
    notifications_sent: int = Field(default=0, ge=0)
    notifications_suppressed: int = Field(default=0, ge=0)


class QueueReport(Section):
    """One of a device's queues, as the backend counted it."""

    name: str = Field(description="queue-0, queue-1 and so on")
    requests: dict[str, int] = {}
    errors: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    ring: RingReport = RingReport()


class DeviceReport(Section):
    """One split device, as its two drivers counted it."""

    name: str
    kind: str
    backend: str = ""
    backend_domain: str = Field(default="", description="the driver domain that served it; empty: dom0")
    lost: int = Field(default=0, description="1 if the domain that served it ended before it")
    requests: dict[str, int] = {}
    errors: int = Field(default=0, description="requests that failed, and what failed of the device itself")
    last_error: str = Field(default="", description="the last of them: its type and its text")
    bytes_read: int = 0
    bytes_written: int = 0
    frontend: RingReport = RingReport()
    backend_ring: RingReport = RingReport()
    queues: list[QueueReport] = Field(default=[], description="what the backend counted, queue by queue")
    latency: LatencyReport = LatencyReport()

    @computed_field  # type: ignore[prop-decorator]
    @property
    def requests_total(self) -> int:
        """Requests of all kinds."""
        return sum(self.requests.values())


class NativeReport(Section):
    """What a native domain did in its own process."""

    mean_us: dict[str, float] = Field(default={}, description="microseconds a hypercall took, by kind")
    traps: dict[str, int] = Field(default={}, description="exceptions taken from the guest, by vector")
    syscalls: int = Field(default=0, description="system calls of its own processes")
    slices: int = Field(default=0, description="how often the engine was let run")


class DomainReport(Section):
    """One domain."""

    name: str
    domid: int
    program: str
    isolation: str = Field(
        default="coroutine",
        description="what has executed it: a coroutine, a process or (native) an engine in one",
    )
    outcome: str = Field(default="", description="how it ended: a shutdown reason, destroyed, or running")
    exit_code: int | None = None
    crash: str = Field(default="", description="why it crashed, if it did")
    hypercalls: dict[str, int] = {}
    multicall: MulticallReport = MulticallReport()
    native: NativeReport = NativeReport()
    upcalls: int = 0
    events_sent: int = 0
    grants: GrantReport = GrantReport()
    devices: list[DeviceReport] = []
    served: list[DeviceReport] = Field(
        default=[], description="what a driver domain has served: guest and device, as it counted them"
    )
    console_log: str = Field(default="", description="the file that holds what its console has printed")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def hypercalls_total(self) -> int:
        """All hypercalls, batched ones counted singly too."""
        return sum(self.hypercalls.values())


class ExpectationResult(Section):
    """One thing that the scenario said must hold, and whether it did."""

    subject: str
    expected: str
    found: str
    held: bool


class RunReport(Section):
    """A whole run."""

    scenario: str
    loop: str
    seconds: float
    ok: bool
    domains: list[DomainReport]
    expectations: list[ExpectationResult]
    problems: list[str] = Field(default=[], description="what kept the run from its end, if anything")
    faults: list[str] = Field(default=[], description="exceptions that the core contained, by domain")
