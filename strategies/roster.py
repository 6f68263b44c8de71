"""What a strategy knows of its clients beside their replies: where they are, and what the transport has measured."""

from collections.abc import Mapping, Sequence
from typing import Protocol


class Roster(Protocol):
    """Which worker can be reached at which Flower node. What a roster cannot measure keeps its default."""

    def nodes(self) -> Mapping[int, int]:
        """Return node id by worker, of the workers that can be reached now."""

    def name(self, worker: int) -> str:
        """Return the worker's name, for logs and metrics."""

    def wait(self, count: int, timeout: float) -> int:
        """Wait until ``count`` workers can be reached, at most ``timeout`` seconds; return how many can."""

    def waits(self) -> Sequence[float]:
        """Return the seconds after which each reply of the last round came; needed to learn a deadline."""
        return ()

    def late(self) -> Sequence[str]:
        """Return the names of the clients whose reply came after its round was over, since the last call."""
        return ()

    def traffic(self) -> tuple[int, int]:
        """Return (bytes up, bytes down) since the start."""
        return 0, 0
