"""Parties with tables that leave for good, come late, or come back with other rows; and parties that lie.

Whatever f of them say, what the federation agrees on and what it shows lies within what the honest ones said.
"""

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.preparation import Preparation, PreparationOptions
from deploy import inprocess
from deploy.inprocess import run_in_process
from deploy.local import LocalOptions
from experiment.code import code_fingerprint
from experiment.config import load
from experiment.opened import open_config
from foundation.errors import ConfigError
from link.flwr_compat import APP_RAISED
from link.inprocess import InProcessGrid
from link.invitation import STATISTICS
from link.node import Prepared, join
from link.wire import Welcome
from server.link import open_link
from server.monitor.exporters import Monitoring
from server.run import run
from server.run_folder.checkpoints import resumed
from server.run_folder.reader import read_rounds, read_summary
from server.run_folder.writer import RunFolder
from tests.unit.tasks import tables

SILENT = Monitoring(quiet=True, pictures=False, silent=True)
SOON_S = 30.0
CONFIG = """
[federation]
clients = {n}
byzantine = {f}
seed = 4
join_timeout_s = 30.0
{more}
[task]
kind = "table"
partition = "own"
file = "t.csv"
target = "outcome"
classes = ["no", "yes"]
numeric = ["age", "bmi"]
categorical = {{ sex = ["f", "m"] }}
[strategy]
kind = "byz-vr-marina-pp"
rounds = {rounds}
gamma = "5/L"
cohort = {n}
batch = 8
clip = false
[aggregator]
kind = "cm"
[evaluation]
every = 2
by = "clients"
"""


def federation(place: Path, n: int, f: int, rounds: int, more: str = "") -> Path:
    """Write tables of 50, 60, 70, ... rows and a config; return its path."""
    for i in range(n):
        tables.write(place / "parties" / f"p{i}", tables.rows(50 + 10 * i, seed=i))
    config = place / "study.toml"
    config.write_text(CONFIG.format(n=n, f=f, rounds=rounds, more=more))
    return config


# --- over the link ---


class Comings:
    """A federation over the link, whose clients are threads that a test stops and starts."""

    def __init__(self, config: Path) -> None:
        self._config = config
        self._experiment = open_config(load(config), None, config.parent)
        self._grid = open_link(self._experiment, 5, None)
        self._address = self._grid.listen("127.0.0.1:0")
        self._stops: dict[str, threading.Event] = {}
        self._threads: dict[str, threading.Thread] = {}
        self.ended: dict[str, str] = {}
        self.before: Callable[[str, int], None] = lambda name, round_: None
        """Called before a client answers, with its name and the round."""

    def start(self, name: str) -> None:
        """Start a client; return once it is prepared, or has been unable to."""
        prepared, stop = threading.Event(), threading.Event()
        here = PreparationOptions(
            config=self._config, config_dir=self._config.parent, data=self._config.parent / "parties" / name
        )

        def prepare(welcome: Welcome) -> Prepared:
            made = preparation(welcome)
            prepared.set()

            def app(message: Message, context: Context) -> Message:
                if message.metadata.message_type == "train":
                    self.before(name, int(message.metadata.group_id))
                return made.app(message, context)

            return replace(made, app=app)

        preparation, worker = Preparation(here), int(name[1:])

        def member() -> None:
            self.ended[name] = join(
                self._address, name, prepare, worker, fingerprint=code_fingerprint(), stop=stop, patience_s=SOON_S
            )

        self._stops[name], self._threads[name] = stop, threading.Thread(target=member)
        self._threads[name].start()
        assert prepared.wait(SOON_S)

    def stop(self, name: str) -> None:
        """Stop a client; return once it has left."""
        self._stops[name].set()
        self._threads[name].join(SOON_S)
        assert self.ended[name] == "stopped"

    def run(self, out: Path) -> None:
        """Run the federation to its end."""
        try:
            with RunFolder(out) as folder:
                run(self._experiment, folder, self._grid, SILENT, incarnation=1)
        finally:
            self._grid.close("the run is over")
            for thread in self._threads.values():
                thread.join(SOON_S)


def test_one_leaves_for_good_one_comes_late_and_one_comes_back_with_other_rows(tmp_path: Path) -> None:
    config = federation(tmp_path, 6, 1, 60, "start_with = 5")
    made = Comings(config)
    for name in ("p0", "p1", "p2", "p4", "p5"):
        made.start(name)

    def before(name: str, round_: int) -> None:
        if (name, round_) == ("p0", 3):  # the round waits for p0
            made.stop("p4")
            made.stop("p5")
        elif (name, round_) == ("p0", 6):
            tables.write(tmp_path / "parties" / "p5", tables.rows(500, seed=55))
            made.start("p5")
            made.start("p3")

    made.before = before
    made.run(tmp_path / "out")
    assert made.ended == dict.fromkeys(("p0", "p1", "p2", "p3", "p5"), "the run is over") | {"p4": "stopped"}
    rounds = read_rounds(tmp_path / "out")
    assert tuple(rounds[0].accepted) == (0, 1, 2, 4, 5)
    assert tuple(rounds[4].accepted) == (0, 1, 2)
    assert tuple(rounds[-1].accepted) == (0, 1, 2, 3, 5)
    agreed = resumed(tmp_path / "out", open_config(load(config), None, tmp_path))[0].agreement
    summary = read_summary(tmp_path / "out")
    assert summary is not None
    assert json.loads(agreed)["samples"] == summary["task"]["samples"] == 56, "0.8 of 50, 60, 70, 90 and 100"


# --- lies ---

N, F = 7, 2
"""With 3f + 1 parties, f that say nothing are no obstacle either."""
LIARS = ("p5", "p6")
NUMBERS = st.sampled_from([1e30, -1e30, 1e12, -1e12, 0.0, -0.0, float("nan"), float("inf"), 1e-300, True, 10**400])
JUNK = st.one_of(NUMBERS, st.sampled_from(["", "HIV+", "1", None, [], {}, [1.0], {"mean": 1.0}]), st.floats())
FIGURES = st.dictionaries(st.sampled_from(["mean", "variance", "missing", "median", "least"]), JUNK, max_size=5)
FULL_FIGURES = st.fixed_dictionaries(dict.fromkeys(("mean", "variance", "missing", "median"), JUNK))
COLUMNS = st.one_of(
    JUNK,
    st.dictionaries(st.sampled_from(["age", "bmi", "height"]), st.one_of(JUNK, FIGURES, FULL_FIGURES), max_size=3),
    st.fixed_dictionaries({"age": FULL_FIGURES, "bmi": FULL_FIGURES}),
)
SAMPLES = st.one_of(st.none(), st.sampled_from(["1", "0", "-5", "9" * 12, "9" * 4000, "nan", "", "1e30"]), JUNK)
CLAIMS = st.dictionaries(
    st.sampled_from(["loss", "accuracy", "samples", "more"]),
    st.one_of(st.sampled_from([1e30, float("nan"), float("inf"), 0.0, -1.0, 1.0, 0, 2**62]), st.floats()),
)
NOTHING = "says nothing"
Lie = Mapping[str, Any]
LIES = st.fixed_dictionaries(
    {
        "samples": SAMPLES,
        "statistics": st.one_of(st.just(NOTHING), COLUMNS),
        "claims": st.one_of(st.just(NOTHING), CLAIMS),
    }
)


class Liars:
    """Replaces what some clients of a run in this process say; and writes down what the others say.

    Args:
        lies: by the client's name.
    """

    def __init__(self, lies: Mapping[str, Lie]) -> None:
        self._lies = lies
        self.samples: list[int] = []
        self.statistics: list[dict[str, dict[str, float]]] = []
        self.losses: dict[int, list[float]] = {}
        """By the number of the evaluation."""

    def grid(self, experiment: Any, apps: Mapping[str, Any], reports: Mapping[str, str]) -> InProcessGrid:
        """Stand in for ``deploy.inprocess._grid``."""
        said = {name: self._report(name, text) for name, text in reports.items()}
        return _GRID(experiment, {name: self._app(name, app) for name, app in apps.items()}, said)

    def _report(self, name: str, text: str) -> str:
        report = json.loads(text)
        if name not in self._lies:
            self.samples.append(int(report["samples"]))
            return text
        return json.dumps(report | {"samples": self._lies[name]["samples"]})

    def _app(self, name: str, app: Callable[[Message, Context], Message]) -> Callable[[Message, Context], Message]:
        measured = iter(range(1000))

        def answer(message: Message, context: Context) -> Message:
            kind, lie = message.metadata.message_type, self._lies.get(name)
            if lie is None or kind not in ("evaluate", f"query.{STATISTICS}"):
                reply = app(message, context)
                if kind == f"query.{STATISTICS}":
                    columns: Any = reply.content.config_records[STATISTICS]["columns"]
                    self.statistics.append(json.loads(columns))
                elif kind == "evaluate":
                    loss: Any = reply.content.metric_records["measures"]["loss"]
                    self.losses.setdefault(next(measured), []).append(loss)
                return reply
            said = lie["claims" if kind == "evaluate" else "statistics"]
            if said == NOTHING:
                return Message(Error(APP_RAISED, "HIV+\n\x1b[2J"), reply_to=message)
            if kind == "evaluate":
                return Message(RecordDict({"measures": MetricRecord(said)}), reply_to=message)
            return Message(RecordDict({STATISTICS: ConfigRecord({"columns": json.dumps(said)})}), reply_to=message)

        return answer


_GRID = inprocess._grid


def with_lies(config: Path, out: Path, lies: Mapping[str, Lie]) -> Liars:
    """Run a federation in which some lie; return what the others said."""
    liars = Liars(lies)
    options = LocalOptions(
        config=load(config, {"attack.kind": "bf"}), out=out, data=config.parent / "parties", monitoring=SILENT
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inprocess, "_grid", liars.grid)
        run_in_process(options)
    return liars


@pytest.fixture(scope="module")
def lied_to(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return federation(tmp_path_factory.mktemp("lied-to"), N, F, 2)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(lies=st.tuples(LIES, LIES))
def test_what_is_agreed_and_shown_lies_within_what_honest_parties_said(
    lied_to: Path, tmp_path_factory: pytest.TempPathFactory, lies: tuple[Lie, Lie]
) -> None:
    out = tmp_path_factory.mktemp("run") / "out"
    honest = with_lies(lied_to, out, dict(zip(LIARS, lies, strict=True)))
    point = resumed(out, open_config(load(lied_to, {"attack.kind": "bf"}), None, lied_to.parent))[0]
    agreed = json.loads(point.agreement)
    assert min(honest.samples) <= agreed["samples"] <= max(honest.samples)
    for name, column in json.loads(agreed["scaling"]).items():
        said = [report[name] for report in honest.statistics]
        for mine, theirs in (("centre", "mean"), ("fill", "median")):
            assert min(each[theirs] for each in said) <= column[mine] <= max(each[theirs] for each in said)
        variances = [each["variance"] for each in said]
        assert min(variances) <= column["spread"] ** 2 * (1 + 1e-9)
        assert column["spread"] ** 2 <= max(variances) * (1 + 1e-9)
    shown = [each for each in read_rounds(out) if each.claims is not None]
    assert [each.round for each in shown] == [2]
    losses = honest.losses[max(honest.losses)]
    assert shown[0].claims is not None
    assert shown[0].claims.loss is not None
    assert min(losses) <= shown[0].claims.loss.median <= max(losses)


def test_too_few_that_say_anything_give_one_line(tmp_path: Path) -> None:
    config = federation(tmp_path, 5, 1, 2)
    silent: Lie = {"samples": None, "statistics": NOTHING, "claims": NOTHING}
    with pytest.raises(ConfigError) as error:
        with_lies(config, tmp_path / "out", dict.fromkeys(("p0", "p1", "p2"), silent))
    said = str(error.value)
    assert "\n" not in said
    assert "2 clients declare how many samples they have, of which 1 may lie: at least 3 must" in said
    config.write_text(config.read_text().replace("cohort = ", "p = 0.5\ncohort = "))
    with pytest.raises(ConfigError) as error:
        with_lies(config, tmp_path / "other", dict.fromkeys(("p0", "p1", "p2"), silent))
    said = str(error.value)
    assert "\n" not in said
    assert 'column "age": 2 parties reported statistics, and at least 2f + 1 = 3 must' in said
