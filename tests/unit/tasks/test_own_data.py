"""Tasks whose clients have their own data: who loads what, and the same numbers as under a partition of shared data."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import breakwater as bw
from experiment.config import load
from experiment.model_file import ModelForm, read_model, read_model_file, write_model
from tasks.contract import Setting, TaskError
from tasks.digits import DigitsTask
from tasks.identity import identify_party
from tasks.own_problem import OwnProblem
from tasks.partition import kept_back, split
from tests.parties import federation, points


def party(config: Path, *, folders: dict[int, Path] | None = None, data: Path | None = None, at: Any = "client") -> Any:
    read = load(config)
    return read.task.load(read.setting(data, config.parent, at, folders or {}))


def test_a_client_loads_its_own_folder_and_nothing_else(tmp_path: Path) -> None:
    config = federation(tmp_path)
    mine = party(config, data=tmp_path / "parties" / "p1")
    assert (mine.samples, mine.count(3), mine.kept_back(3)) == (25, 25, 25)
    assert mine.dim == 8


def test_the_server_loads_no_training_data_and_a_client_no_test_data(tmp_path: Path) -> None:
    config = federation(tmp_path)
    server = party(config, data=tmp_path / "server", at="server")
    assert server.samples == 0
    assert server.has_test_data
    assert server.evaluate(server.initial()).accuracy is not None
    with pytest.raises(TaskError, match="the server has no training data: each client has its own"):
        server.oracle(0)
    client = party(config, data=tmp_path / "parties" / "p0")
    with pytest.raises(TaskError, match="gives no test set"):
        client.evaluate(client.initial())


def test_x0_and_the_declaration_do_not_depend_on_the_data(tmp_path: Path) -> None:
    config = federation(tmp_path)
    server = party(config, data=tmp_path / "server", at="server")
    clients = [party(config, data=tmp_path / "parties" / name) for name in ("p0", "p1")]
    assert all(np.array_equal(client.initial(), server.initial()) for client in clients)
    ours, others = (identify_party(client, at_server=False, samples=False) for client in clients)
    assert ours == others
    assert ours.data == ours.samples == ""
    assert ours.differences(identify_party(server, at_server=True, samples=True)) == []
    assert identify_party(clients[1], at_server=False, samples=True).samples == "25"


def test_a_model_of_another_shape_is_named(tmp_path: Path) -> None:
    config = federation(tmp_path)
    (tmp_path / "wide.toml").write_text(
        config.read_text().replace("[strategy]", "options = { inputs = 5 }\n[strategy]")
    )
    server = party(config, data=tmp_path / "server", at="server")
    other = party(tmp_path / "wide.toml", data=tmp_path / "server", at="server")
    (said,) = identify_party(other, at_server=False, samples=True).differences(
        identify_party(server, at_server=True, samples=True)
    )
    assert said == "parameter `weight` is (2, 5) at the client, (2, 3) at the server"


def test_own_folders_give_the_gradients_of_the_same_rows_of_shared_data(tmp_path: Path) -> None:
    config = federation(tmp_path)
    table = points(90, 5)
    np.savetxt(tmp_path / "points.csv", table, delimiter=",")
    read = load(config)
    shared = replace(read.task, partition="dirichlet(0.5)").load(Setting(4, 1, 3, tmp_path / "server", tmp_path))
    folders = {}
    for worker, rows in enumerate(split("dirichlet(0.5)", table[:, -1].astype(int), 4, 3)):
        folders[worker] = tmp_path / "split" / str(worker)
        folders[worker].mkdir(parents=True)
        np.savetxt(folders[worker] / "points.csv", table[rows], delimiter=",")
    own = party(config, folders=folders)
    x = shared.initial() + 1.0
    for worker in folders:
        for flipped in (False, True):
            ours, theirs = (each.oracle(worker, flipped=flipped) for each in (own, shared))
            assert np.array_equal(ours.full_gradient(x), theirs.full_gradient(x))
            one, other = (each.minibatch_gradients([x], 8, np.random.default_rng(1))[0] for each in (ours, theirs))
            assert np.array_equal(one, other)


def test_what_is_kept_back_is_measured_on_and_never_trained_on(tmp_path: Path) -> None:
    config = federation(tmp_path, share=0.2)
    mine = party(config, data=tmp_path / "parties" / "p2")
    assert (mine.count(0), mine.kept_back(0)) == (24, 6)
    table = points(30, 2)
    rows, kept = kept_back(table[:, -1], 0.2, 3)
    assert sorted([*rows, *kept]) == list(range(30))
    np.savetxt(tmp_path / "parties" / "p2" / "points.csv", table[rows], delimiter=",")
    (tmp_path / "points.py").write_text((tmp_path / "points.py").read_text().replace("0.2", "0.0"))
    trained = party(config, data=tmp_path / "parties" / "p2")
    x = mine.initial() - 0.5
    assert np.array_equal(trained.oracle(0).full_gradient(x), mine.oracle(0).full_gradient(x))
    np.savetxt(tmp_path / "parties" / "p2" / "points.csv", table[kept], delimiter=",")
    assert party(config, data=tmp_path / "parties" / "p2").measure(0, x) == mine.measure(0, x)


@pytest.mark.parametrize(
    ("samples", "share", "kept"), [(1, 0.9, 0), (2, 0.9, 1), (10, 0.0, 0), (10, 0.25, 2), (3, 0.1, 0)]
)
def test_at_least_one_row_is_trained_on(samples: int, share: float, kept: int) -> None:
    rows, held = kept_back(np.zeros(samples), share, 7)
    assert (len(rows), len(held)) == (samples - kept, kept)


def test_a_party_may_lack_the_last_class_when_labels_are_flipped(tmp_path: Path) -> None:
    config = federation(tmp_path)
    table = points(20, 1)
    table[:, -1] = 0
    np.savetxt(tmp_path / "parties" / "p0" / "points.csv", table, delimiter=",")
    mine = party(config, data=tmp_path / "parties" / "p0")
    flipped = mine.oracle(0, flipped=True).full_gradient(mine.initial())
    assert not np.array_equal(flipped, mine.oracle(0).full_gradient(mine.initial()))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            ("def local_data", "def other_data"),
            r"no method local_data; it must have model\(\) and local_data",
        ),
        (("test_share = 0.0", "test_share = 1.0"), r"test_share = 1.0: must be from 0 up to, but not including, 1"),
        (("nn.Linear(self.inputs, 2)", "nn.LazyLinear(2)"), "the model has lazy layers"),
    ],
)
def test_a_class_that_cannot_have_own_data(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    config = federation(tmp_path)
    source = (tmp_path / "points.py").read_text().replace("def test_data", "def no_test_data")
    (tmp_path / "points.py").write_text(source.replace(*change))
    with pytest.raises(TaskError, match=said):
        party(config, at="server")


def test_without_a_folder_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="no data folder is named; name the folder of your own data with --data"):
        party(federation(tmp_path))


def test_a_dataset_of_torch_is_read(tmp_path: Path) -> None:
    config = federation(tmp_path)
    (tmp_path / "points.py").write_text(
        (tmp_path / "points.py")
        .read_text()
        .replace('return self.read(folder / "points.csv")', "return Pairs(*self.read(folder / 'points.csv'))", 1)
        + """
from torch.utils.data import Dataset

class Pairs(Dataset):
    def __init__(self, inputs, targets): self.inputs, self.targets = inputs, targets
    def __len__(self): return len(self.targets)
    def __getitem__(self, i): return self.inputs[i], self.targets[i]
"""
    )
    read = party(config, data=tmp_path / "parties" / "p0")
    pairs = party(federation(tmp_path), data=tmp_path / "parties" / "p0")
    x = read.initial()
    assert np.array_equal(read.oracle(0).full_gradient(x), pairs.oracle(0).full_gradient(x))


def test_tasks_that_split_shared_data_refuse_own_data() -> None:
    with pytest.raises(ValueError, match='partition = "own": kind = "digits" splits data that all processes have'):
        DigitsTask(partition="own")


NORM = (
    "return nn.Linear(self.inputs, 2)",
    "return nn.Sequential(nn.Linear(self.inputs, 4), nn.BatchNorm1d(4), nn.Dropout(0.2), nn.Linear(4, 2))",
)
ROOT_DATA = "\n    def root_data(self, folder):\n        return folder and self.read(folder / 'points.csv')\n"


def with_norm(place: Path, root_data: str = ROOT_DATA) -> Path:
    config = federation(place)
    source = (place / "points.py").read_text()
    assert NORM[0] in source
    (place / "points.py").write_text(source.replace(*NORM) + root_data)
    return config


def test_the_server_computes_running_statistics_and_sends_them_with_each_model(tmp_path: Path) -> None:
    config = with_norm(tmp_path)
    found = bw.run(
        config,
        out=tmp_path / "run",
        overrides={"evaluation.by": "both", "aggregator.kind": "mean"},
        data=tmp_path / "parties",
        server_data=tmp_path / "server",
        processes=False,
        quiet=True,
        pictures=False,
    )
    server = party(config, data=tmp_path / "server", at="server")
    assert server.evaluate(found.model).loss == found.loss
    stats = server.norm_stats(found.model)
    saved = read_model(tmp_path / "run").tensors
    assert np.array_equal(np.concatenate([saved["1.running_mean"], saved["1.running_var"]]), stats)
    client = party(config, data=tmp_path / "parties" / "p1")
    alone = client.measure(1, found.model).loss
    client.set_norm_stats(stats)
    assert client.measure(1, found.model).loss == found.summary["claims"]["clients"]["p1"]["loss"] != alone
    write_model(tmp_path / "client.safetensors", found.model, ModelForm.of(client))
    assert (tmp_path / "client.safetensors").read_bytes() == (tmp_path / "run" / "model.safetensors").read_bytes()
    with pytest.raises(TaskError, match=r"running statistics of shape \(3,\); the model has \(8,\)"):
        client.set_norm_stats(np.zeros(3))


def with_source(config: Path, source: str) -> Path:
    config.write_text(config.read_text().replace('partition = "own"', f'partition = "own"\nnorm_stats = "{source}"'))
    return config


@pytest.mark.parametrize("root_data", ["", ROOT_DATA])
def test_reference_statistics_without_training_data_at_the_server_are_refused_there(
    tmp_path: Path, root_data: str
) -> None:
    config = with_source(with_norm(tmp_path, root_data), "reference")
    party(config, data=tmp_path / "parties" / "p0")
    with pytest.raises(TaskError, match=r'running statistics of layer "1".* give them by root_data\(folder\)'):
        party(config, at="server")


@pytest.mark.parametrize(
    ("root_data", "folder", "source"),
    [(ROOT_DATA, "server", "reference"), (ROOT_DATA, None, "aggregate"), ("", "server", "aggregate")],
)
def test_statistics_come_from_the_servers_training_data_where_it_has_some_else_from_clients(
    tmp_path: Path, root_data: str, folder: str | None, source: str
) -> None:
    config = with_norm(tmp_path, root_data)
    server = party(config, data=None if folder is None else tmp_path / folder, at="server")
    assert server.norm_source == source
    client = party(config, data=tmp_path / "parties" / "p0")
    assert (client.norm_source, client.answers_statistics) == (None, True)  # only the server knows
    asked = party(with_source(config, "aggregate"), data=tmp_path / "server", at="server")
    assert asked.norm_source == "aggregate"  # whatever it has
    assert asked.norm_stats(asked.initial()) is None
    plain = federation(tmp_path)
    assert party(plain, at="server").norm_source is None
    assert not party(plain, data=tmp_path / "parties" / "p0").answers_statistics


def test_the_server_never_computes_statistics_from_its_test_data(tmp_path: Path) -> None:
    server = party(with_norm(tmp_path, ""), data=tmp_path / "server", at="server")
    x = server.initial()
    made = server.evaluate(x)
    server.set_norm_stats(np.concatenate([np.zeros(4), np.ones(4)]))  # as a module is made
    assert server.evaluate(x) == made
    server.set_norm_stats(np.concatenate([np.ones(4), np.ones(4)]))
    assert server.evaluate(x) != made


def test_the_statistics_of_a_party_are_those_of_the_same_rows_of_shared_data(tmp_path: Path) -> None:
    config = with_norm(tmp_path)
    table = points(90, 5)
    np.savetxt(tmp_path / "points.csv", table, delimiter=",")
    read = load(config)
    setting = Setting(4, 1, 3, tmp_path / "server", tmp_path, batch=8)
    shared: Any = replace(read.task, partition="iid").load(setting)
    assert shared.norm_source == "reference"
    folders = {}
    for worker, rows in enumerate(shared.parts):
        folders[worker] = tmp_path / "split" / str(worker)
        folders[worker].mkdir(parents=True)
        np.savetxt(folders[worker] / "points.csv", table[rows], delimiter=",")
    own = party(config, folders=folders)
    x = shared.initial() + 1.0
    for worker in (0, 3):
        assert own.batch_rows(worker) == 8
        assert np.array_equal(own.batch_statistics(worker, x, 2), shared.batch_statistics(worker, x, 2))


def test_local_running_statistics_stay_at_their_party(tmp_path: Path) -> None:
    config = with_norm(tmp_path, "")
    config.write_text(config.read_text().replace('partition = "own"', 'partition = "own"\nnorm_stats = "local"'))
    found = bw.run(config, out=tmp_path / "run", data=tmp_path / "parties", processes=False, quiet=True, pictures=False)
    assert not any("running_" in name for name in read_model(tmp_path / "run").tensors)
    server = party(config, at="server")
    assert server.norm_stats(found.model) is None
    clients = {name: party(config, data=tmp_path / "parties" / name) for name in ("p0", "p1")}
    losses = [client.measure(0, found.model).loss for client in clients.values()]
    claimed = found.summary["claims"]["clients"]
    assert losses == [claimed[name]["loss"] for name in clients]
    stats = [client.norm_stats(found.model) for client in clients.values()]
    assert not np.array_equal(*stats)
    clients["p0"].set_norm_stats(stats[1])  # a server that sends some is not followed
    assert clients["p0"].measure(0, found.model).loss == losses[0]
    write_model(tmp_path / "p1.safetensors", found.model, ModelForm.of(clients["p1"]))
    assert np.array_equal(read_model_file(tmp_path / "p1.safetensors").tensors["1.running_mean"], stats[1][:4])


@pytest.mark.parametrize("has", [True, False])
def test_a_class_that_loads_itself_may_say_whether_the_server_has_a_test_set(has: bool) -> None:
    gave = dict.fromkeys(("initial", "oracle", "evaluate", "smoothness", "optimum"))
    problem = SimpleNamespace(dim=1, dtype="float32", samples=0, has_test_data=has, **gave)
    assert OwnProblem(problem, own_data=True).has_test_data is has


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("def __len__(self): return 3", "gave a Dataset without length or index"),
        ("def __getitem__(self, i): return i, i", "gave a Dataset without length or index"),
        (
            "def __len__(self): return 3\n    def __getitem__(self, i): return None + i",
            r"points.py, line \d+: TypeError",
        ),
    ],
)
def test_a_dataset_that_cannot_be_read_is_told_from_one_that_raises(tmp_path: Path, body: str, said: str) -> None:
    config = federation(tmp_path)
    source = (
        (tmp_path / "points.py").read_text().replace('return self.read(folder / "points.csv")', "return Broken()", 1)
    )
    broken = f"\nfrom torch.utils.data import Dataset\n\nclass Broken(Dataset):\n    {body}\n"
    (tmp_path / "points.py").write_text(source + broken)
    with pytest.raises(TaskError, match=said):
        party(config, data=tmp_path / "parties" / "p0")
