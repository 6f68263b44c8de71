"""What can go wrong with a reply on its way: the one list that attackers choose from and the link carries out."""

from enum import StrEnum


class Fault(StrEnum):
    """What goes wrong with a reply."""

    SILENCE = "silence"  # no reply
    LATE = "late"  # the reply comes after the deadline
    WRONG_ROUND = "wrong-round"  # the reply claims to answer the next round
    REPLAY = "replay"  # the sender's first reply again and again; the first time it is a good one
    WRONG_SHAPE = "wrong-shape"  # a value is missing
    OVERSIZE = "oversize"  # more bytes than any honest reply has
    TRUNCATED = "truncated"  # the reply's last frame ends in its middle
    GARBAGE = "garbage"  # bytes that are no frame
    DISCONNECT = "disconnect"  # the stream ends in the middle of the reply; the client then comes back

    @property
    def below_records(self) -> bool:
        """Whether only the client end of the link can do this to a reply."""
        return self in (Fault.LATE, Fault.TRUNCATED, Fault.GARBAGE, Fault.DISCONNECT)

    @property
    def reason(self) -> str:
        """The slug by which the server counts the rejection."""
        return _REASONS.get(self, self.replace("-", " "))

    @property
    def nearest(self) -> "Fault":
        """The nearest fault on a Grid without our link."""
        return _NEAREST.get(self, self)


_REASONS = {
    Fault.SILENCE: "silent",
    Fault.LATE: "silent",
    Fault.REPLAY: "wrong round",
    Fault.TRUNCATED: "undecodable",
    Fault.GARBAGE: "undecodable",
    Fault.DISCONNECT: "disconnected",
}
_NEAREST = {Fault.TRUNCATED: Fault.WRONG_SHAPE, Fault.GARBAGE: Fault.WRONG_SHAPE, Fault.DISCONNECT: Fault.SILENCE}
