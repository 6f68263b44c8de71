"""Runs the requested checks, the slow ones in parallel with the others."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from deploy.doctor import machine
from deploy.doctor.findings import Demand, Finding, guarded
from link.address import Address


@dataclass(frozen=True, kw_only=True)
class Questions:
    """The options of ``breakwater doctor``.

    Args:
        config: experiment to run here.
        tls: folder of a party's certificate.
        lists: folder of a server's lists; None for ``tls``.
        connect: address of a server.
        listen: address that a server is to listen on.
        data: folder of data files.
        out: folder for run folders.
    """

    config: Path | None = None
    tls: Path | None = None
    lists: Path | None = None
    connect: Address | None = None
    listen: Address | None = None
    data: Path | None = None
    out: Path = Path("runs")


def examine(questions: Questions) -> Iterator[Finding]:
    """Yield the findings in a fixed order. Never raises."""
    clock = machine.Clock()
    torch = machine.torch_probe() if machine.has_torch() else None
    loops = machine.loops_probe()
    first = {"python": machine.python, "packages": machine.packages, "flwr": machine.flower, "code": machine.code}
    for about, look in first.items():
        yield from guarded(about, look)
    yield from guarded("torch", lambda: machine.torch(torch))
    yield from guarded("numba", lambda: machine.loops(loops))
    demand, path = Demand(), questions.config
    if path is not None:
        yield from _late("config", "deploy.doctor.data", lambda data: data.config(path, questions.data, demand))
    yield from _late("data", "deploy.doctor.data", lambda data: data.look(questions.data))
    yield from guarded("cores", lambda: machine.cores(demand.clients))
    yield from guarded("files", lambda: machine.open_files(demand.clients))
    yield from guarded("disk", lambda: machine.disk(questions.out, demand.disk))
    tls, listen, connect = questions.tls, questions.listen, questions.connect
    if tls is not None:
        yield from _late("tls", "deploy.doctor.party", lambda party: party.look(tls, questions.lists))
    if listen is not None:
        yield from _late("listen", "deploy.doctor.network", lambda network: network.listening(listen))
    if connect is not None:
        yield from _late("connect", "deploy.doctor.network", lambda network: network.connecting(connect, tls))
    yield from guarded("clock", clock.findings)


def _late(about: str, module: str, look: Callable[[Any], Iterator[Finding]]) -> Iterator[Finding]:
    """Yield the findings of a check whose module is imported now, because a broken install may break the import too."""
    yield from guarded(about, lambda: look(import_module(module)))
