"""Data stay at home between users of one machine: five parties whose folders nobody else can read train one model.

One party attacks. The model must be about as good, on rows that nobody trained on, as the same model trained on the
honest parties' pooled rows; averaging must not survive the same attack.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import breakwater as bw
from deploy.certs import init, issue
from deploy.inprocess import run_in_process
from deploy.local import LocalOptions
from experiment.config import load
from server.monitor.exporters import Monitoring
from strategies.method import Vector
from tests.integration.fork_server import ForkServer
from tests.integration.processes import Process, summary_of
from tests.own_tables import ATTACK, FILE, HONEST, PARTIES, federation, pooled_accuracy
from tests.saved import x_of

pytestmark = pytest.mark.slow

SEEDS = range(1, 6)
POINTS = 0.02
"""How much worse than pooled training the federation's model may be."""
FIRST_UID = 61_700
"""The parties' user ids count from here, and the server's comes after them; no user of a machine has them as a rule."""
QUIET = Monitoring(quiet=True, pictures=False, silent=True)


@dataclass(frozen=True)
class User:
    """A user id of the machine, of a user with no name and no group but its own."""

    uid: int

    def prelude(self, home: Path) -> str:
        """Return Python after which a process belongs to this user alone, for good.

        What the standard library imports late is imported before: Python itself may be installed in root's home.
        """
        become = f"os.setgroups([]); os.setresgid(*[{self.uid}] * 3); os.setresuid(*[{self.uid}] * 3)"
        return f"import encodings.idna, os; {become}; os.environ['HOME'] = {str(home)!r}; os.chdir(os.environ['HOME'])"

    def owns(self, folder: Path) -> Path:
        """Give a folder with all that is in it to this user alone."""
        for path in (folder, *folder.rglob("*")):
            os.chown(path, self.uid, self.uid)
            path.chmod(0o700 if path.is_dir() else 0o600)
        return folder

    def reads(self, path: Path) -> bool:
        """Return whether this user can read a file; if not, it must be because it may not."""
        words = ["cat", str(path)]
        found = subprocess.run(words, capture_output=True, check=False, user=self.uid, group=self.uid, extra_groups=[])
        assert found.returncode == 0 or b"Permission denied" in found.stderr, found.stderr
        return found.returncode == 0


USERS = {name: User(FIRST_UID + i) for i, name in enumerate((*PARTIES, "server"))}


def _obstacle() -> str:
    """Return why processes cannot run as other users here; "" if they can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs root on Linux, to run processes as other users"
    try:
        return "" if USERS["server"].reads(Path(os.devnull)) else "another user cannot read /dev/null here"
    except (OSError, subprocess.SubprocessError) as error:
        return f"this machine does not let root run a process as user {USERS['server'].uid}: {error}"


@pytest.fixture
def users() -> dict[str, User]:
    if obstacle := _obstacle():
        pytest.skip(obstacle)
    return USERS


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that other users may pass through; pytest's are closed to them."""
    folder = Path(tempfile.mkdtemp(prefix="breakwater-parties-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def certified(place: Path) -> Path:
    """Issue everybody's certificate; return the folder."""
    init(place / "certs", ["127.0.0.1"])
    issue(place / "certs", list(PARTIES))
    return place / "certs"


def server_words(place: Path) -> list[str | Path]:
    certs = place / "certs" / "server"
    return ["server", place / "study.toml", "--listen", "127.0.0.1:0", "--tls", certs, "--out", place / "run"]


def client_words(place: Path, name: str, address: str) -> list[str | Path]:
    own: list[str | Path] = ["client", "--connect", address, "--tls", place / "certs" / name, "--patience", "60"]
    own += ["--config", place / "study.toml", "--data", place / "parties" / name]
    own += ["--worker", str(PARTIES.index(name))]
    return own if name in HONEST else [*own, "--attack", ATTACK[0], "--set", ATTACK[1]]


def ended_well(server: Process, clients: Sequence[Process]) -> None:
    server.ends(0)
    for client in clients:
        client.ends(0)


def in_process(config: Path, out: Path, *, averaging: bool = False) -> Vector:
    """Run the same federation in this process; return its model."""
    changes: dict[str, object] = {"attack.kind": "foe", "attack.eps": 5.0}
    if averaging:
        changes |= {"aggregator.kind": "mean", "strategy.clip": False, "strategy.rounds": 40}
    place = config.parent
    options = LocalOptions(config=load(config, changes), out=out, data=place / "parties", monitoring=QUIET)
    run_in_process(options)
    return x_of(out)


def accuracy(place: Path, out: Path) -> float:
    """Return the accuracy of a run's model on the rows that nobody trained on."""
    predicted = bw.load_model(out).predict(place / "held-out" / FILE)
    assert predicted.targets is not None
    assert len(predicted.targets) >= 1000
    return float(predicted.accuracy or 0.0)


def test_one_of_five_parties_attacks_and_the_model_is_as_good_as_one_on_pooled_rows(tmp_path: Path) -> None:
    robust, pooled, averaged = [], [], []
    for seed in SEEDS:
        place = tmp_path / str(seed)
        config = federation(place, seed)
        in_process(config, place / "robust")
        in_process(config, place / "averaging", averaging=True)
        robust.append(accuracy(place, place / "robust"))
        averaged.append(accuracy(place, place / "averaging"))
        pooled.append(pooled_accuracy(seed))
    print(f"accuracy on rows of nobody: federation {robust}, pooled {pooled}, averaging {averaged}")
    assert np.mean(robust) >= np.mean(pooled) - POINTS
    assert np.mean(averaged) < 0.3, "averaging does not survive the same attack"


def test_five_users_whose_folders_nobody_else_can_read(forked: ForkServer, users: dict[str, User], place: Path) -> None:
    config = federation(place)
    certs = certified(place)
    homes = {name: place / "homes" / name for name in users}
    for name, user in users.items():
        homes[name].mkdir(parents=True)
        user.owns(homes[name])
        user.owns(certs / name)
    for name in PARTIES:
        users[name].owns(place / "parties" / name)
        assert (place / "parties" / name).stat().st_mode & 0o777 == 0o700
    (place / "run").mkdir()
    users["server"].owns(place / "run")
    certs.chmod(0o755)
    shutil.rmtree(place / "held-out")
    for owner in PARTIES:
        for private in (place / "parties" / owner / FILE, certs / owner / "tls.key"):
            assert [name for name, user in users.items() if user.reads(private)] == [owner]

    def start(name: str, words: list[str | Path]) -> Process:
        return forked.breakwater(*words, prelude=users[name].prelude(homes[name]))

    server = start("server", server_words(place))
    address = server.line("listening on (.+)")[1]
    clients = [start(name, client_words(place, name, address)) for name in PARTIES]
    ended_well(server, clients)

    expected = in_process(config, place / "alone")
    assert np.array_equal(x_of(place / "run"), expected), "bit for bit what one process computes"
    assert {path.stat().st_uid for path in (place / "run").rglob("*")} == {users["server"].uid}
    summary = summary_of(place / "run")
    assert summary["measured_by"] == "clients"
    assert 140 <= summary["task"]["samples"] <= 150, "the median party has 160 rows and keeps a tenth back"
    assert np.isfinite(summary["accuracy"])


def test_five_processes_over_tls(forked: ForkServer, place: Path) -> None:
    config = federation(place)
    config.write_text(config.read_text().replace("rounds = 80", "rounds = 10"))
    certified(place)
    server = forked.breakwater(*server_words(place))
    address = server.line("listening on (.+)")[1]
    clients = [forked.breakwater(*client_words(place, name, address)) for name in PARTIES]
    ended_well(server, clients)
    assert np.array_equal(x_of(place / "run"), in_process(config, place / "alone"))
