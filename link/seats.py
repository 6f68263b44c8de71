"""Who may sit where: one seat, 0 .. n-1, for each name, kept for it while it is away once it was ready."""

import hashlib
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True)
class Seat:
    """One client's place in the federation.

    Args:
        name: who sits there.
        worker: index of the seat, 0 .. n-1.
        node_id: the client's, as Flower sees it; the same for a name always.
        connected: whether it has a live stream, ready or still preparing.
        since: when it came or left, in seconds since 1970; None if it has done neither at this server.
    """

    name: str
    worker: int
    node_id: int
    connected: bool
    since: float | None = field(default=None, compare=False)


class NoSeat(Exception):  # noqa: N818  # the name says what happened
    """This hello gets no seat.

    Args:
        reason: one line for the user.
        retry: whether the cause may pass by itself.
    """

    def __init__(self, reason: str, *, retry: bool = False) -> None:
        super().__init__(reason)
        self.retry = retry


class Seats:
    """The seats of a federation; not thread-safe.

    Args:
        clients: n, how many seats there are.
        held: seats that are kept by name for clients that are not here yet.
        closed: why a name without a seat in ``held`` gets none; "" where it may take one that is free.
    """

    def __init__(self, clients: int, held: Mapping[str, int] = {}, closed: str = "") -> None:  # never written to
        self._clients = clients
        self._closed = closed
        self._by_name = {name: Seat(name, worker, node_id(name), connected=False) for name, worker in held.items()}
        self._taken = {worker: name for name, worker in held.items()}
        self._confirmed = set(held)

    def take(self, name: str, *, worker: int | None = None, former: int | None = None) -> Seat:
        """Seat a client that has come.

        Args:
            name: 1 to 64 characters of [A-Za-z0-9._-].
            worker: the seat that it must have; without one it gets the one it has, or the lowest that is free.
            former: the seat that it would rather have than the lowest.

        Raises:
            NoSeat: it cannot sit there, is here already, or there is no free seat.
        """
        if (flaw := flaw_of_name(name)) is not None:
            raise NoSeat(flaw)
        held = self._by_name.get(name)
        if held is None and self._closed:
            raise NoSeat(f"{name!r}: {self._closed}")
        if held is not None and held.connected:
            raise NoSeat(f"{name!r} is connected already: one name, one live stream", retry=True)
        if worker is None:
            worker = held.worker if held is not None else self._free(former)
        elif worker >= self._clients:
            raise NoSeat(f"seat {worker}: must be from 0 to {self._clients - 1}")
        elif held is not None and held.worker != worker:
            raise NoSeat(f"seat {worker}: {name!r} already holds seat {held.worker}")
        elif self._taken.get(worker, name) != name:
            raise NoSeat(f"seat {worker}: taken by {self._taken[worker]!r}")
        seat = Seat(name, worker, node_id(name), connected=True, since=time.time())
        self._by_name[name] = seat
        self._taken[worker] = name
        return seat

    def confirm(self, name: str) -> None:
        """Note that a client is ready, so that its seat stays its own from now on."""
        self._confirmed.add(name)

    def leave(self, name: str) -> bool:
        """Note that a client is away; one that was never ready gives its seat back.

        Returns:
            Whether the seat is kept for it.
        """
        if name not in self._confirmed:
            del self._taken[self._by_name.pop(name).worker]
            return False
        self._by_name[name] = replace(self._by_name[name], connected=False, since=time.time())
        return True

    def vacate(self, name: str) -> None:
        """Give the seat of a client away that is not here."""
        seat = self._by_name.get(name)
        if seat is not None and not seat.connected:
            del self._by_name[name], self._taken[seat.worker]
            self._confirmed.discard(name)

    def name_of(self, worker: int) -> str | None:
        """Return who holds a seat; None if it was never taken."""
        return self._taken.get(worker)

    def all(self) -> dict[int, Seat]:
        """Return every seat ever taken by worker index, ascending."""
        return {worker: self._by_name[name] for worker, name in sorted(self._taken.items())}

    def _free(self, former: int | None) -> int:
        free = [worker for worker in range(self._clients) if worker not in self._taken]
        if not free:
            raise NoSeat(f"all {self._clients} seats are taken")
        return former if former is not None and former in free else free[0]


def flaw_of_name(name: str) -> str | None:
    """Say in one line why this cannot be a client's name, or None if it can."""
    return None if _NAME.fullmatch(name) else f"name {name[:80]!r}: must be 1 to 64 characters of A-Z a-z 0-9 . _ -"


def node_id(name: str) -> int:
    """Return the Flower node id of a client: 63 bits of its name's SHA-256, never 0 (none) or 1 (the server)."""
    return 2 + int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % (2**63 - 2)
