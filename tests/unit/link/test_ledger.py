"""The ledger: sums by hand, and no count lost between threads."""

from concurrent.futures import ThreadPoolExecutor

from link.ledger import Ledger, Traffic


def test_each_frame_counts_with_its_prefix() -> None:
    ledger = Ledger()
    ledger.up("a", 10)
    ledger.up("a", 0)
    ledger.down("b", 100)
    assert ledger.peer("a") == Traffic(bytes_up=20, bytes_down=0, frames_up=2, frames_down=0)
    assert ledger.peer("b") == Traffic(bytes_up=0, bytes_down=105, frames_up=0, frames_down=1)
    assert ledger.total() == Traffic(bytes_up=20, bytes_down=105, frames_up=2, frames_down=1)
    assert set(ledger.peers()) == {"a", "b"}


def test_a_stranger_has_sent_nothing() -> None:
    assert Ledger().peer("nobody") == Traffic()
    assert Ledger().peers() == {}


def test_what_passed_since_is_a_difference() -> None:
    ledger = Ledger()
    ledger.up("a", 1)
    before = ledger.total()
    ledger.up("a", 2)
    ledger.down("a", 3)
    assert ledger.total() - before == Traffic(bytes_up=7, bytes_down=8, frames_up=1, frames_down=1)


def test_threads_do_not_lose_counts() -> None:
    ledger = Ledger()

    def count(name: str) -> None:
        for _ in range(1000):
            ledger.up(name, 1)
            ledger.down(name, 2)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(count, ["a", "b", "a", "b"]))
    assert ledger.total() == Traffic(bytes_up=24_000, bytes_down=28_000, frames_up=4000, frames_down=4000)
    assert ledger.peer("a") == ledger.peer("b") == Traffic(12_000, 14_000, 2000, 2000)
