from ringbuffers.testing import Access, watch
from tests.ringbuffers.pairs import SHAPES, new_pair, run, slot


def test_a_watched_ring_works_as_before() -> None:
    for shape in SHAPES:
        front, back, _ = new_pair(2**32 - 3, shape)
        logs = watch(front), watch(back)
        front.put(slot(0))
        front.put_run(run(1, 4))
        assert front.publish()
        assert back.take() == slot(0)
        assert back.take_run() == run(1, 4)
        back.put_many([slot(n) for n in range(5)])
        assert back.publish()
        assert front.take_many() == [slot(n) for n in range(5)]
        assert not front.rearm()
        assert not back.rearm()
        assert logs[0].filled == logs[1].copied
        assert logs[0].copied == logs[1].filled
        front.detach()
        back.detach()


def test_accesses_are_logged_in_order_and_counted() -> None:
    front, back, _ = new_pair()
    log = watch(back)
    front.put(slot(0))
    front.publish()
    back.take()
    back.put(slot(0))
    back.publish()
    assert log.order == [
        Access("load", "req_prod"),
        Access("copy", 0),
        Access("fill", 0),
        Access("store", "rsp_prod"),
        Access("load", "rsp_event"),
    ]
    assert log.loads == {"req_prod": 1, "rsp_event": 1}
    assert log.stores == {"rsp_prod": 1}


def test_the_hook_runs_before_the_access() -> None:
    front, back, words = new_pair()
    front.put(slot(0))
    front.publish()
    log = watch(back)
    seen = []
    log.before = lambda access: seen.append((access.what, len(log.order), back.taken))
    back.take()
    assert seen == [("req_prod", 0, 0), (0, 1, 0)]
    assert words[0] == 1
