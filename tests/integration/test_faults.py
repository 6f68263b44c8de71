"""Every fault, injected into a running federation of real processes: the run ends right, and nothing is left behind."""

from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.faults import CASES, Fault, Site, as_in_the_books
from tests.integration.fork_server import ForkServer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def forks() -> Iterator[ForkServer]:
    with ForkServer() as fork_server:
        yield fork_server


@pytest.fixture
def fork_server(forks: ForkServer) -> Iterator[ForkServer]:
    """The nursery, without what a test that has failed leaves there."""
    yield forks
    forks.swept(strict=False)


@pytest.mark.parametrize("fault", list(Fault), ids=[fault.name for fault in Fault])
def test_a_run_ends_right_after(fault: Fault, fork_server: ForkServer, tmp_path: Path) -> None:
    case = CASES[fault]
    with Site(fork_server, tmp_path, *case.changes) as site:
        case.inject(site)
        model, problem = site.model, site.experiment.problem
        (undisturbed,) = deque(case.undisturbed(site.experiment), maxlen=1)
        if case.harmless:
            assert model.tobytes() == undisturbed.tobytes()
        else:
            assert model.tobytes() == as_in_the_books(site.experiment, site.rounds).tobytes()
        start, loss, best = (problem.evaluate(x).loss for x in (problem.initial(), model, undisturbed))
        print(f"loss {start:.4f} -> {loss:.4f}, undisturbed {best:.4f}")
        assert loss <= best + 0.1 * (start - best)
    fork_server.swept(strict=True)
