"""Keys of both folders: what is right is read, what is not is refused by name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ByteSize

from backends.block.keys import BadKeys, FrontendKeys, QueueKeys, SetupKeys, check_apart, described, offered
from backends.block.memory import MemoryStore, MemoryStoreConfig
from backends.block.opened import OpenedStore
from ringbuffers.protocols import blkif

RIGHT = {"ring-ref": "9", "event-channel": "10", "protocol": "x86_64-abi", "feature-persistent": "1"}


def read(keys: dict[str, str]) -> tuple[FrontendKeys, QueueKeys]:
    """What a frontend with one queue says."""
    found = FrontendKeys.read("device", keys)
    return found, found.queue("device", keys)


def test_what_linux_writes() -> None:
    keys, queue = read(RIGHT | {"state": "3", "virtual-device": "51712"})
    assert (keys.queues, keys.persistent, queue) == (1, True, QueueKeys("device", (9,), 10))
    keys, queue = read({"ring-ref": "9", "event-channel": "10"})
    assert (keys.queues, keys.persistent, queue) == (1, False, QueueKeys("device", (9,), 10))


@pytest.mark.parametrize(
    ("keys", "refs"),
    [
        ({"ring-page-order": "1", "ring-ref0": "5", "ring-ref1": "6"}, (5, 6)),
        ({"ring-page-order": "0", "ring-ref0": "5"}, (5,)),
        ({"ring-page-order": "0", "ring-ref": "5"}, (5,)),
        ({"num-ring-pages": "2", "ring-ref0": "5", "ring-ref1": "6"}, (5, 6)),
        ({"num-ring-pages": "1", "ring-ref": "7"}, (7,)),
        # Left by a connection before: the order that is written now counts.
        ({"ring-page-order": "0", "ring-ref0": "5", "ring-ref1": "6", "ring-ref": "7"}, (5,)),
        ({"ring-ref": "7", "ring-ref0": "5"}, (7,)),
    ],
)
def test_rings_of_several_pages(keys: dict[str, str], refs: tuple[int, ...]) -> None:
    assert read({"event-channel": "1", **keys})[1].ring_refs == refs


def test_a_full_ring_is_sixteen_pages() -> None:
    refs = {f"ring-ref{page}": str(page + 20) for page in range(16)}
    _, queue = read({"event-channel": "1", "ring-page-order": "4", **refs})
    assert queue.ring_refs == tuple(range(20, 36))


def test_several_queues_have_a_folder_each() -> None:
    keys = FrontendKeys.read("device", {"multi-queue-num-queues": "2", "ring-page-order": "1"})
    assert keys.folders("device") == ["device/queue-0", "device/queue-1"]
    assert keys.nodes_of_ring() == ["event-channel", "ring-ref", "ring-ref0", "ring-ref1"]
    queue = keys.queue("device/queue-1", {"ring-ref0": "5", "ring-ref1": "6", "event-channel": "7"})
    assert queue == QueueKeys("device/queue-1", (5, 6), 7)
    for missing in ("ring-ref0", "ring-ref1", "event-channel"):
        keys_of_ring = {"ring-ref0": "5", "ring-ref1": "6", "event-channel": "7"}
        del keys_of_ring[missing]
        with pytest.raises(BadKeys, match=f"device/queue-1/{missing} is None"):
            keys.queue("device/queue-1", keys_of_ring)


@pytest.mark.parametrize("said", ["0", "5", "17", "-1", "", "two", "4294967298"])
def test_no_more_queues_than_were_offered(said: str) -> None:
    assert FrontendKeys.read_within("device", {"multi-queue-num-queues": "4"}, 4).queues == 4
    with pytest.raises(BadKeys) as refused:
        FrontendKeys.read_within("device", {"multi-queue-num-queues": said}, 4)
    assert (refused.value.key, refused.value.found) == ("multi-queue-num-queues", said)


def test_queues_share_nothing() -> None:
    first, second = QueueKeys("d/queue-0", (5, 6), 1), QueueKeys("d/queue-1", (7, 8), 2)
    check_apart([first, second])
    for same, key in (
        (second._replace(ring_refs=(7, 5)), "ring-ref"),
        (second._replace(event_channel=1), "event-channel"),
    ):
        with pytest.raises(BadKeys, match="d/queue-0") as refused:
            check_apart([first, same])
        assert (refused.value.path, refused.value.key) == ("d/queue-1", key)


@given(
    st.dictionaries(
        st.sampled_from([*RIGHT, "ring-page-order", "ring-ref0", "num-ring-pages"]), st.text(max_size=8)
    )
)
def test_anything_is_read_or_refused(changes: dict[str, str]) -> None:
    try:
        keys, queue = read(RIGHT | changes)
    except BadKeys:
        return
    assert 1 <= len(queue.ring_refs) == keys.ring_pages <= 16
    assert all(0 <= number < 2**32 for number in (*queue.ring_refs, queue.event_channel))


def test_the_error_names_key_and_value() -> None:
    with pytest.raises(BadKeys, match="device/event-channel is 'no'") as refused:
        read(RIGHT | {"event-channel": "no"})
    assert (refused.value.key, refused.value.found) == ("event-channel", "no")


def test_setup() -> None:
    keys = SetupKeys.read("backend", {"type": "file", "params": "/a.img", "mode": "w", "device-type": "disk"})
    assert (keys.read_only, keys.info) == (False, 0)
    keys = SetupKeys.read("backend", {"type": "file", "mode": "r", "device-type": "cdrom", "removable": "1"})
    assert keys.info == blkif.VDISK_READONLY | blkif.VDISK_CDROM | blkif.VDISK_REMOVABLE
    assert SetupKeys.read("backend", {"type": "file"}).read_only  # if nobody says, nothing is written
    assert (keys.max_queues, SetupKeys.read("backend", {"type": "file", "max-queues": "9"}).max_queues) == (
        4,
        9,
    )
    for wrong in (
        {},
        {"type": "file", "mode": "rw"},
        {"type": "file", "discard-enable": "yes"},
        {"type": "file", "max-queues": "0"},
        {"type": "file", "max-queues": "17"},
    ):
        with pytest.raises(BadKeys):
            SetupKeys.read("backend", wrong)


def test_what_the_backend_says() -> None:
    assert offered(SetupKeys.read("backend", {"type": "file", "max-queues": "3"})) == {
        "feature-max-indirect-segments": "256",
        "multi-queue-max-queues": "3",
        "max-ring-page-order": "4",
    }
    store = MemoryStore(MemoryStoreConfig(size=ByteSize(1 << 20)))
    store.open()
    assert list(described(OpenedStore(store), 0)) == [
        "feature-flush-cache",
        "discard-granularity",
        "discard-alignment",
        "discard-secure",
        "feature-discard",
        "feature-barrier",
        "feature-persistent",
        "sectors",
        "info",
        "sector-size",
        "physical-sector-size",
    ]
