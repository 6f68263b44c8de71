"""Federations in which each client has its own data: over the link, in one process, after restarts, and refusals."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Context, RecordDict

import breakwater as bw
from client.answers import client_app
from client.preparation import PartyPreparation, Preparation, PreparationOptions
from deploy.inprocess import run_in_process
from deploy.local import LocalOptions
from experiment.agreement import Agreement
from experiment.code import code_fingerprint
from experiment.config import Config, load
from experiment.opened import open_config
from foundation.errors import BreakwaterError, ConfigError
from link.claims import write_evaluation
from link.codec import to_array
from link.flwr_compat import instruction
from link.node import Prepared, join
from link.wire import Welcome
from server.link import open_link
from server.monitor.exporters import Monitoring
from server.run import run
from server.run_folder.checkpoints import resumed
from server.run_folder.reader import read_rounds, read_summary
from server.run_folder.writer import RunFolder
from strategies.claims import NO_EVALUATION
from strategies.method import AGREEMENT, Vector
from tasks.partition import split
from tests.integration.processes import rounds_of
from tests.parties import federation, points
from tests.saved import x_of
from tests.unit.tasks import tables

SILENT = Monitoring(quiet=True, pictures=False)
SOON_S = 30.0
TURN = threading.Lock()


def in_process(config: Config, out: Path, data: Path, server: Path | None = None) -> Vector:
    """Run a federation in this process; return its model."""
    options = LocalOptions(config=config, out=out, data=data, config_dir=config.folder, monitoring=SILENT)
    run_in_process(replace(options, server_data=server))
    return x_of(out)


def over_link(
    path: Path,
    out: Path,
    folders: Mapping[str, Path],
    configs: Mapping[str, Path] | None = None,
    only: Sequence[str] | None = None,
    resume: bool = False,
) -> dict[str, str]:
    """Run a federation over the link, with clients in threads; return how each of them ended."""
    config = load(path)
    experiment = open_config(config, path.parent / "server", path.parent)
    point = resumed(out, experiment) if resume else None
    grid = open_link(experiment, 5, None, None, {} if point is None else point[0].seats)
    address = grid.listen("127.0.0.1:0")
    ended: dict[str, str] = {}

    def member(name: str, worker: int) -> None:
        options = PreparationOptions(
            config=(configs or {}).get(name, path), config_dir=path.parent, data=folders[name], tried=True
        )
        try:
            with TURN:  # torch has one generator for all threads
                prepare = Preparation(options)
            ended[name] = join(address, name, prepare, worker, fingerprint=code_fingerprint(), patience_s=5)
        except BreakwaterError as error:
            ended[name] = str(error)

    clients = [
        threading.Thread(target=member, args=(name, worker))
        for worker, name in enumerate(folders)
        if only is None or name in only
    ]
    for client in clients:
        client.start()
    try:
        with RunFolder(out, point[0] if point else None) as folder:
            run(experiment, folder, grid, SILENT, point=point, incarnation=1)
    finally:
        grid.close("the run is over")
        for client in clients:
            client.join(SOON_S)
    return ended


def folders_of(place: Path) -> dict[str, Path]:
    return {path.name: path for path in sorted((place / "parties").iterdir())}


def test_own_folders_give_the_trajectory_of_the_same_rows_of_shared_data(tmp_path: Path) -> None:
    path = federation(tmp_path)
    table = points(80, 5)
    np.savetxt(tmp_path / "points.csv", table, delimiter=",")
    for worker, rows in enumerate(split("iid", table[:, -1].astype(int), 4, 3)):
        np.savetxt(tmp_path / "parties" / f"p{worker}" / "points.csv", table[rows], delimiter=",")
    attacked = {"attack.kind": "lf", "strategy.rounds": 8}
    shared, own = load(path, {**attacked, "task.partition": "iid"}), load(path, attacked)
    over_own = in_process(own, tmp_path / "own", tmp_path / "parties", tmp_path / "server")
    over_shared = in_process(shared, tmp_path / "shared", tmp_path / "server")
    assert np.array_equal(over_own, over_shared)


TABLE = """
[federation]
clients = 6
byzantine = 2
seed = 4
[task]
kind = "table"
file = "t.csv"
target = "outcome"
classes = ["no", "yes"]
numeric = ["age", "bmi"]
categorical = { sex = ["f", "m"] }
[strategy]
kind = "byz-vr-marina-pp"
rounds = 12
gamma = "5/L"
p = 0.4
cohort = 5
batch = 8
clip = false
[aggregator]
kind = "cm"
[attack]
kind = "alie"
z = 1.5
view = "coalition"
[evaluation]
every = 12
by = "clients"
"""


@pytest.mark.parametrize("partition", ["iid", "dirichlet(0.5)"])
def test_own_tables_give_the_trajectory_of_the_same_rows_of_a_shared_one(tmp_path: Path, partition: str) -> None:
    lines = tables.rows(400)
    config = tmp_path / "study.toml"
    config.write_text(TABLE)
    targets = np.array([line.endswith("yes") for line in lines]).astype(int)
    tables.write(tmp_path / "shared", lines)
    for worker, rows in enumerate(split(partition, targets, 6, 4)):
        tables.write(tmp_path / "parties" / f"p{worker}", [lines[row] for row in rows])
    over_own = in_process(load(config, {"task.partition": "own"}), tmp_path / "own", tmp_path / "parties")
    over_shared = in_process(load(config, {"task.partition": partition}), tmp_path / "all", tmp_path / "shared")
    assert np.array_equal(over_own, over_shared)
    assert np.any(over_own)
    for mine, theirs in zip(rounds_of(tmp_path / "own"), rounds_of(tmp_path / "all"), strict=True):
        for key in ("kind", "accepted", "step_norm", "distance", "cosine"):
            assert mine[key] == theirs[key]
        for claims in (mine.get("claims"), theirs.get("claims")):
            assert claims is None or claims.pop("bytes")
            assert claims is None or len(claims.pop("clients")) == 6  # whose names differ
        assert mine.get("claims") == theirs.get("claims")


def test_over_the_link_as_in_one_process_with_the_median_of_the_counts(tmp_path: Path) -> None:
    path = federation(tmp_path, f=0)
    path.write_text(path.read_text().replace("p = 0.5\n", ""))
    ended = over_link(path, tmp_path / "link", folders_of(tmp_path))
    assert set(ended.values()) == {"the run is over"}
    x = in_process(load(path), tmp_path / "one", tmp_path / "parties", tmp_path / "server")
    assert np.array_equal(x_of(tmp_path / "link"), x)
    summary = read_summary(tmp_path / "link")
    assert summary is not None
    assert summary["task"]["samples"] == 28  # of 20, 25, 30 and 35
    assert "\np = " not in (tmp_path / "link" / "config.toml").read_text()


def test_a_client_that_does_not_fit_is_refused_in_words_and_the_others_go_on(tmp_path: Path) -> None:
    path = federation(tmp_path, extra="")
    path.write_text(path.read_text().replace("join_timeout_s = 30.0", "join_timeout_s = 30.0\nstart_with = 3"))
    other = tmp_path / "other.toml"
    other.write_text(path.read_text().replace("batch = 8", "batch = 9"))
    ended = over_link(path, tmp_path / "out", folders_of(tmp_path), {"p3": other})
    assert "[strategy] batch: the server has 8, the file given has 9" in ended.pop("p3")
    assert set(ended.values()) == {"the run is over"}


def test_a_resumed_run_goes_on_with_what_was_agreed(tmp_path: Path) -> None:
    path = federation(tmp_path)
    path.write_text(path.read_text().replace("p = 0.5\n", "").replace("rounds = 6", "rounds = 12"))
    over_link(path, tmp_path / "whole", folders_of(tmp_path))
    text = path.read_text()
    path.write_text(text.replace("rounds = 12", "rounds = 5"))
    over_link(path, tmp_path / "halved", folders_of(tmp_path))
    path.write_text(text)
    over_link(path, tmp_path / "halved", folders_of(tmp_path), resume=True)
    assert np.array_equal(x_of(tmp_path / "whole"), x_of(tmp_path / "halved"))
    assert [each.round for each in read_rounds(tmp_path / "halved")] == list(range(1, 13))


def test_a_client_that_comes_late_is_sent_the_agreement(tmp_path: Path) -> None:
    path = federation(tmp_path)
    path.write_text(path.read_text().replace("join_timeout_s = 30.0", "join_timeout_s = 30.0\nstart_with = 3"))
    path.write_text(path.read_text().replace("cohort = 3", "cohort = 4").replace("rounds = 6", "rounds = 60"))
    ended = over_link(path, tmp_path / "out", folders_of(tmp_path))
    rounds = read_rounds(tmp_path / "out")
    assert set(ended.values()) == {"the run is over"}
    assert len(rounds[-1].accepted) == 4


def test_an_exception_about_data_stays_with_the_client(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = federation(tmp_path)
    source = (tmp_path / "points.py").read_text()
    fails = """
    def loss(self, output, target):
        if output.requires_grad:
            raise ValueError(f"could not convert {target.tolist()}")
        return nn.functional.cross_entropy(output, target)
"""
    (tmp_path / "points.py").write_text(source + fails)
    path.write_text(path.read_text().replace("join_timeout_s = 30.0", "join_timeout_s = 1.0\nstall_rounds = 1"))
    with pytest.raises(BreakwaterError, match="failed: the client's own log has the reason"):
        over_link(path, tmp_path / "out", folders_of(tmp_path))


def test_own_data_need_a_config_of_the_clients_own(tmp_path: Path) -> None:
    path = federation(tmp_path)
    made = open_config(load(path), tmp_path / "server", tmp_path)
    welcome = Welcome(
        name="a",
        run_id=1,
        node_id=2,
        worker=0,
        clients=4,
        settings={"config": made.as_written.to_toml(), "task": made.identity.written()},
        heartbeat_s=1.0,
        max_reply_bytes=1000,
    )
    with pytest.raises(ConfigError, match="each under a config of its own; give --config FILE and --data FOLDER"):
        Preparation(PreparationOptions(data=tmp_path / "server"))(welcome)
    prepared = Preparation(PreparationOptions(config=path, config_dir=tmp_path, data=tmp_path / "server"))(welcome)
    assert isinstance(prepared, Prepared)
    assert replace(prepared, task="").task == ""


def test_a_party_measures_models_only_where_its_own_config_says_so(tmp_path: Path) -> None:
    path = federation(tmp_path)
    answers = {}
    for by in ("server", "clients"):
        config = load(path, {"evaluation.by": by})
        options = PreparationOptions(config=config, config_dir=tmp_path, data=tmp_path / "server")
        app = PartyPreparation(config, options).app(0, client_app)
        content = write_evaluation(1, ArrayRecord({"x": to_array(app.problem.initial())}))
        content[AGREEMENT] = Agreement().record()
        asked = instruction(
            content, run_id=1, node_id=2, message_id="1", message_type="evaluate", group_id="", ttl_s=9.0
        )
        context = Context(run_id=1, node_id=2, node_config={}, state=RecordDict(), run_config={})
        answers[by] = app(asked, context)
    assert answers["server"].error.reason == NO_EVALUATION
    assert not answers["clients"].has_error()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("p = 0.5\n", "", "p is missing"),
        ("gamma = 0.5", 'gamma = "0.5/L"', "does not know its L"),
    ],
)
def test_what_nobody_declares_must_be_given(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = federation(tmp_path)
    path.write_text(path.read_text().replace(old, new))
    config = load(path, {"attack.kind": "bf", "federation.declare_samples": False})
    with pytest.raises(BreakwaterError, match=said):
        in_process(config, tmp_path / "out", tmp_path / "parties", tmp_path / "server")


@pytest.mark.parametrize("name", ["server", "byzantine", "a b"])
def test_a_folder_whose_name_no_client_can_have_is_refused(tmp_path: Path, name: str) -> None:
    config = load(federation(tmp_path), {"attack.kind": "bf"})
    (tmp_path / "parties" / "p3").rename(tmp_path / "parties" / name)
    options = LocalOptions(config=config, out=tmp_path / "out", data=tmp_path / "parties")
    with pytest.raises(ConfigError, match=f"a sub-folder is named after its client, and name '{name}'"):
        options.parties()


def test_a_rehearsal_names_wrong_folders(tmp_path: Path) -> None:
    config = load(federation(tmp_path), {"attack.kind": "bf"})
    options = LocalOptions(config=config, out=tmp_path / "out", data=tmp_path / "parties", attackers=["p1"])
    parties = options.parties()
    assert parties is not None
    assert list(parties.names.values()) == ["p0", "p2", "p3", "p1"]
    for change, said in (
        ({"attackers": ["p9"]}, "there is no folder 'p9'"),
        ({"attackers": ["p0", "p1"]}, "must be federation.byzantine = 1 different names"),
        ({"data": tmp_path}, r"2 sub-folders \(parties, server\), but federation.clients = 4"),
        ({"data": None}, "must be a folder with one sub-folder for each client, and none was named"),
    ):
        with pytest.raises(ConfigError, match=said):
            replace(options, **change).parties()
    with pytest.raises(ConfigError, match="--attackers p1: the config has no attack; name one in"):
        replace(options, config=load(tmp_path / "study.toml")).parties()


def test_a_rehearsal_without_an_attack_is_the_real_federation_with_honest_clients(tmp_path: Path) -> None:
    path = federation(tmp_path)
    in_process(load(path), tmp_path / "one", tmp_path / "parties", tmp_path / "server")
    over_link(path, tmp_path / "link", folders_of(tmp_path))
    assert np.array_equal(x_of(tmp_path / "link"), x_of(tmp_path / "one"))


def test_a_server_without_a_folder_needs_no_test_set(tmp_path: Path) -> None:
    path = federation(tmp_path)
    in_process(load(path), tmp_path / "out", tmp_path / "parties")
    summary = read_summary(tmp_path / "out")
    assert summary is not None
    assert summary["measured_by"] == "clients"
    with pytest.raises(
        ConfigError, match=r"no test data; name their folder with --data \(of `breakwater run`: --server-data\)"
    ):
        in_process(load(path, {"evaluation.by": "server"}), tmp_path / "other", tmp_path / "parties")


@pytest.mark.slow
def test_a_rehearsal_in_processes_is_that_of_one_process(tmp_path: Path) -> None:
    path = federation(tmp_path, n=5, f=2)
    given: dict[str, Any] = {"data": tmp_path / "parties", "server_data": tmp_path / "server", "quiet": True}
    given |= {"attackers": ["p3", "p0"], "overrides": {"attack.kind": "alie", "attack.view": "coalition"}}
    whole = bw.run(path, out=tmp_path / "processes", **given)
    alone = bw.run(path, out=tmp_path / "alone", processes=False, **given)
    assert np.array_equal(x_of(whole.folder), x_of(alone.folder))
    assert sorted({name for each in read_rounds(whole.folder) for name in each.names}) == ["p0", "p1", "p2", "p3", "p4"]
    assert {path.stem for path in (whole.folder / "logs").iterdir()} == {"server", "p1", "p2", "p4", "byzantine"}


@pytest.mark.slow
def test_without_an_attack_each_party_is_a_process_of_its_name(tmp_path: Path) -> None:
    path = federation(tmp_path)
    given: dict[str, Any] = {"data": tmp_path / "parties", "server_data": tmp_path / "server", "quiet": True}
    whole = bw.run(path, out=tmp_path / "processes", pictures=False, **given)
    assert {log.stem for log in (whole.folder / "logs").iterdir()} == {"server", "p0", "p1", "p2", "p3"}
    assert not (whole.folder / "report.html").exists()
    alone = bw.run(path, out=tmp_path / "alone", processes=False, pictures=False, **given)
    assert np.array_equal(x_of(whole.folder), x_of(alone.folder))
    assert not (alone.folder / "report.html").exists()
    assert alone.report().is_file()


def test_weights_by_name_are_those_of_the_parties(tmp_path: Path) -> None:
    """In a rehearsal, where attackers may have other seats than their names say, and over the link."""
    path = federation(tmp_path, n=4, f=0)
    config, parties, server = load(path), tmp_path / "parties", tmp_path / "server"
    named = "federation.weights={p3 = 3.0, p0 = 1.0, p1 = 2.0, p2 = 2.5}"
    plain = in_process(config, tmp_path / "plain", parties, server)
    heavy = in_process(load(path, [named]), tmp_path / "named", parties, server)
    listed = in_process(load(path, ["federation.weights=[1.0, 2.0, 2.5, 3.0]"]), tmp_path / "listed", parties, server)
    assert np.array_equal(heavy, listed)
    assert not np.array_equal(heavy, plain)
    load(path, [named]).write(path)
    ended = over_link(path, tmp_path / "link", {f"p{i}": parties / f"p{i}" for i in range(4)})
    assert set(ended.values()) == {"the run is over"}, ended
    assert np.array_equal(x_of(tmp_path / "link"), heavy)
    with pytest.raises(ConfigError, match='weights: none for "p1"'):
        in_process(load(path, [named.replace("p1", "bob")]), tmp_path / "wrong", parties, server)


def test_weights_follow_the_seats_of_named_attackers(tmp_path: Path) -> None:
    path = federation(tmp_path, n=4, f=1, extra='[attack]\nkind = "bf"\n')
    named = "federation.weights={p3 = 3.0, p0 = 1.0, p1 = 2.0, p2 = 2.5}"
    options = LocalOptions(
        config=load(path, [named]), out=tmp_path / "run", data=tmp_path / "parties", attackers=["p1"]
    )
    assert options.seated().config.federation.weights == [1.0, 2.5, 3.0, 2.0]
