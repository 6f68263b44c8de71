"""Every byte that clients with their own data send, read off the wire: what is declared, and nothing else.

The data are full of markers. None of them may be in a frame, in either direction, in the log of anybody but their
owner, or in the run folder.
"""

import hashlib
import json
import struct
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, MetricRecord, RecordDict

from link import link_pb2 as pb
from link.invitation import STATISTICS
from link.wire import MAX_BODY_BYTES, PROTOCOL, Parcel, Reader
from tests.integration import http2
from tests.integration.fork_server import ForkServer
from tests.integration.processes import Process, Proxy, free_address, rounds_of

pytestmark = pytest.mark.slow

MARKED_NUMBER = 913377.25
"""In a column that the model uses, once in every party's table; and a target of a custom task."""
UNUSED_NUMBER = 58008177
BAD_CELL = "HIV-POSITIVE-CELL"
MARKS = ("PATIENT-NAME", BAD_CELL)
"""What texts of the data begin with."""

HEADERS = {":method", ":scheme", ":path", ":authority", "te", "content-type", "user-agent", "grpc-accept-encoding"}
FRAMES = {
    "DataFrame",
    "HeadersFrame",
    "SettingsFrame",
    "PingFrame",
    "WindowUpdateFrame",
    "RstStreamFrame",
    "GoAwayFrame",
}
DECLARED = {"dim", "dtype", "samples", "layout", "shapes", "files", "frozen", "start", "smoothness", "code"}
FIXED = {"failed: the client's own log has the reason"}

CONFIG = """
[federation]
clients = {clients}
byzantine = 1
seed = 3
join_timeout_s = 60.0
{more}
[task]
partition = "own"
{task}
[strategy]
kind = "byz-vr-marina-pp"
rounds = 6
gamma = 0.1
p = 0.5
cohort = 4
batch = 8
clip = false
[aggregator]
kind = "cm"
[evaluation]
every = 3
by = "clients"
"""
TABLE = """
kind = "table"
file = "visits.csv"
target = "outcome"
classes = ["no", "yes"]
numeric = ["age", "dose"]
categorical = { ward = ["a", "b"] }
"""
TASK = '''
"""A line through points; the loss of an armed client fails, with targets in its message."""
import numpy as np
from torch import nn


class Line:
    test_share = 0.2
    dtype = "float64"

    def model(self):
        return nn.Linear(2, 1)

    def local_data(self, folder):
        self.armed = folder / "armed"
        table = np.loadtxt(folder / "points.csv", delimiter=",")
        return table[:, :2], table[:, 2:] / 1e6

    def loss(self, output, target):
        if self.armed.exists():
            raise ValueError(f"could not convert {(target * 1e6).tolist()} of PATIENT-NAME")
        return nn.functional.mse_loss(output, target)
'''

UNTRIED = (
    "import client.preparation, server.process; client.preparation.try_out = server.process.try_out = lambda *_: None"
)
"""Spares each process the trial of the task in a process of its own, which takes seconds."""


def needles() -> list[bytes]:
    """Return the markers as they could travel: as text, and as numbers in memory."""
    texts = [*MARKS, f"{MARKED_NUMBER:.2f}", f"{MARKED_NUMBER:.0f}", str(UNUSED_NUMBER), repr(MARKED_NUMBER / 1e6)]
    forms = [
        struct.pack(form, number) for form in ("<d", ">d", "<f", ">f") for number in (MARKED_NUMBER, UNUSED_NUMBER)
    ]
    forms += [struct.pack(form, UNUSED_NUMBER) for form in ("<q", ">q", "<i", ">i")]
    return [text.encode() for text in texts] + forms


def no_marker_in(said: bytes | str, what: str) -> None:
    raw = said.encode() if isinstance(said, str) else said
    found = [needle for needle in needles() if needle in raw]
    assert not found, f"{what} has {found}"


def visits(folder: Path, party: int, bad: bool = False) -> None:
    """Write a table whose unused columns, and a cell of a used one, are markers."""
    rng = np.random.default_rng(party)
    lines = ["name,age,dose,ward,insurance,outcome"]
    for row in range(40 + 5 * party):
        age, dose = rng.normal(50, 9), MARKED_NUMBER if row == 3 else rng.normal(5, 2)
        outcome = "yes" if age + rng.normal() > 50 else "no"
        lines.append(f"PATIENT-NAME-{row},{age:.3f},{dose},{'ab'[row % 2]},{UNUSED_NUMBER},{outcome}")
    if bad:
        lines[7] = lines[7].replace(",a,", f",{BAD_CELL},").replace(",b,", f",{BAD_CELL},")
    folder.mkdir(parents=True)
    (folder / "visits.csv").write_text("\n".join(lines) + "\n")


def line(folder: Path, party: int) -> None:
    """Write points of which some have the marker as their target."""
    x = np.random.default_rng(party).normal(size=(40 + 5 * party, 2))
    y = np.where(np.arange(len(x)) % 3 == 0, MARKED_NUMBER, x @ [1e5, -2e5])
    folder.mkdir(parents=True)
    np.savetxt(folder / "points.csv", np.column_stack([x, y]), delimiter=",", fmt="%.2f")


class Federation:
    """A server behind a proxy that keeps all bytes, and its clients.

    Args:
        forked: starts the processes.
        place: folder of everything; has a folder of data for each client.
        config: text of the config.
        prelude: Python that every process runs first.
    """

    def __init__(self, forked: ForkServer, place: Path, config: str, prelude: str = "") -> None:
        self._forked, self.place, self.out, self._prelude = forked, place, place / "run", prelude
        self.config = place / "study.toml"
        self.config.write_text(config)
        self.clients: dict[str, Process] = {}
        address = free_address()
        words: list[str | Path] = ["server", self.config, "--listen", address, "--out", self.out]
        self.server = forked.breakwater(*words, prelude=prelude)
        self.server.line("listening on")
        self.proxy = Proxy(address, keep=True)

    def client(self, name: str, *more: str | Path, config: Path | None = None) -> Process:
        words: list[str | Path] = ["client", "--connect", self.proxy.address, "--name", name, "--patience", "30"]
        words += ["--config", config or self.config, "--data", self.place / name, *more]
        self.clients[name] = self._forked.breakwater(*words, prelude=self._prelude)
        return self.clients[name]

    def end(self, *well: str) -> None:
        """Wait for the end of the run, and of these clients."""
        self.server.ends(0)
        for name in well:
            self.clients[name].ends(0)
        self.proxy.close()

    def conversations(self) -> dict[str, list[http2.Conversation]]:
        """Return what each client said, by the name in its hello."""
        found = defaultdict(list)
        for connection in self.proxy.kept:
            said = http2.read(bytes(connection["up"]))
            assert not said.rest
            frame = pb.Frame.FromString(said.messages[0])
            assert frame.WhichOneof("kind") == "hello"
            found[frame.hello.name].append(said)
        return dict(found)

    def search(self, *owners: str) -> None:
        """Look for markers wherever others than their owners could see them."""
        for connection in self.proxy.kept:
            for way, data in connection.items():
                no_marker_in(bytes(data), f"what went {way}")
        for name, process in self.clients.items():
            if name not in owners:
                no_marker_in(process.said(), f"the log of {name}")
        no_marker_in(self.server.said(), "the server's log")
        files = [path for path in self.out.rglob("*") if path.is_file()]
        assert {"report.html", "metrics.jsonl", "summary.json", "server.log"} <= {path.name for path in files}
        for path in files:
            no_marker_in(path.read_bytes(), str(path))


def kind_of(raw: bytes, dim: int) -> str:
    """Return the kind of a frame that a client sent, once it is seen to have the declared fields and no others."""
    frame = pb.Frame.FromString(raw)
    assert frame.SerializeToString() == raw, "no unknown fields, and nothing written twice"
    match frame.WhichOneof("kind"):
        case "hello":
            names = {field.name for field, _ in frame.hello.ListFields()}
            assert names <= {"protocol", "name", "fingerprint", "worker", "version"}
            assert frame.hello.protocol == PROTOCOL
            return "hello"
        case "ready":
            check_declaration(frame.ready.task)
            return "ready"
        case "envelope":
            assert {field.name for field, _ in frame.envelope.ListFields()} <= {"id", "error", "content"}
            parcel = Reader(MAX_BODY_BYTES).feed(raw)
            assert isinstance(parcel, Parcel)
            return kind_of_answer(parcel.answer, dim)
        case other:
            raise AssertionError(f"a frame that nobody declares: {other}")


def check_declaration(task: str) -> None:
    """Check that a client declares nothing else when it joins."""
    declared = json.loads(task)
    assert declared.keys() <= DECLARED, declared.keys() - DECLARED
    assert declared["code"].keys() == {"version", "fingerprint", "revisions"}


def kind_of_answer(answer: RecordDict | Error, dim: int) -> str:
    """Return the kind of an answer to an instruction, checked like ``kind_of``."""
    if isinstance(answer, Error):
        assert answer.reason in FIXED
        return "error"
    if not answer:
        return "model"  # the final one has come
    ((name, record),) = answer.items()
    if name == "p":
        _check_packet(record, dim)
    elif name == "measures":
        assert isinstance(record, MetricRecord)
        assert record.keys() <= {"loss", "accuracy", "samples"}
    elif name == STATISTICS:
        _check_statistics(record)
    else:
        raise AssertionError(f"an answer that nobody declares: {name}")
    return name


def _check_packet(record: Any, dim: int) -> None:
    """Check that a packet has d numbers and a label of kind and round, and not a byte more."""
    assert isinstance(record, ConfigRecord)
    assert list(record) == [""]
    data: Any = record[""]
    n_kind, n_round, n_version = data[-2], data[-1] >> 4, data[-1] & 15
    assert len(data) == 8 * dim + n_kind + n_round + n_version + 2
    assert data[8 * dim : 8 * dim + n_kind] == b"identity"
    assert (n_round, n_version) == (1, 0)
    assert 1 <= data[8 * dim + n_kind] <= 6


def _check_statistics(record: Any) -> None:
    assert list(record) == ["columns"]
    columns = json.loads(record["columns"])
    assert columns.keys() == {"age", "dose"}
    for figures in columns.values():
        assert figures.keys() == {"mean", "variance", "missing", "median"}
        assert all(value == float(f"{value:.6g}") for value in figures.values()), "rounded to six digits"


def kinds_of(said: list[http2.Conversation], dim: int) -> Counter[str]:
    """Return how many frames of each kind a client sent, on well-formed connections."""
    for each in said:
        assert each.frames.keys() <= FRAMES
        assert {name for name, _ in each.headers} <= HEADERS
        assert all(not text or text.isascii() for _, text in each.codes)
    return Counter(kind_of(raw, dim) for each in said for raw in each.messages)


def test_clients_with_tables_send_what_is_declared_and_nothing_else(forked: ForkServer, tmp_path: Path) -> None:
    honest = [f"p{i}" for i in range(4)]
    for i, name in enumerate([*honest, "broken", "other"]):
        visits(tmp_path / name, i, bad=name == "broken")
    made = Federation(forked, tmp_path, CONFIG.format(clients=5, more="start_with = 4", task=TABLE))
    assert made.client("broken").wait() != 0
    assert BAD_CELL in made.clients["broken"].said(), "its owner is told which cell is wrong"
    assert 'line 8, column "ward"' in made.clients["broken"].said()
    assert not made.proxy.kept, "it connects to nobody"
    other = tmp_path / "other.toml"
    other.write_text(made.config.read_text().replace("batch = 8", "batch = 9"))
    assert made.client("other", config=other).wait() != 0
    assert "[strategy] batch: the server has 8, the file given has 9" in made.clients["other"].said()
    for i, name in enumerate(honest):
        made.client(name, "--worker", str(i), "--ledger", tmp_path / f"{name}.jsonl")
    made.end(*honest)

    said = made.conversations()
    assert said.keys() == {*honest, "other"}
    dim = 2 + 2 + 1
    assert kinds_of(said["other"], dim) == {"hello": 1}
    kinds = {name: kinds_of(said[name], dim) for name in honest}
    rounds = rounds_of(made.out)
    for i, name in enumerate(honest):
        took_part = sum(i in each["accepted"] for each in rounds)
        measured = sum("claims" in each for each in rounds) + 1  # the model before round 1 too
        assert kinds[name] == {"hello": 1, "ready": 1, STATISTICS: 1, "measures": measured, "p": took_part, "model": 1}
        ledger = [json.loads(text) for text in (tmp_path / f"{name}.jsonl").read_text().splitlines()][1:]
        frames = [raw for conversation in said[name] for raw in conversation.messages]
        assert [each["sha256"] for each in ledger] == [hashlib.sha256(raw).hexdigest() for raw in frames]
        no_marker_in((tmp_path / f"{name}.jsonl").read_bytes(), "the ledger")
    headers = {tuple(sorted(each.headers)) for conversations in said.values() for each in conversations}
    assert len(headers) == 1, "they say nothing about the client"
    made.search("broken")


def test_a_failing_loss_of_a_custom_task_tells_nothing(forked: ForkServer, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    names = [f"p{i}" for i in range(4)]
    for i, name in enumerate(names):
        line(tmp_path / name, i)
    (tmp_path / "line.py").write_text(TASK)
    task = 'kind = "custom"\npath = "line.py:Line"'
    made = Federation(forked, tmp_path, CONFIG.format(clients=4, more="", task=task), UNTRIED)
    early = [made.client(name, "--worker", str(i)) for i, name in enumerate(names[:3])]
    for client in early:
        client.line("takes part in run")
    (tmp_path / "p1" / "armed").touch()
    made.client("p3", "--worker", "3")
    made.end(*(name for name in names if name != "p1"))
    assert made.clients["p1"].wait() == 0

    said = made.conversations()
    kinds = {name: kinds_of(said[name], 3) for name in names}
    assert set(kinds["p1"]) == {"hello", "ready", "error", "model"}
    assert all(set(kinds[name]) == {"hello", "ready", "measures", "p", "model"} for name in names if name != "p1")
    assert "could not convert" in made.clients["p1"].said(), "its owner is told"
    rejected = [reply for each in rounds_of(made.out) for reply in each["rejected"]]
    assert {(reply["client"], reply["reason"]) for reply in rejected} == {("p1", reason) for reason in FIXED}
    made.search("p1")
