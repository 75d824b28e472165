"""Two processes that ring each other, and what their platform does when its machine is gone."""

import pytest

from hypervisor.abi.sched import SHUTDOWN_poweroff
from hypervisor.domain import Domain
from tests.hypervisor.vcpu.process.hosted import Hosted, count
from tests.hypervisor.vcpu.process.raw_guests import PORT

pytestmark = pytest.mark.anyio

ROUNDS = 4_000
"""of two events each"""


def connect(one: Domain, other: Domain) -> None:
    """By the first port of each, on which nothing is pending."""
    port = one.events.alloc_unbound(other.domid)
    assert other.events.bind_interdomain(one.events, port) == port == PORT
    channel = other.events.lookup(port)
    assert channel is not None
    other.events.bits.clear_pending(channel)
    other.vcpus[0].info[:16] = bytes(16)


async def test_no_event_between_two_processes_is_lost(anyio_backend: str) -> None:
    """One is answered by one: whoever misses one waits for ever, and so does the other."""
    async with Hosted.running() as hosted:
        one, other = hosted.build(), hosted.build()
        connect(one, other)
        executions = []
        for domain in (one, other):
            begins = int(domain is one)
            executions.append(
                hosted.start("ring_in_turns", f"{anyio_backend} {ROUNDS} {begins}".encode(), domain)
            )
        one.unpause()
        other.unpause()
        for execution in executions:
            said = await hosted.finish(execution)
            domain = execution.vcpu.domain
            assert (said, count(domain), domain.shutdown_reason) == ("", ROUNDS, SHUTDOWN_poweroff)
        by_hypercall = sum(domain.counters.hypercalls["event_channel_op"] for domain in (one, other))
        assert by_hypercall < 10, "events cross into the hypervisor"
        assert one.counters.events_received >= ROUNDS
