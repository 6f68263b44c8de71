"""Runs the looks that were asked for, the slow ones side by side with the others."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deploy.doctor import machine
from deploy.doctor.findings import Finding, guarded
from link.address import Address


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What ``breakwater doctor`` was asked.

    Args:
        config: an experiment to be run here.
        tls: folder of a party's certificate.
        lists: folder of a server's lists, where it is not ``tls``.
        connect: address of a server.
        listen: address of a server to be.
        data: folder of data files.
        out: where run folders are made.
    """

    config: Path | None = None
    tls: Path | None = None
    lists: Path | None = None
    connect: Address | None = None
    listen: Address | None = None
    data: Path | None = None
    out: Path = Path("runs")


def examine(questions: Questions) -> Iterator[Finding]:
    """Yield what is found, in a fixed order; nothing that is broken raises."""
    clock = machine.Clock()
    torch = machine.torch_probe() if machine.has_torch() else None
    loops = machine.loops_probe()
    yield from guarded("python", machine.python)
    yield from guarded("packages", machine.packages)
    yield from guarded("flwr", machine.flower)
    yield from guarded("code", machine.code)
    yield from guarded("torch", lambda: machine.torch(torch))
    yield from guarded("numba", lambda: machine.loops(loops))
    clients, needed = None, 0
    if questions.config is not None:
        path, asked = questions.config, []

        def config() -> Iterator[Finding]:
            from deploy.doctor import data

            finding, demand = data.config(path, questions.data)
            asked.append(demand)
            yield finding

        yield from guarded("config", config)
        if asked and asked[0] is not None:
            clients, needed = asked[0].clients, asked[0].disk
    yield from guarded("data", lambda: _data(questions))
    yield from guarded("cores", lambda: machine.cores(clients))
    yield from guarded("files", lambda: machine.open_files(clients))
    yield from guarded("disk", lambda: machine.disk(questions.out, needed))
    yield from _party(questions)
    yield from guarded("clock", clock.findings)


def _data(questions: Questions) -> Iterator[Finding]:
    from deploy.doctor import data

    yield from data.look(questions.data)


def _party(questions: Questions) -> Iterator[Finding]:
    """Yield what is found of certificates and network, where these were asked for."""
    tls, listen, connect = questions.tls, questions.listen, questions.connect
    if tls is not None:
        yield from guarded("tls", lambda: _certificates(tls, questions.lists))
    if listen is not None:
        yield from guarded("listen", lambda: _listening(listen))
    if connect is not None:
        yield from guarded("connect", lambda: _connecting(connect, tls))


def _certificates(tls: Path, lists: Path | None) -> Iterator[Finding]:
    from deploy.doctor import party

    yield from party.look(tls, lists)


def _listening(address: Address) -> Iterator[Finding]:
    from deploy.doctor import network

    yield from network.listening(address)


def _connecting(address: Address, tls: Path | None) -> Iterator[Finding]:
    from deploy.doctor import network

    yield from network.connecting(address, tls)
