"""What rounds leave behind, and clients that break off and come back in each of them: no more objects than before.

Server and clients are threads of this process, so that all of their Python objects can be counted.
`python -m benchmarks.soak` measures the processes of a long run.
"""

import gc
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.preparation import Preparation, PreparationOptions
from experiment.config import load
from experiment.opened import CONFIG, Experiment, open_experiment
from link import codec, node
from link.grid import StreamGrid
from link.node import join
from strategies.strategy import RobustStrategy, RoundRecord
from tests.integration.processes import DIGITS, SOON_S, until

pytestmark = pytest.mark.slow

CLIENTS, SETTLED, MORE = 5, 50, 100
BYZANTINE = {3: ("alie", "attack.z=1.06"), 4: ("wire", 'attack.fault="disconnect"')}
"""The attack and its setting by worker; the last one loses its stream in every round."""
METHOD = ("strategy.kind=byz-ef21", "strategy.gamma=0.1", "compressor.kind=top-k", "compressor.k=10")
"""Its workers keep state, of which the server and the coalition keep copies."""


class Client(threading.Thread):
    """A client of the federation, honest or not."""

    def __init__(self, address: str, worker: int) -> None:
        super().__init__(name=f"client {worker}", daemon=True)
        self.stop = threading.Event()
        self._address = address
        self._worker = worker

    def run(self) -> None:
        name = f"client-{self._worker}"
        attack, *settings = BYZANTINE.get(self._worker, (None,))
        options = PreparationOptions(attack=attack, settings=[str(s) for s in settings])
        prepare = Preparation(options)
        join(self._address, name, prepare, worker=self._worker, fingerprint="code", stop=self.stop)


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    path = tmp_path / "digits.toml"
    path.write_text(DIGITS, encoding="utf-8")
    changes = (f"federation.clients={CLIENTS}", f"federation.byzantine={len(BYZANTINE)}", *METHOD)
    return open_experiment(load(path, changes).to_toml(), None, None)


@pytest.fixture
def grid(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> Iterator[StreamGrid]:
    """A link that all clients have joined; who loses it is back at once."""
    monkeypatch.setattr(node, "_FIRST_DELAY_S", 0.01)
    text, problem = experiment.config.to_toml(), experiment.problem
    grid = StreamGrid(
        run_id=7,
        clients=CLIENTS,
        welcome=lambda name, worker: {CONFIG: text},
        fingerprint="code",
        max_reply_bytes=codec.max_reply_bytes(problem.dim, problem.dtype),
    )
    address = grid.listen("127.0.0.1:0")
    clients = [Client(address, worker) for worker in range(CLIENTS)]
    for client in clients:
        client.start()
    assert grid.wait(CLIENTS, SOON_S) == CLIENTS
    yield grid
    for client in clients:
        client.stop.set()
    grid.close("the test is over")
    for client in clients:
        client.join(SOON_S)
        assert not client.is_alive()


def test_rounds_leave_no_objects_behind(experiment: Experiment, grid: StreamGrid) -> None:
    lost: list[str] = []

    def on_round(record: RoundRecord) -> None:
        lost.extend(reason for _, reason in record.rejected)
        assert grid.wait(CLIENTS, SOON_S) == CLIENTS

    strategy = RobustStrategy(
        experiment.method,
        codec=codec,
        roster=grid,
        clients=CLIENTS,
        seed=1,
        deadline_s=SOON_S,
        evaluate=experiment.problem.evaluate,
        every=10,
        on_round=on_round,
    )
    x0 = codec.to_arrays(experiment.problem.initial())

    def objects() -> int:
        gc.collect()
        return len(gc.get_objects())

    strategy.start(grid, x0, num_rounds=SETTLED)
    before = objects()
    lost.clear()
    strategy.start(grid, x0, num_rounds=SETTLED + MORE)
    assert len([reason for reason in lost if reason.startswith("disconnected")]) == MORE
    # One object kept for each round, or for each stream, would be twice as many; what is on its way comes and goes.
    until(lambda: objects() <= before + MORE / 2, "as many objects as before", 20.0)
