"""Torch modules on flat vectors, and the user's own tasks that stand on them."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from strategies.method import Vector
from tasks.contract import Problem, Setting, TaskError
from tasks.custom import CustomTask
from tasks.identity import identify
from tasks.network import Network
from tasks.trial import Demands
from tasks.tryout import try_out
from tests.toys import accuracy

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402  # after the skip: torch is an extra

import tasks.torch_model as torch_model  # noqa: E402  # imports torch
from tasks.flat_module import FlatModule  # noqa: E402  # imports torch
from tasks.torch_model import TorchProblem, TorchTask  # noqa: E402  # imports torch

ROOT = Path(__file__).parents[3]
SETTING = Setting(clients=3, byzantine=1, seed=4)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def data(samples: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(samples, 4, generator=generator, dtype=torch.float64)
    return inputs, torch.arange(samples) % 3


def problem(**options: Any) -> TorchProblem:
    values: dict[str, Any] = {"model": net, "train": data(31), "test": data(9, 1), "dtype": "float64"}
    return TorchTask(**(values | {"flip": lambda y: 2 - y} | options)).load(SETTING)


def module_at(x: Vector) -> nn.Module:
    """Return the same model without our flat vectors."""
    module = net().to(torch.float64)
    nn.utils.vector_to_parameters(torch.tensor(x), module.parameters())
    return module


def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_model, "BLOCK", 4)


def test_the_gradient_agrees_with_finite_differences_of_the_objective(monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch)
    task = problem(l2=0.3)
    x = task.initial()
    gradient = np.mean([task.oracle(worker).full_gradient(x) for worker in range(2)], axis=0)
    for j in range(task.dim):
        e = 1e-6 * np.eye(task.dim)[j]
        slope = (task.evaluate(x + e).loss - task.evaluate(x - e).loss) / 2e-6
        assert gradient[j] == pytest.approx(slope, abs=1e-8)


def test_the_gradient_is_the_mean_over_single_samples_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    task = problem()
    x = task.initial()
    whole = task.oracle(0).full_gradient(x)
    small_blocks(monkeypatch)
    np.testing.assert_allclose(task.oracle(0).full_gradient(x), whole, rtol=1e-12, atol=1e-15)
    inputs, targets = task.task.train
    module = module_at(x)
    rows = []
    for row in task.parts[0]:
        loss = nn.functional.cross_entropy(module(inputs[row : row + 1]), targets[row : row + 1])
        gradients = torch.autograd.grad(loss, list(module.parameters()))
        rows.append(torch.cat([gradient.reshape(-1) for gradient in gradients]).numpy())
    np.testing.assert_allclose(whole, np.mean(rows, axis=0), rtol=1e-12, atol=1e-15)


def test_one_minibatch_serves_all_points() -> None:
    task = problem()
    x = task.initial()
    first, second, again = task.oracle(1).minibatch_gradients([x, 2 * x, x], 4, np.random.default_rng(0))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, second)
    (other,) = task.oracle(1).minibatch_gradients([x], 4, np.random.default_rng(1))
    assert not np.array_equal(first, other)
    (everything,) = task.oracle(1).minibatch_gradients([x], 400, np.random.default_rng(1))
    assert np.array_equal(everything, task.oracle(1).full_gradient(x))


def test_flat_vectors_are_copied_in_and_out() -> None:
    task = problem()
    x = task.initial()
    x.setflags(write=False)  # as it comes off the wire
    gradient = task.oracle(0).full_gradient(x)
    kept = gradient.copy()
    task.oracle(1).full_gradient(2 * x)
    assert np.array_equal(gradient, kept)
    assert np.array_equal(task.initial(), x)
    assert gradient.dtype == x.dtype == task.dtype == np.float64


def test_the_layout_is_that_of_torch_and_the_numpy_network_agrees_with_autograd() -> None:
    network = Network((4, 5, 3))
    inputs, targets = data(20)
    x = network.initial(np.random.default_rng(0))
    transposed = [part for weight, offset in network.layers(x) for part in (weight.T.reshape(-1), offset)]
    relu = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    gradient, drawn = FlatModule(relu, "float64").gradient(
        np.concatenate(transposed),
        [(inputs, targets)],
        lambda module, batch: nn.functional.cross_entropy(module(batch[0]), batch[1]),
        20,
    )
    assert not drawn
    expected = network.layers(network.gradient(x, inputs.numpy(), targets.numpy()))
    flat = np.concatenate([part for weight, offset in expected for part in (weight.T.reshape(-1), offset)])
    np.testing.assert_allclose(gradient, flat, rtol=1e-12, atol=1e-15)


def test_flipped_labels_and_accuracy() -> None:
    task = problem(test=(data(9)[0], data(9)[1]))
    x = task.initial()
    flipped = problem(train=(data(31)[0], 2 - data(31)[1]), partition="iid")
    assert np.array_equal(task.oracle(0, flipped=True).full_gradient(x), flipped.oracle(0).full_gradient(x))
    hits = (module_at(x)(data(9)[0]).argmax(dim=1) == data(9)[1]).double().mean().item()
    assert task.evaluate(x).accuracy == pytest.approx(hits)


def test_replicated_data_have_one_oracle_that_keeps_its_last_gradient() -> None:
    task = problem(partition="replicated")
    x = task.initial()
    assert task.oracle(0) is task.oracle(2)
    first = task.oracle(0).full_gradient(x)
    kept = first.copy()
    first[:] = 7  # what a caller does to the answer
    assert np.array_equal(task.oracle(1).full_gradient(x), kept)
    moved = 3 * x
    before = task.oracle(1).full_gradient(moved)
    moved *= 2  # or to the question
    assert not np.array_equal(task.oracle(1).full_gradient(moved), before)
    inputs, targets = task.task.train
    expected = nn.functional.cross_entropy(module_at(x)(inputs), targets).item()
    assert task.evaluate(x).loss == pytest.approx(expected, rel=1e-14)


def test_the_start_belongs_to_the_seed_and_torch_keeps_its_own_random_state() -> None:
    torch.manual_seed(99)
    expected = torch.rand(3)
    torch.manual_seed(99)
    first = problem().initial()
    assert torch.equal(torch.rand(3), expected)
    assert np.array_equal(problem().initial(), first)
    other = TorchTask(model=net, train=data(31), test=data(9), flip=lambda y: y).load(Setting(clients=3, seed=5))
    assert not np.allclose(other.initial(), first)
    assert other.dtype == np.float32


def test_a_destroyed_model_gives_no_numbers_and_no_warnings() -> None:
    task = problem(l2=1.0)
    for value in (np.nan, np.inf, 1e300):
        x = np.full(task.dim, value)
        assert not np.isfinite(task.evaluate(x).loss)
        assert task.oracle(0).full_gradient(x).shape == (task.dim,)


def test_a_model_without_parameters_is_refused() -> None:
    with pytest.raises(TaskError, match="no parameters"):
        FlatModule(nn.Sequential(nn.Tanh()), "float32")


def bits() -> str:
    """Return a digest of all that a small CNN computes."""

    def model() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(294, 10)
        )

    pixels = torch.rand(500, 1, 14, 14, generator=torch.Generator().manual_seed(0))
    train = (pixels, torch.arange(500) % 10)
    task = TorchTask(model=model, train=train, test=train, flip=lambda y: 9 - y, partition="dirichlet(0.5)")
    loaded = task.load(Setting(clients=4, byzantine=1, seed=3))
    x, oracle = loaded.initial(), loaded.oracle(2)
    vectors = [x, oracle.full_gradient(x), *oracle.minibatch_gradients([x, -x], 32, np.random.default_rng(0))]
    digest = hashlib.sha256(np.float64(loaded.evaluate(x).loss).tobytes())
    for vector in vectors:
        digest.update(vector.tobytes())
    return digest.hexdigest()


def test_another_process_computes_the_same_bits() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from tests.unit.tasks.test_torch_model import bits; print(bits())"],
        env={**os.environ, "OMP_NUM_THREADS": "2", "PYTHONHASHSEED": "7"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == bits()


# --- the user's own task ---


def load(folder: Path, code: str, **options: Any) -> Problem:
    """Load an own task as a process of a federation does: tried out."""
    (folder / "own.py").write_text(code)
    task, setting = CustomTask(path="own.py:Own", **options), Setting(clients=3, byzantine=1, config_dir=folder)
    loaded = task.load(setting)
    try_out(task, setting, Demands(workers=range(3), batches=(2, 0)), loaded)
    return loaded


def test_the_documented_example_learns() -> None:
    task = CustomTask(path="my_task.py:TwoMoons", options={"samples": 600, "hidden": 12}, partition="dirichlet(1.0)")
    moons = task.load(Setting(clients=10, byzantine=3, seed=1, config_dir=ROOT / "examples"))
    x, rng = moons.initial(), np.random.default_rng(0)
    assert moons.dim == 12 * 3 + 2 * 13
    assert accuracy(moons.evaluate(x)) < 0.8
    for _ in range(300):
        gradients = [moons.oracle(worker).minibatch_gradients([x], 32, rng)[0] for worker in range(7)]
        x = x - np.float32(0.5) * np.mean(gradients, axis=0)
    assert accuracy(moons.evaluate(x)) > 0.95


def test_the_documentation_shows_the_example_as_it_is() -> None:
    example = (ROOT / "examples" / "my_task.py").read_text().split('"""\n', 1)[1].strip()
    assert example in (ROOT / "docs" / "tasks.md").read_text()


REGRESSION = """
import torch
class Own:
    dtype = "float64"
    l2 = 0.5
    def __init__(self, slope=2.0):
        self.slope = slope
    def model(self):
        return torch.nn.Linear(1, 1, bias=False)
    def train_data(self):
        inputs = torch.arange(6.0).reshape(6, 1)
        return inputs, self.slope * inputs
    def loss(self, output, target):
        return ((output - target) ** 2).mean() / 2
    def correct(self, output, target):
        return (output - target).abs().squeeze(1) < 0.1
    def flip(self, targets):
        return -targets
"""


def test_a_task_may_choose_loss_accuracy_flip_l2_and_dtype(tmp_path: Path) -> None:
    line = load(tmp_path, REGRESSION, options={"slope": 3.0}, partition="replicated")
    mean_square = sum(a * a for a in range(6)) / 6
    for x in (0.0, 1.0, 3.0):
        at = np.array([x])
        assert line.oracle(0).full_gradient(at) == pytest.approx((x - 3) * mean_square + 0.5 * x)
        assert line.oracle(0, flipped=True).full_gradient(at) == pytest.approx((x + 3) * mean_square + 0.5 * x)
        assert line.evaluate(at).loss == pytest.approx((x - 3) ** 2 * mean_square / 2 + 0.25 * x * x)
    assert line.evaluate(np.array([3.0])).accuracy == 1
    assert line.evaluate(np.array([0.0])).accuracy == pytest.approx(1 / 6)


QUADRATIC = """
import numpy as np
from dataclasses import dataclass
from strategies.method import Evaluation
class Worker:
    def __init__(self, centre):
        self.centre, self.dim = centre, len(centre)
    def full_gradient(self, x):
        return x - self.centre
    def minibatch_gradients(self, points, batch, rng):
        return [self.full_gradient(x) for x in points]
@dataclass
class Quadratic:
    centres: np.ndarray
    smoothness = 1.0
    optimum = None
    samples = 1
    dtype = np.dtype("float64")
    @property
    def dim(self):
        return self.centres.shape[1]
    def initial(self):
        return np.zeros(self.dim)
    def oracle(self, worker, *, flipped=False):
        return Worker(self.centres[worker])
    def evaluate(self, x):
        return Evaluation(loss=float(((x - self.centres) ** 2).sum(axis=1).mean() / 2), accuracy=0.0)
class Own:
    def __init__(self, d):
        self.d = d
    def load(self, setting):
        return Quadratic(np.random.default_rng(setting.seed).normal(size=(setting.clients, self.d)))
"""


def test_a_task_may_bring_its_own_problem_without_torch(tmp_path: Path) -> None:
    quadratic = load(tmp_path, QUADRATIC, options={"d": 4})
    assert quadratic.dim == 4
    x: Vector = np.ones(4)
    assert np.array_equal(quadratic.oracle(1).full_gradient(x), x - quadratic.oracle(1).centre)  # type: ignore[attr-defined]  # the class above


MODEL = "import torch\nclass Own:\n    def model(self):\n        return torch.nn.Linear(2, 2)\n"
TRAIN = "    def train_data(self):\n        return "
GOOD = "torch.ones(9, 2), torch.arange(9) % 2\n"


@pytest.mark.parametrize(
    ("code", "word"),
    [
        ("class Other:\n    pass\n", 'there is no class "Own"'),
        ("def Own():\n    pass\n", 'there is no class "Own"'),
        ("class Own:\n    pass\n", "Own has no method model and no train_data"),
        (MODEL, "Own has no method train_data; it must have model() and train_data(), or load(setting)"),
        ("x = (\n", "own.py, line 1: SyntaxError: '(' was never closed"),
        ("\nimport no_such_module\n", "own.py, line 2: ModuleNotFoundError: No module named 'no_such_module'"),
        ("class Own:\n    def __init__(self):\n        1 / 0\n", "own.py, line 3: ZeroDivisionError: division by zero"),
        ("class Own:\n    def __init__(self):\n        raise ValueError\n", "own.py, line 3: ValueError"),
        ("class Own:\n    def __init__(self, size):\n        pass\n", "TypeError: Own.__init__() missing 1 required"),
        (MODEL + TRAIN + "torch.ones(9, 2)\n", "train_data() gave Tensor; must be (inputs, targets)"),
        (MODEL + TRAIN + "torch.ones(9, 2), torch.arange(8)\n", "shape (9, 2) and targets of shape (8,)"),
        (MODEL + TRAIN + "torch.ones(2, 2), torch.arange(2)\n", "2 samples for 3 workers"),
        (MODEL + TRAIN + "torch.ones(9, 5), torch.arange(9) % 2\n", "own.py: RuntimeError: "),  # in no line of the file
        (MODEL + TRAIN + GOOD + "    dtype = 'half'\n", 'dtype = "half"'),
        (
            MODEL + TRAIN + GOOD + "    def loss(self, output, target):\n        return output.foo\n",
            "line 8: Attribute",
        ),
        ("class Own:\n    def load(self, setting):\n        return 7\n", "what load() gave has no dim"),
        (
            QUADRATIC.replace('np.dtype("float64")', 'np.dtype("float32")').replace("(self, d)", "(self, d=3)"),
            "initial() has shape (3,) and dtype float64; must have (3,) and float32",
        ),
    ],
)
def test_a_mistake_in_an_own_task_is_one_clear_line(tmp_path: Path, code: str, word: str) -> None:
    with pytest.raises(TaskError) as error:
        load(tmp_path, code)
    assert word in str(error.value)
    assert str(error.value).startswith(('path = "own.py:Own"', "2 samples"))
    assert "\n" not in str(error.value)


def test_without_a_config_file_no_code_is_run(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("raise SystemExit('ran')")
    for path in ("own.py:Own", f"{tmp_path}/own.py:Own"):
        with pytest.raises(TaskError, match="only from a config file on this machine"):
            CustomTask(path=path).load(Setting(clients=3))
    with pytest.raises(TaskError, match=r"there is no file .*absent.py"):
        CustomTask(path="absent.py:Own").load(Setting(clients=3, config_dir=tmp_path))


def test_flipping_what_is_no_class_label_needs_the_tasks_own_flip(tmp_path: Path) -> None:
    line = load(tmp_path, REGRESSION.replace("def flip(", "def unused("))
    with pytest.raises(TaskError, match="own method flip"):
        line.oracle(0, flipped=True)
    classes = load(tmp_path, MODEL + TRAIN + GOOD, partition="replicated")
    flipped = load(
        tmp_path, MODEL + TRAIN + GOOD.replace("torch.arange(9) % 2", "1 - torch.arange(9) % 2"), partition="replicated"
    )
    x = classes.initial()
    assert np.array_equal(classes.oracle(0, flipped=True).full_gradient(x), flipped.oracle(0).full_gradient(x))


# --- what is not trained ----------------------------------------------------------------------------------------------


class Transfer(nn.Module):
    """A random body that is frozen, a buffer, a frozen number, a tied pair and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.same = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.same.weight = self.head.weight
        self.out = nn.Linear(6, 3)
        self.body.requires_grad_(False)
        self.mean = nn.Buffer(torch.randn(4))
        self.steps = nn.Parameter(torch.arange(3), requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(self.body(inputs - self.mean))
        return self.out(self.same(torch.tanh(self.head(hidden))))  # type: ignore[no-any-return]  # as torch types it


def test_what_is_frozen_is_no_part_of_x_and_goes_home_with_it() -> None:
    task = problem(model=Transfer)
    frozen = task.frozen()
    assert sorted(frozen) == ["body.bias", "body.weight", "mean", "steps"]
    assert task.dim == 6 * 6 + 6 + 6 + 6 * 3 + 3
    x = task.initial() + 0.1
    home = Transfer().double()
    names, _ = zip(*json.loads(task.layout()), strict=True)
    assert names == ("head.weight", "head.bias", "same.bias", "out.weight", "out.bias")
    nn.utils.vector_to_parameters(torch.tensor(x), [p for p in home.parameters() if p.requires_grad])
    home.load_state_dict({name: torch.from_numpy(array) for name, array in frozen.items()}, strict=False)
    inputs, _ = task.task.test
    with task.model.evaluating(x, None) as module:
        assert torch.equal(module(inputs), home(inputs))


def test_other_frozen_values_are_another_task_and_another_order_of_parameters_too() -> None:
    def shifted() -> nn.Module:
        module = Transfer()
        module.mean.add_(1)
        return module

    mine, other = identify(problem(model=Transfer)), identify(problem(model=shifted))
    assert other.differences(mine) == ["the model's frozen parameters or buffers have other values"]
    assert identify(problem(model=Transfer)) == mine
    renamed = identify(problem(model=lambda: nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))))
    (said,) = renamed.differences(identify(problem()))
    assert said == "parameter `1.weight` exists only at the client"


def test_lazy_layers_get_their_shapes_and_their_start_from_the_seed() -> None:
    def lazy() -> nn.Module:
        return nn.Sequential(nn.LazyLinear(5), nn.Tanh(), nn.LazyLinear(3))

    first, second = problem(model=lazy), problem(model=lazy)
    assert first.dim == problem().dim
    assert np.array_equal(first.initial(), second.initial())
    x = first.initial()
    assert first.oracle(0).full_gradient(x).shape == x.shape


def test_a_sparse_embedding_has_the_gradient_of_a_plain_one() -> None:
    class Bag(nn.Module):
        def __init__(self, sparse: bool) -> None:
            super().__init__()
            self.words, self.out = nn.Embedding(9, 4, sparse=sparse), nn.Linear(4, 3)

        def forward(self, words: Tensor) -> Tensor:
            return self.out(self.words(words).mean(1))  # type: ignore[no-any-return]  # as torch types it

    words = torch.randint(0, 9, (31, 5), generator=torch.Generator().manual_seed(1)), torch.arange(31) % 3
    plain, sparse = (problem(model=lambda s=s: Bag(s), train=words, test=words) for s in (False, True))
    for _ in range(2):
        gradients = [task.oracle(0).full_gradient(plain.initial() + 0.1) for task in (plain, sparse)]
        np.testing.assert_allclose(gradients[1], gradients[0], rtol=1e-12, atol=1e-15)


def test_complex_parameters_and_other_devices_are_refused_by_name() -> None:
    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.ones(4, 3, dtype=torch.complex64))

    with pytest.raises(TaskError, match=r'parameter "a" is of torch.complex64; must be real'):
        problem(model=Complex)
    with pytest.raises(TaskError, match=r'parameter "weight" is on the device "meta"; must be on the CPU'):
        problem(model=lambda: nn.Linear(4, 3, device="meta"))
