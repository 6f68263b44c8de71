"""Samples of a Dataset: fetched by index, with random transforms that are a function of worker, round and sample."""

import os
import random
import signal
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.worker import HonestWorker
from experiment.config import parse, resolve
from experiment.opened import Experiment
from strategies.method import Ask, Vector, begin, full_gradients
from strategies.randomness import Role, stream
from tasks.contract import Setting, TaskError
from tasks.custom import CustomTask
from tasks.identity import identify
from tasks.trial import Demands
from tasks.tryout import try_out

torch = pytest.importorskip("torch")

from tasks import torch_model  # noqa: E402  # after the skip: torch is an extra

HEAD = """
import random
import numpy as np, torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset, TensorDataset, default_collate
G = torch.Generator().manual_seed(0)
X, Y = torch.randn(40, 6, generator=G), torch.arange(40) % 3
class Plain(Dataset):
    fetched = []
    def __init__(self): self.targets = Y.tolist()
    def __len__(self): return len(Y)
    def __getitem__(self, i):
        Plain.fetched.append(i)
        return X[i], int(Y[i])
class Noisy(Plain):
    def __getitem__(self, i): return X[i] + torch.randn(6) + np.random.randn() + random.random(), int(Y[i])
class Base:
    def model(self): return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 3))
    def test_data(self): return X, Y
"""
PLAIN, NOISY = ("    def train_data(self): return Plain()", "    def train_data(self): return Noisy()")
TENSORS = "    def train_data(self): return X, Y"


def load(folder: Path, body: str, *, tried: bool = False, **options: Any) -> Any:
    folder.mkdir(exist_ok=True)
    (folder / "own.py").write_text(HEAD + "class Own(Base):\n" + body)
    task, setting = CustomTask(path="own.py:Own", **options), Setting(3, 1, seed=2, config_dir=folder, batch=8)
    problem = task.load(setting)
    if tried:
        demands = Demands(workers=range(3), batches=(8, 0), flipped=range(2, 3) if "targets" in HEAD + body else ())
        try_out(task, setting, demands, problem)
    return problem


def gradients(
    problem: Any,
    points: Sequence[Vector],
    *,
    worker: int = 0,
    round_: int = 1,
    full: bool = False,
    flipped: bool = False,
) -> list[Vector]:
    oracle = problem.oracle(worker, flipped=flipped)
    begin(oracle, partial(stream, 2, Role.MODEL, worker, round_))
    if full:
        return full_gradients(oracle, points)
    return list(oracle.minibatch_gradients(points, 8, stream(2, Role.WORKER, worker, round_)))


def generators() -> tuple[Any, ...]:
    numpy: Any = np.random.get_state()
    return random.getstate(), numpy[1].tobytes(), numpy[2], torch.get_rng_state().numpy().tobytes()


@pytest.mark.parametrize("partition", ["iid", "dirichlet(0.5)"])
def test_a_dataset_gives_what_its_tensors_would(tmp_path: Path, partition: str) -> None:
    found, expected = (load(tmp_path, body, partition=partition, tried=True) for body in (PLAIN, TENSORS))
    x = expected.initial()
    for worker in range(3):
        for options in ({}, {"full": True}, {"flipped": True}):
            (one,), (other,) = (gradients(each, [x], worker=worker, **options) for each in (found, expected))
            assert one.tobytes() == other.tobytes()
    assert found.evaluate(x) == expected.evaluate(x)
    assert found.measure(1, x) == expected.measure(1, x)
    assert found.samples == expected.samples


def test_a_minibatch_fetches_its_samples_once_for_all_points(tmp_path: Path) -> None:
    problem = load(tmp_path, PLAIN)
    fetched = problem.task.train.source._pieces.dataset.fetched
    fetched.clear()
    x = problem.initial()
    gradients(problem, [x, x + 1])
    assert len(fetched) == len(set(fetched)) == 8
    assert set(fetched) <= set(problem.parts[0].tolist())


def test_a_tensor_dataset_is_taken_as_tensors(tmp_path: Path) -> None:
    problem = load(tmp_path, "    def train_data(self): return TensorDataset(X, Y)", partition="label", tried=True)
    assert torch.equal(problem.task.train[0], load(tmp_path, TENSORS).task.train[0])


@pytest.mark.parametrize("full", [False, True])
def test_random_transforms_are_a_function_of_worker_round_and_sample(tmp_path: Path, full: bool) -> None:
    problem = load(tmp_path, NOISY, partition="replicated", tried=True)
    x = problem.initial()
    one, other = gradients(problem, [x, x.copy()], full=full)
    assert one.tobytes() == other.tobytes()  # a difference at one point is zero
    torch.manual_seed(1), np.random.seed(1), random.seed(1)  # what was drawn before changes nothing
    moved = generators()
    (again,) = gradients(problem, [x], full=full)
    assert again.tobytes() == one.tobytes()
    assert generators() == moved
    for worker, round_ in ((1, 1), (0, 2)):
        assert not np.array_equal(gradients(problem, [x], worker=worker, round_=round_, full=full)[0], one)
    old, new = gradients(problem, [x, x + np.float32(1e-3)], full=full)
    assert np.linalg.norm(new - old) < 0.1 * np.linalg.norm(old)
    assert any("random transforms" in remark for remark in problem.remarks())
    assert problem.evaluate(x) == problem.evaluate(x)


COLLATE = """
    def collate(self, samples):
        inputs, targets = default_collate(samples)
        return inputs * torch.rand(1), targets
"""


def test_other_processes_give_the_same_bits_and_may_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch_model, "BLOCK", 5)
    body = NOISY + COLLATE
    alone, spread = load(tmp_path, body), load(tmp_path / "spread", "    workers, prefetch = 2, 1\n" + body)
    x = alone.initial()
    before = generators()
    for options in ({}, {"full": True}, {"flipped": True}, {"full": True, "worker": 1}):
        for one, other in zip(*(gradients(each, [x, x + 1], **options) for each in (alone, spread)), strict=True):
            assert one.tobytes() == other.tobytes()
    monkeypatch.setattr(torch_model, "BLOCK", 50)  # one batch, which both processes fetch
    (one,), (other,) = (gradients(each, [x]) for each in (alone, spread))
    assert one.tobytes() == other.tobytes()
    assert generators() == before

    source = spread.task.train.source
    assert spread.accuracy(x, spread.task.train, np.arange(9)) == alone.accuracy(x, alone.task.train, np.arange(9))
    next(source.batches([np.arange(5)] * 4, 1))  # a pass that is given up
    (after,) = gradients(spread, [x])
    assert after.tobytes() == one.tobytes()

    os.kill(source._loader._iterator._workers[0].pid, signal.SIGKILL)
    (after,) = gradients(spread, [x])
    assert after.tobytes() == one.tobytes()
    assert "train_data(): samples are now fetched in this process: DataLoader worker" in caplog.text


def test_a_worker_has_the_minibatch_of_the_next_round_fetched_ahead(tmp_path: Path) -> None:
    config = parse(
        """
        federation = { clients = 3, byzantine = 1, seed = 2 }
        task = { kind = "digits" }
        strategy = { kind = "robust-sgd", rounds = 9, gamma = 0.1, batch = 8 }
        """
    )

    def worker(problem: Any) -> HonestWorker:
        return HonestWorker(Experiment(config=resolve(config, problem), problem=problem), 0)

    body = NOISY + COLLATE
    alone, spread = load(tmp_path, body), load(tmp_path / "spread", "    workers = 2\n" + body)
    source, x = spread.task.train.source, alone.initial()
    one, other = worker(alone), worker(spread)
    misses = []
    for round_ in (1, 2, 3, 5, 6, 8, 10, 12, 14):
        packets = [each.answer(Ask(round_, "minibatch", {"x": x})) for each in (one, other)]
        assert packets[0].values.tobytes() == packets[1].values.tobytes()
        misses.append(source._misses)
    assert misses == [0, 0, 0, 1, 0, 1, 2, 3, 3]  # those that were asked in another round than the next
    assert source._prepared is None  # given up


def broken(at: int, what: str = "raise ValueError('no such file')") -> str:
    return f"""    def train_data(self): return Broken()
class Broken(Plain):
    def __getitem__(self, i):
        if i == {at}:
            {what}
        return super().__getitem__(i)
"""


NAN = "return X[i] / 0 * 0, int(Y[i])"


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (
            "raise ValueError('no such file')",
            r"own.py, line \d+: ValueError: no such file \(sample {} of train_data\(\)\)",
        ),
        (NAN, r"train_data\(\) gave inputs with nan in row 0.* \(sample {}\)"),
        ("return X[i]", r"must be \(input, target\) \(sample {}\)"),
    ],
)
@pytest.mark.parametrize("at", [0, 4])
def test_what_is_wrong_with_a_sample_is_one_line(tmp_path: Path, what: str, said: str, at: int) -> None:
    if at == 0:
        with pytest.raises(TaskError, match=said.format(at)):
            load(tmp_path, broken(at, what))
        return
    problem = load(tmp_path, broken(at, what))  # not one of those that are looked at
    worker = next(worker for worker, part in enumerate(problem.parts) if at in part)
    with pytest.raises(TaskError, match=said.format(at)) as error:
        gradients(problem, [problem.initial()], worker=worker, full=True)
    assert "\n" not in str(error.value)


NO_TARGETS = PLAIN.replace("Plain()", "Bare()") + "\nclass Bare(Plain):\n    def __init__(self): pass\n"
SHORT = PLAIN.replace("Plain()", "Short()") + "\nclass Short(Plain):\n    def __init__(self): self.targets = [1]\n"
OWN_GENERATOR = """    def train_data(self): return Own1()
class Own1(Plain):
    def __init__(self): self.rng, self.targets = np.random.default_rng(0), Y
    def __getitem__(self, i): return X[i] + self.rng.standard_normal(), int(Y[i])
"""


@pytest.mark.parametrize(
    ("body", "options", "said"),
    [
        (NO_TARGETS, {"partition": "label"}, 'partition = "label": the Dataset has no attribute targets; give it one'),
        (SHORT, {}, r"a Dataset with 40 samples and targets of shape \(1,\)"),
        (OWN_GENERATOR, {}, "another sample at its second call; draw at random from the global generators"),
        ("    workers = -1\n" + PLAIN, {}, "workers = -1: must be a whole number from 0 up"),
        ("    prefetch = 0\n" + PLAIN, {}, "prefetch = 0: must be a whole number from 1 up"),
        (
            PLAIN.replace("Plain()", "Noisy()") + "\n    def collate(self, samples): return X[:1], Y[:1]",
            {},
            "collate gave",
        ),
        (PLAIN + "\n    def collate(self, samples): return 1 / 0", {}, r"own.py, line \d+: ZeroDivisionError"),
    ],
)
def test_a_dataset_that_misleads_is_refused(tmp_path: Path, body: str, options: Any, said: str) -> None:
    with pytest.raises(TaskError, match=said):
        load(tmp_path, body, tried=True, **options)


def test_without_targets_labels_are_not_flipped_and_all_else_works(tmp_path: Path) -> None:
    found, expected = load(tmp_path, NO_TARGETS), load(tmp_path, PLAIN)
    x = expected.initial()
    assert gradients(found, [x])[0].tobytes() == gradients(expected, [x])[0].tobytes()
    with pytest.raises(TaskError, match="label flipping: the Dataset has no attribute targets"):
        found.oracle(2, flipped=True)


def test_data_are_compared_by_length_targets_and_a_few_samples(tmp_path: Path) -> None:
    first, again = (identify(load(tmp_path, NOISY)) for _ in range(2))
    assert first == again
    assert first.samples == "40"
    for change in ("Y[-1] = 1\n", "X[0] = 0\n"):
        other = identify(load(tmp_path, NOISY + f"\n{change}"))
        said = ["the training data differ: 40 rows both times, with other values or labels"]
        assert replace(first, files="").differences(other) == said


WORDS = """
    workers = 0
    def model(self): return nn.EmbeddingBag(9, 3, padding_idx=0)
    def train_data(self): return Sentences()
    def test_data(self): return Sentences()
    def collate(self, samples):
        words = nn.utils.rnn.pad_sequence([sample["words"] for sample in samples], batch_first=True)
        return {"words": words, "labels": torch.tensor([sample["label"] for sample in samples])}
    def loss(self, module, batch): return cross_entropy(module(batch["words"]), batch["labels"])
    def correct(self, module, batch): return module(batch["words"]).argmax(1) == batch["labels"]
class Sentences(Dataset):
    def __init__(self): self.targets = Y
    def __len__(self): return 40
    def __getitem__(self, i): return {"words": torch.arange(1, 2 + i % 7), "label": int(Y[i])}
"""


def test_sequences_of_any_length_in_dicts_are_collated_by_the_class(tmp_path: Path) -> None:
    problem = load(tmp_path, WORDS, partition="label", tried=True)
    x = problem.initial()
    plain, flipped = (gradients(problem, [x], flipped=flip)[0] for flip in (False, True))
    assert not np.array_equal(plain, flipped)
    assert problem.evaluate(x).accuracy is not None


def test_a_party_keeps_back_samples_of_each_label(tmp_path: Path) -> None:
    body = NOISY.replace("train_data(self)", "local_data(self, folder)") + "\n    test_share = 0.25"
    head = HEAD.replace("def test_data(self)", "def no_data(self)")
    (tmp_path / "own.py").write_text(f"{head}class Own(Base):\n{body}")
    setting = Setting(3, 0, config_dir=tmp_path, party="client", data_dir=tmp_path, batch=8)
    task: Any = CustomTask(path="own.py:Own", partition="own")
    problem: Any = task.load(setting)
    try_out(task, setting, Demands(workers=[0], batches=(8, 0), flipped=[0], evaluates=False), problem)
    assert (problem.count(0), problem.kept_back(0)) == (30, 10)
    trained, kept = problem.own_data(0)
    assert [len(np.unique(part[-1])) for part in (trained, kept)] == [3, 3]
    assert problem.measure(0, problem.initial()).loss > 0
    assert any("local_data() gives samples with random transforms" in remark for remark in problem.remarks())
    x = problem.initial()
    plain, flipped = (gradients(problem, [x], flipped=flip)[0] for flip in (False, True))
    assert not np.array_equal(plain, flipped)


def test_the_example_of_images_learns_from_files(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for number in range(8):
        shade = np.full((9, 8, 3), 250 * (number % 2), np.uint8)
        image.fromarray(shade).save(tmp_path / f"{number}.png")
    names = (f"{number}.png,{('cat', 'dog')[number % 2]}\n" for number in range(8))
    (tmp_path / "labels.csv").write_text("".join(names), encoding="utf-8")
    config_dir = Path(__file__).parents[3] / "examples"
    setting = Setting(2, 0, config_dir=config_dir, party="client", data_dir=tmp_path, batch=4)
    problem: Any = CustomTask(path="my_images.py:CatsAndDogs", partition="own", options={"size": 8}).load(setting)
    x = problem.initial()
    start = problem.measure(0, x).loss
    for round_ in range(1, 6):
        x = x - np.float32(0.2) * gradients(problem, [x], round_=round_)[0]
    assert problem.measure(0, x).loss < start
