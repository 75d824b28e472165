"""Counters by path: those that there are, those that count as 0, and suggestions for the others."""

import pytest

from dom0.report.model import (
    DeviceReport,
    DomainReport,
    GrantReport,
    LatencyReport,
    MulticallReport,
    QueueReport,
    RingReport,
)
from dom0.scenario.counters import counter_at, wrong_counter

REPORT = DomainReport(
    name="g",
    domid=1,
    program="hello",
    exit_code=3,
    hypercalls={"event_channel_op": 5},
    multicall=MulticallReport(batches=2, entries=5),
    grants=GrantReport(leaked=1, leaks=["one"]),
    devices=[
        DeviceReport(
            name="xvda",
            kind="vbd",
            requests={"read": 2, "write": 1},
            latency=LatencyReport(p50_us=1.5),
            queues=[QueueReport(name="queue-0", requests={"read": 2}, ring=RingReport(high_water=7))],
        )
    ],
    served=[DeviceReport(name="painter-xvda", kind="vbd", requests={"write": 8}, lost=1)],
)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("hypercalls.event_channel_op", 5),
        ("hypercalls.grant_table_op", 0),
        ("hypercalls_total", 5),
        ("multicall.mean_length", 2.5),
        ("grants.leaked", 1),
        ("devices.xvda.requests.read", 2),
        ("devices.xvda.requests.flush", 0),
        ("devices.xvda.requests_total", 3),
        ("devices.xvda.latency.p50_us", 1.5),
        ("devices.xvda.frontend.high_water", 0),
        ("devices.xvda.queues.queue-0.requests.read", 2),
        ("devices.xvda.lost", 0),
        ("served.painter-xvda.requests.write", 8),
        ("served.painter-xvda.lost", 1),
        ("served.painter-xvdb.lost", None),
        ("devices.xvda.queues.queue-0.ring.high_water", 7),
        ("devices.xvda.queues.queue-1.ring.high_water", None),
        ("devices.xvda.queues", None),
        ("devices.xvdb.bytes_read", None),
        ("grants", None),
        ("grants.leaks", None),
        ("grants.leaked.more", None),
        ("name", None),
        ("exit_code", None),
        ("model_fields", None),
        ("nothing", None),
        ("", None),
    ],
)
def test_the_number_at_a_path(path: str, value: float | None) -> None:
    assert counter_at(REPORT, path) == value


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("upcalls", None),
        ("hypercalls.memory_op", None),
        ("devices.xvda.requests.discard", None),
        ("devices.xvda.latency.p99_us", None),
        ("devices.xvda.queues.queue-15.bytes_written", None),
        ("devices.xvda.queues.queue-1.ring.notifications_sent", None),
        ("devices.xvda.queues.quue-3.errors", "devices.xvda.queues.queue-3, perhaps"),
        ("devices.xvda.queues.queue-16.errors", "devices.xvda.queues.queue-6, perhaps"),
        ("upcals", "upcalls, perhaps"),
        ("grants.leakd", "grants.leaked, perhaps"),
        ("grants", "one of grants.bytes_copied, grants.copied, grants.leaked"),
        ("native.mean_us.mmu_updat", "native.mean_us.mmu_update, perhaps"),
        ("native.traps.page_fautl", "native.traps.page_fault, perhaps"),
        ("grants.leaked.x", "a counter; grants.leaked has no parts"),
        ("hypercalls.grant_tabel_op", "hypercalls.grant_table_op, perhaps"),
        ("hypercalls", "one of hypercalls.callback_op, "),
        ("devices.xvdz.errors", "devices.xvda, perhaps"),
        ("devices.xvda.requests.reads", "devices.xvda.requests.read, perhaps"),
        ("crash", "one of devices, "),
        ("devices.xvda.name", "one of devices.xvda.backend_ring, "),
    ],
)
def test_what_is_no_counter_gets_a_suggestion(path: str, expected: str | None) -> None:
    found = wrong_counter(path, ["xvda"])
    assert found == expected or (expected is not None and found is not None and found.startswith(expected))


def test_a_guest_without_disks_has_no_device_counters() -> None:
    assert wrong_counter("devices.xvda.errors", []) == "a counter; devices has no parts"


def test_every_counter_that_is_right_can_be_looked_up() -> None:
    paths = [
        "upcalls",
        "hypercalls.domctl",
        "devices.xvda.errors",
        "grants.bytes_copied",
        "multicall.entries",
    ]
    assert all(
        wrong_counter(path, ["xvda"]) is None and counter_at(REPORT, path) is not None for path in paths
    )
