"""What a worker knew at the server's checkpoints, so that it can follow a server that comes back from one of them.

A server that is killed continues from its newest checkpoint, and repeats the rounds since. Workers that keep state must
then know exactly what they knew at that checkpoint, or the run would be another one. So every instruction carries the
server's checkpoint epoch (its incarnation, and the round of its newest checkpoint), and a worker takes a snapshot when
an instruction first names a checkpoint: nothing reached it in between, so it knew the same at that round.
"""

from typing import Protocol

from link.worker_state import StateDict
from strategies.method import CheckpointEpoch


class Memory(Protocol):
    """Something that can report what it knows, and go back to it."""

    def remember(self) -> StateDict:
        """Return all that is carried from round to round."""

    def recall(self, known: StateDict) -> None:
        """Know exactly that again."""


class Rollback:
    """Snapshots of one memory, at the last few checkpoints.

    Args:
        kept: how many checkpoints the server keeps; it may come back from any of them.
    """

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._incarnation: int | None = None
        self._known: dict[int, StateDict] = {}  # by the checkpoint's round, ascending
        self._last: tuple[int, StateDict] = 0, {}  # the round of the last instruction, and what was known before it

    def follow(self, epoch: CheckpointEpoch | None, memory: Memory, round_: int) -> None:
        """Take note of an epoch, before the instruction that carries it is answered.

        Args:
            epoch: of the instruction; None where the server keeps no checkpoints.
            memory: what is saved, or restored if the server is another incarnation than before.
            round_: of the instruction.
        """
        if epoch is None:
            return
        if self._incarnation is not None and epoch.incarnation != self._incarnation:
            self._go_back(epoch.round, memory)
        self._incarnation = epoch.incarnation
        if epoch.round not in self._known:
            self._known[epoch.round] = memory.remember()
            while len(self._known) > self._kept:
                del self._known[min(self._known)]
        if self._last[0] != round_:  # several seats may share a memory
            self._last = round_, memory.remember()

    def _go_back(self, round_: int, memory: Memory) -> None:
        """Know what was known at the checkpoint of a round.

        A checkpoint that this worker never heard of lies between two instructions that reached it: then it knew as much
        as at the next one that it did hear of. Where there is none, as before the last instruction, if that is of a
        later round: a server that is stopped writes a checkpoint while a round is open. Else as now.
        """
        later = [known for known in self._known if known >= round_]
        if later:
            memory.recall(self._known[min(later)])
        elif self._last[0] > round_:
            memory.recall(self._last[1])
        for known in later:
            del self._known[known]
        self._last = 0, {}
