"""Bytes read as choices: how a fuzzer's input becomes a message with structure.

Small changes of the input are small changes of the message, and every input is one. An input that has ended goes on
with zeros, so a builder that draws from one always ends if its loops ask ``more``.
"""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

_BORDERS = (
    0, 1, 2, 3, 4, 7, 8, 9, 15, 16, 63, 64, 127, 128, 255, 256, 1023, 1024, 2**15, 2**16, 2**16 + 1, 2**20, 2**20 + 1,
    2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**53, 2**60, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1,
)  # fmt: skip
"""Numbers at which something changes."""


class Script:
    """Reads choices from an input, from its start.

    Args:
        data: the input.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def more(self) -> bool:
        """Whether there is something left."""
        return self._at < len(self._data)

    def byte(self) -> int:
        """Return the next byte."""
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def below(self, n: int) -> int:
        """Return a number from 0 to before n, which is at most 2^24."""
        value = self.byte()
        if n > 256:
            value |= self.byte() << 8 | (self.byte() << 16 if n > 1 << 16 else 0)
        return value % n

    def pick(self, choices: Sequence[T]) -> T:
        """Return one of these."""
        return choices[self.below(len(choices))]

    def number(self) -> int:
        """Return a number from 0 to 2^64 - 1, likely one at which something changes."""
        kind = self.byte()
        if kind < 64:
            return kind
        if kind < 128:
            return self.below(1 << 16)
        if kind < 160:
            return int.from_bytes(self.take(8), "little")
        return (_BORDERS[(kind - 160) % len(_BORDERS)]) % 2**64

    def take(self, n: int) -> bytes:
        """Return n bytes."""
        piece = self._data[self._at : self._at + n]
        self._at += n
        return piece.ljust(n, b"\0")

    def blob(self, most: int = 64) -> bytes:
        """Return at most so many bytes, and fewer where the input ends."""
        n = self.below(most + 1)
        piece = self._data[self._at : self._at + n]
        self._at += n
        return piece

    def rest(self) -> bytes:
        """Return all that is left."""
        piece, self._at = self._data[self._at :], len(self._data)
        return piece

    def damaged(self, data: bytes) -> bytes:
        """Return the data as they are, or with a few bytes changed, put in, taken out or cut off."""
        for _ in range((0, 0, 0, 1, 1, 2, 3, 6)[self.below(8)]):
            how, at = self.below(5), self.below(1 << 16) % (len(data) + 1)
            if how == 0:
                data = data[:at] + bytes([self.byte()]) + data[at + 1 :]
            elif how == 1:
                data = data[:at] + self.blob(9) + data[at:]
            elif how == 2:
                data = data[:at] + data[at + 1 + self.below(8) :]
            elif how == 3:
                data = data[:at]
            else:
                data = data[:at] + bytes([(data[at] if at < len(data) else 0) ^ 1 << self.below(8)]) + data[at + 1 :]
        return data
