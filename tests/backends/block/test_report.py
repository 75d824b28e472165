"""What a driver domain leaves of its counts: all of it, and never more than a node has room for."""

import json

from hypothesis import given
from hypothesis import strategies as st

from backends.block.report import STATISTICS, BackendReport, QueueCounts, statistics_nodes
from backends.block.stats import KINDS, DeviceStats
from dom0.xenstore.quotas import Quotas
from ringbuffers.protocols import blkif


def test_counts_survive_the_way_through_the_store() -> None:
    stats = DeviceStats()
    for index in range(2):
        asked, rings = stats.queue(index)
        asked.count(blkif.BLKIF_OP_FLUSH_DISKCACHE)
        asked.count_pages(3, 1 + index)
        rings.size = 128
    stats.queue(1).requests.error("store failed", "the disk is full")
    nodes = statistics_nodes("file", stats)
    assert list(nodes) == [STATISTICS, f"{STATISTICS}/queue-0", f"{STATISTICS}/queue-1"]
    whole = BackendReport.model_validate_json(nodes[STATISTICS])
    assert (whole.requests, whole.errors) == ({"flush": 2, "read": 6, "write": 3}, 1)
    assert (whole.bytes_read, whole.bytes_written, whole.ring_size) == (6 * 4096, 3 * 4096, 128)
    assert (whole.backend, whole.last_error) == ("file", "the disk is full")
    second = QueueCounts.model_validate_json(nodes[f"{STATISTICS}/queue-1"])
    assert (second.requests, second.errors) == ({"flush": 1, "read": 3, "write": 2}, 1)


@given(error=st.text(max_size=3000), backend=st.text(max_size=600))
def test_no_error_and_no_name_is_too_long_for_a_node(error: str, backend: str) -> None:
    stats = DeviceStats()
    asked, _ = stats.queue(0)
    for operation in (*KINDS, 77):
        asked.requests[KINDS.get(operation, "unknown")] = (1 << 64) - 1
    asked.bytes_read = asked.bytes_written = (1 << 64) - 1
    stats.error("store broken", error)
    for path, text in statistics_nodes(backend, stats).items():
        assert len(text.encode("utf-8", "surrogateescape")) <= Quotas().node_size - 64, path
        json.loads(text)
