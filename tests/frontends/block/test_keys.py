"""What a backend may write, and what a frontend makes of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontends.block.keys import BadBackendKeys, DiskKeys, RingKeys, TransportKeys, published

RECORDED = {
    "feature-flush-cache": "1",
    "discard-granularity": "4096",
    "discard-alignment": "0",
    "discard-secure": "0",
    "feature-discard": "1",
    "feature-barrier": "1",
    "feature-persistent": "1",
    "sectors": "131072",
    "info": "0",
    "sector-size": "512",
    "physical-sector-size": "512",
    "feature-max-indirect-segments": "256",
}


def test_what_linux_writes() -> None:
    keys = DiskKeys.read("backend", RECORDED)
    assert (keys.sectors, keys.sector_size, keys.read_only) == (131072, 512, False)
    assert (keys.flush, keys.barrier, keys.discard, keys.persistent) == (True, True, True, True)
    assert keys.max_indirect_segments == 256
    assert DiskKeys.read("backend", RECORDED | {"info": "4"}).read_only


def test_an_old_backend_offers_little() -> None:
    keys = DiskKeys.read("backend", {"sectors": "8"})
    assert (keys.flush, keys.barrier, keys.discard, keys.persistent) == (False, False, False, False)
    assert (keys.sector_size, keys.max_indirect_segments) == (512, 0)
    assert TransportKeys.read("backend", {}).max_ring_page_order == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"sectors": "0"},
        {"sectors": "-1"},
        {"sectors": "many"},
        {"sectors": ""},
        {"sectors": "1" * 30},
        {"sectors": str(1 << 60)},
        {"sector-size": "0"},
        {"sector-size": "513"},
        {"sector-size": "3000"},
        {"sector-size": "1048576"},
        {"feature-flush-cache": "yes"},
        {"feature-discard": "2"},
    ],
    ids=str,
)
def test_what_no_disk_is(changes: dict[str, str]) -> None:
    with pytest.raises(BadBackendKeys) as refused:
        DiskKeys.read("backend", RECORDED | changes)
    (problem,) = refused.value.problems
    assert problem[:2] == next(iter(changes.items()))


@given(st.dictionaries(st.sampled_from(list(RECORDED)), st.text(max_size=24)))
def test_anything_is_read_or_refused(changes: dict[str, str]) -> None:
    try:
        keys = DiskKeys.read("backend", RECORDED | changes)
    except BadBackendKeys:
        return
    assert 0 < keys.sectors < 1 << 55
    assert keys.sector_size in (512, 1024, 2048, 4096)


def test_how_many_queues_are_offered() -> None:
    assert TransportKeys.read("backend", {}).max_queues == 1
    assert TransportKeys.read("backend", {"multi-queue-max-queues": "8"}).max_queues == 8
    with pytest.raises(BadBackendKeys):
        TransportKeys.read("backend", {"multi-queue-max-queues": "many"})


def publish(*rings: RingKeys, order: bool = False, queues: bool = False) -> dict[str, str]:
    """What is published of rings, without what is the same for all."""
    keys = published(rings, said_order=order, said_queues=queues, persistent=True)
    return {key: value for key, value in keys.items() if key not in ("protocol", "feature-persistent")}


def test_what_is_published() -> None:
    one = published([RingKeys([9], 10)], said_order=False, said_queues=False, persistent=True)
    assert list(one.items()) == [
        ("ring-ref", "9"),
        ("event-channel", "10"),
        ("protocol", "x86_64-abi"),
        ("feature-persistent", "1"),
    ]
    assert publish(RingKeys([9, 8, 7, 6], 10)) == {
        "ring-page-order": "2",
        **{f"ring-ref{page}": str(9 - page) for page in range(4)},
        "event-channel": "10",
    }
    again = publish(RingKeys([9], 10), order=True)
    assert again == {"ring-page-order": "0", "ring-ref0": "9", "event-channel": "10"}
    again = publish(RingKeys([9], 10), queues=True)
    assert again == {"multi-queue-num-queues": "1", "ring-ref": "9", "event-channel": "10"}


def test_several_queues_have_a_folder_each() -> None:
    """As blkif.h shows it, with rings of one page and of two."""
    assert publish(RingKeys([9], 10), RingKeys([8], 11)) == {
        "multi-queue-num-queues": "2",
        "queue-0/ring-ref": "9",
        "queue-0/event-channel": "10",
        "queue-1/ring-ref": "8",
        "queue-1/event-channel": "11",
    }
    assert publish(RingKeys([9, 7], 10), RingKeys([8, 6], 11)) == {
        "ring-page-order": "1",
        "multi-queue-num-queues": "2",
        "queue-0/ring-ref0": "9",
        "queue-0/ring-ref1": "7",
        "queue-0/event-channel": "10",
        "queue-1/ring-ref0": "8",
        "queue-1/ring-ref1": "6",
        "queue-1/event-channel": "11",
    }
