"""What a disk's frontend has counted, as the domain leaves it for the toolstack."""

from pydantic import BaseModel, ConfigDict, Field

from frontends.block.stats import DiskStats


class FrontendReport(BaseModel):
    """One end of a disk. Latencies are microseconds from a request's publishing to its answer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    requests: dict[str, int] = Field(default_factory=dict)
    errors: int = 0
    reconnections: int = 0
    queues: int = 0
    ring_size: int = 0
    high_water: int = 0
    notifications_sent: int = 0
    notifications_suppressed: int = 0
    samples: int = 0
    p50_us: float = 0.0
    p99_us: float = 0.0
    max_us: float = 0.0

    @classmethod
    def of(cls, stats: DiskStats) -> "FrontendReport":
        """The report of what was counted so far."""
        latency = stats.latency
        return cls(
            requests=dict(stats.requests),
            errors=stats.errors,
            reconnections=stats.reconnections,
            queues=stats.queues,
            ring_size=stats.ring_size,
            high_water=stats.high_water,
            notifications_sent=stats.notifications_sent,
            notifications_suppressed=stats.notifications_suppressed,
            samples=latency.samples,
            p50_us=latency.percentile_us(50),
            p99_us=latency.percentile_us(99),
            max_us=latency.max_ns / 1000,
        )
