"""What the honest workers of one process have replied to an instruction, for a coalition in the same process.

An omniscient coalition knows what the honest workers send. Where these run beside it, and have answered before it, it
takes what they computed and does not compute it again. Whether it does changes no bit: a reply is a function of the
worker, its state, the instruction and the run's random streams.
"""

from strategies.method import Ask, Packet, WorkerState

Replied = tuple[WorkerState, Packet]
"""A worker's state after its reply, and the packet."""


class HonestReplies:
    """The replies to the newest instruction, by worker."""

    def __init__(self) -> None:
        self._ask: Ask | None = None
        self._replies: dict[int, tuple[WorkerState, Replied]] = {}

    def add(self, worker: int, ask: Ask, before: WorkerState, replied: Replied) -> None:
        """Keep a reply, and let go of those to another instruction.

        Args:
            worker: whose it is.
            ask: what it answers; the same object for all workers that share the instruction.
            before: the worker's state before it.
            replied: what ``Method.reply`` returned.
        """
        if ask is not self._ask:
            self._ask, self._replies = ask, {}
        self._replies[worker] = before, replied

    def find(self, worker: int, ask: Ask, before: WorkerState) -> Replied | None:
        """Return what a worker in exactly this state has replied to exactly this instruction; None if it has not."""
        found = self._replies.get(worker) if ask is self._ask else None
        return found[1] if found is not None and found[0] is before else None
