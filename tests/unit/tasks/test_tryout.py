"""A task is tried before anybody relies on it: what works by default, and what is refused, in which words."""

import random
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiment.config import parse
from experiment.opened import Experiment, open_experiment, try_out
from foundation.errors import ConfigError
from strategies.method import Evaluation
from tests.toys import accuracy

torch = pytest.importorskip("torch")

TORCH = """
import random, numpy as np
import torch
from torch import nn
from torch.nn.functional import *
X = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)
class Base:
    def model(self): return nn.Linear(6, 3)
    def train_data(self): return X, Y
"""
CONFIG = """
[federation]
clients = {clients}
byzantine = {byzantine}
seed = 1
[task]
kind = "custom"
path = "own.py:Own"
partition = "{partition}"
[strategy]
kind = "robust-sgd"
rounds = 5
gamma = 0.1
batch = {batch}
{attack}
"""


def opened(folder: Path, code: str, **values: Any) -> Experiment:
    """Open an experiment on an own task, as a server does before it listens."""
    (folder / "own.py").write_text(code)
    values = {"clients": 4, "byzantine": 1, "partition": "iid", "batch": 8, "attack": ""} | values
    open_experiment.cache_clear()
    experiment = open_experiment(CONFIG.format(**values), None, folder)
    try_out(experiment)
    return experiment


def own(body: str) -> str:
    return TORCH + "class Own(Base):\n" + textwrap.indent(textwrap.dedent(body), "    ")


def refusal(folder: Path, code: str, **values: Any) -> str:
    with pytest.raises(ConfigError) as error:
        opened(folder, code, **values)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith('[task] path = "own.py:Own": ')
    return str(error.value)


def measured(experiment: Experiment) -> Evaluation:
    return experiment.problem.evaluate(experiment.problem.initial())


# --- outputs and targets ---

COLUMN = "def model(self): return nn.Linear(6, 1)\n"
MSE = "def loss(self, out, y): return mse_loss(out.reshape(y.shape), y)\n"
LOGITS = "def loss(self, out, y): return binary_cross_entropy_with_logits(out.reshape(y.shape), y)\n"


@pytest.mark.parametrize(
    "body",
    [
        COLUMN + MSE + "def train_data(self): return X, X[:, :1] * 3",
        COLUMN + MSE + "def train_data(self): return X, X[:, 0] * 3",
        "def model(self): return nn.Sequential(nn.Linear(6, 1), nn.Flatten(0))\n"
        + MSE
        + "def train_data(self): return X, X[:, 0] * 3",
        MSE + "def train_data(self): return X, X[:, :3] * 3",
        COLUMN + "def loss(self, out, y): return poisson_nll_loss(out[:, 0], y)\n"
        "def train_data(self): return X, Y.int()",
        "correct = None",
    ],
)
def test_what_predicts_no_classes_has_a_loss_and_no_accuracy(tmp_path: Path, body: str) -> None:
    found = measured(opened(tmp_path, own(body)))
    assert found.accuracy is None
    assert found.loss > 0


CLASS, ABOVE_0, ABOVE_HALF = "class", 0.0, 0.5
SIGN = "def train_data(self): return X, (X[:, 0] > 0).float()"


def share_by_hand(rule: Any, output: Any, inputs: Any) -> float:
    """Return the share of right predictions, and of right labels or positions of a sample."""
    if rule == CLASS:
        target = inputs[:, :3].argmax(1)
        right = output.argmax(1) == (target if output.ndim == 2 else target[:, None])
    else:
        right = (output > rule) == (inputs[:, : output.shape[1]] > 0)
    return float(right.double().mean())


@pytest.mark.parametrize(
    ("body", "rule"),
    [
        ("", CLASS),
        ("def train_data(self): return X, Y.int()", CLASS),
        ("def train_data(self): return X.numpy(), Y.numpy().astype('>f8')", CLASS),
        ("def train_data(self): return X, one_hot(Y, 3).float()", CLASS),
        (
            "def train_data(self): return X, one_hot(Y, 3).float()\n" + MSE,
            CLASS,
        ),
        (COLUMN + LOGITS + SIGN, ABOVE_0),
        (COLUMN + LOGITS + "def train_data(self): return X, (X[:, :1] > 0).float()", ABOVE_0),
        (
            COLUMN + LOGITS.replace("y)", "y, pos_weight=torch.tensor(9.))") + SIGN,
            ABOVE_0,
        ),
        (
            "def model(self): return nn.Sequential(nn.Linear(6, 1), nn.Sigmoid())\n"
            "def loss(self, out, y): return binary_cross_entropy(out[:, 0], y)\n" + SIGN,
            ABOVE_HALF,
        ),
        (COLUMN + MSE + SIGN, ABOVE_HALF),
        (LOGITS + "def train_data(self): return X, (X[:, :3] > 0).float()", ABOVE_0),
        (
            "def model(self): return nn.Sequential(nn.Linear(6, 6), nn.Unflatten(1, (3, 2)))\n"
            "def train_data(self): return X, torch.stack([Y, Y], 1)",
            CLASS,
        ),
    ],
)
def test_an_accuracy_without_a_method_is_the_right_one(tmp_path: Path, body: str, rule: Any) -> None:
    experiment = opened(tmp_path, own(body or "pass"))
    inputs = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
    output = experiment.problem.model.module(inputs)  # type: ignore[attr-defined]  # a torch problem
    assert accuracy(measured(experiment)) == pytest.approx(share_by_hand(rule, output, inputs))


# --- what is refused ---

ODD_MODEL = """
class M(nn.Module):
    def __init__(self):
        super().__init__(); self.a = nn.Linear(6, 3); self.n = 0; self.register_buffer("calls", torch.zeros(1))
        self.r = nn.LSTM(1, 8, num_layers=2, dropout=0.5, batch_first=True)
        self.h = nn.MultiheadAttention(6, 2, dropout=0.3)
    def forward(self, x): FORWARD
"""


def odd(forward: str) -> str:
    return TORCH + ODD_MODEL.replace("FORWARD", forward) + "class Own(Base):\n    def model(self): return M()\n"


PARAMETER = "self.w = nn.Parameter(torch.ones(1)) if not hasattr(self, 'w') else self.w; return self.a(x) * self.w"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (odd("return self.a(x) * float(np.random.rand())"), ["own forward (M)", "from torch's own generators alone"]),
        (odd("return self.a(x) if random.random() < 0.8 else self.a(x) * 2"), ["own forward (M)", "another output"]),
        (odd("self.n += 1; return self.a(x) * self.n"), ["own forward (M)", "keep nothing"]),
        (odd("self.calls.mul_(0.9).add_(x.mean()); return self.a(x) - self.calls"), ['changes its state "calls"']),
        (odd("self.calls += 1; return self.a(x)"), ['own forward (M) changes its state "calls"']),
        (odd("self.a.weight.data *= 0.5; return self.a(x)"), ['layer "a" (Linear) changes its state "weight"']),
        (odd("return self.a(x) if self.training else 0 * self.a(x)"), ["own forward (M)", "evaluation mode"]),
        (odd(PARAMETER), ['parameter "w" appears with the first forward pass']),
        (own("def model(self): return nn.utils.spectral_norm(nn.Linear(6, 3))"), ['changes its state "weight_u"']),
        (own("def model(self): return nn.Linear(6, 3, device='meta')"), ['is on the device "meta"']),
        (own("def model(self): return nn.Linear(6, 1)"), ["cross-entropy of one class is always 0"]),
        (own("def loss(self, out, y): return cross_entropy(out, y, reduction='sum')"), ["must be the mean"]),
        (own("def loss(self, out, y): return cross_entropy(out, y, reduction='none')"), ["must be one number"]),
        (own("def loss(self, out, y): return float(cross_entropy(out, y))"), ["loss() gave float; must be"]),
        (own("def loss(self, out, y): return cross_entropy(out, y).detach()"), ["a tensor without a gradient"]),
        (own("def loss(self, out, y): return cross_entropy(out, y) * np.random.rand()"), ["at its second call"]),
        (
            own(COLUMN + "def loss(self, o, y): return mse_loss(o, y)\ndef train_data(self): return X, X[:, 0]"),
            ["(8, 1) with targets of shape (8,), each with each"],
        ),
        (own("def train_data(self): return X, Y + 1"), ["Target 3 is out of bounds", "1 to 3", "count from 0"]),
        (own("def train_data(self): return X, Y.where(Y > 0, -100)"), ["targets are -100 in row", "leave them out"]),
        (own("def train_data(self): return X, X[:, 0]"), ["no class labels", "write one, for example"]),
        (own("def train_data(self): return X, np.array(list('abc'))[Y]"), ["targets of strings", "np.unique"]),
        (own("def train_data(self): return X, [[1], [1, 2]] * 30"), ["targets in rows of different lengths"]),
        (own("def train_data(self): return X.to_sparse(), Y"), ["inputs as a sparse tensor"]),
        (own("def train_data(self): return np.ma.masked_less(X.numpy(), 0), Y"), ["inputs with masked entries"]),
        (own("def train_data(self): return {'x': X, 'y': Y}"), ["train_data() gave dict; must be (inputs, targets)"]),
        (own("def train_data(self): return X.byte(), Y"), ["inputs of torch.uint8", 'inputs.astype("float32")']),
        (own("def train_data(self): raise SystemExit('no data')"), ["own.py, line 12: SystemExit: no data"]),
        (own("def test_data(self): return X[:, :5], Y"), ["RuntimeError", "of shape (8, 5) of test_data()"]),
        (own("def correct(self, out, y): return out.argmax(1)[:, None] == y"), ["correct() gave shape (60, 60)"]),
        (own("def correct(self, out, y): return (out.argmax(1) == y).float().mean()"), ["a boolean for each"]),
        (own("def correct(self, out, y): return out.argmax(1) + 2"), ["must be booleans, or from 0 to 1"]),
        (own("l2 = -0.5"), ["l2 = -0.5: must be a finite number from 0 up"]),
        (own("l2 = float('nan')"), ["l2 = nan"]),
        (own("l2 = 'much'"), ["l2 = 'much'"]),
        (own("def train_data(self): return X, torch.rand(60).mul(3).long()"), ["other targets at its second call"]),
        (own("def test_data(self): return X[np.random.permutation(60)], Y"), ["test_data() gave other inputs"]),
        (own("def train_data(self): return X[np.random.default_rng().permutation(60)], Y"), ["fixed seed"]),
        (
            TORCH + "class Two(nn.Module):\n    def __init__(self): super().__init__(); self.a = nn.Linear(6, 3)\n"
            "    def forward(self, x): return self.a(x), x\n"
            "class Own(Base):\n    def model(self): return Two()\n"
            "    def loss(self, o, y): return cross_entropy(o[0], y)\n",
            ["the model gives tuple, not one tensor; write correct(output, target)"],
        ),
    ],
)
def test_a_torch_task_that_would_mislead_is_refused_in_one_line(tmp_path: Path, code: str, words: list[str]) -> None:
    told = refusal(tmp_path, code)
    assert [word for word in words if word not in told] == [], told


@pytest.mark.parametrize(
    ("part", "row", "value", "words"),
    [
        ("train", 7, "nan", "train_data() gave inputs with nan in row 7, column 2"),
        ("train", 0, "inf", "train_data() gave inputs with inf in row 0, column 2"),
        ("test", 59, "-inf", "test_data() gave inputs with -inf in row 59, column 2"),
        (
            "train",
            3,
            "1e39",
            'float32 in row 3, column 2; scale the data, or set dtype = "float64"',
        ),
    ],
)
def test_numbers_that_are_not_finite_are_named_by_method_row_and_column(
    tmp_path: Path, part: str, row: int, value: str, words: str
) -> None:
    body = f"""
    def data(self, part):
        x = X.double().clone()
        if part == "{part}":
            x[{row}, 2] = {value if value == "1e39" else f"float('{value}')"}
        return x, Y
    def train_data(self): return self.data("train")
    def test_data(self): return self.data("test")
    """
    assert words in refusal(tmp_path, own(body))


def test_a_class_that_only_the_last_worker_holds_is_found(tmp_path: Path) -> None:
    body = "def train_data(self): return X, Y + (torch.arange(60) == 59).long() * 3"
    assert "out of bounds" in refusal(tmp_path, own(body), partition="label")


def test_the_batches_that_occur_are_tried(tmp_path: Path) -> None:
    body = "def model(self): return nn.Sequential(nn.BatchNorm1d(6, track_running_stats=False), nn.Linear(6, 3))"
    opened(tmp_path, own(body))
    assert "strategy.batch = 1: batch norm needs more than one value" in refusal(tmp_path, own(body), batch=1)


def test_an_attack_that_cannot_be_carried_out_is_refused_before_the_start(tmp_path: Path) -> None:
    line = COLUMN + MSE + "def train_data(self): return X, X[:, :1] * 3"
    attack = '[attack]\nkind = "lf"'
    assert "needs the task's own method flip(targets)" in refusal(tmp_path, own(line), attack=attack)
    opened(tmp_path, own(line + "\ndef flip(self, y): return -y"), attack=attack)
    opened(tmp_path, own("def train_data(self): return X, one_hot(Y, 3).float()"), attack=attack)


@pytest.mark.parametrize(
    "code",
    [
        odd("return dropout(self.a(x), 0.5, self.training)"),
        odd("return self.a(x) + self.r(x[:, :, None])[0].mean()"),  # an LSTM with dropout
        odd("return self.a(self.h(x, x, x)[0])"),  # attention with dropout
        odd("return self.a(x) * (1 + torch.rand(1))"),
        own("def model(self): return nn.Sequential(nn.Linear(6, 16), nn.RReLU(), nn.Linear(16, 3))"),
        own("def model(self): return nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.Dropout(), nn.Linear(9, 3))"),
        own("def model(self): return nn.Sequential(nn.LazyBatchNorm1d(), nn.LazyLinear(3))"),
        own("def loss(self, out, y): return cross_entropy(out, y) * (1 + torch.rand(1))"),
    ],
)
def test_what_draws_from_torch_and_batch_norm_are_not_refused(tmp_path: Path, code: str) -> None:
    problem = opened(tmp_path, code).problem
    x, oracle = problem.initial(), problem.oracle(0)
    first, again = oracle.minibatch_gradients([x, x], 8, np.random.default_rng(0))
    (fresh,) = oracle.minibatch_gradients([x], 8, np.random.default_rng(0))
    assert np.array_equal(first, again)
    assert np.array_equal(first, fresh) == ("LazyBatchNorm1d" in code)
    assert np.isfinite(problem.evaluate(x).loss)


@pytest.mark.parametrize(
    "layer", ["Dropout(0.0)", "GELU()", "LayerNorm(6)", "BatchNorm1d(6, track_running_stats=False)"]
)
def test_layers_without_state_and_chance_are_not_refused(tmp_path: Path, layer: str) -> None:
    opened(tmp_path, own(f"def model(self): return nn.Sequential(nn.{layer}, nn.Linear(6, 3))"))
    encoder = "nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)"
    layers = f"nn.Unflatten(1, (1, 6)), {encoder}, nn.Flatten(), nn.Linear(6, 3)"
    opened(tmp_path, own(f"def model(self): return nn.Sequential({layers})"))


@pytest.mark.parametrize(
    "body",
    [
        "def train_data(self): return X.numpy()[::-1], Y.numpy()[::-1].astype('>i4')",
        "def train_data(self): return X.numpy().astype(np.longdouble), Y.tolist()",
        "def train_data(self): return X.clone().requires_grad_(), Y.bool()",
        "def train_data(self): np.random.seed(3); return X + float(np.random.rand()), Y",
        "l2 = np.float32(0.1)",
        "dtype = 'bfloat16'",
        "def loss(self, out, y): return cross_entropy(out, y, weight=torch.tensor([1., 2., 9.]), label_smoothing=0.1)",
        "def correct(self, out, y): return (out.argmax(1) == y)[:, None]",
        "def model(self): return nn.Sequential(nn.Embedding(9, 2), nn.Flatten(), nn.Linear(12, 3))\n"
        "def train_data(self): return X.abs().long(), Y",
    ],
)
def test_odd_but_sound_tasks_work(tmp_path: Path, body: str) -> None:
    assert 0 <= accuracy(measured(opened(tmp_path, own(body)))) <= 1


def test_trying_moves_no_generator_and_calls_nothing_of_the_task_that_is_used(tmp_path: Path) -> None:
    code = own(
        """
        made = []
        def __init__(self): Own.made.append(self); self.calls = 0
        def loss(self, out, y):
            self.calls += 1
            torch.rand(1)
            return cross_entropy(out, y)
        """
    )
    (tmp_path / "own.py").write_text(code)
    values = {"clients": 4, "byzantine": 1, "partition": "iid", "batch": 8, "attack": ""}
    open_experiment.cache_clear()
    experiment = open_experiment(CONFIG.format(**values), None, tmp_path)
    before = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state()  # type: ignore[index]  # the words of the generator
    try_out(experiment)
    after = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state()  # type: ignore[index]  # as above
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])
    task = experiment.problem.task  # type: ignore[attr-defined]  # a torch problem
    assert task.loss.__self__.calls == 0


@pytest.mark.parametrize("partition", ["label", "dirichlet(0.05)"])
def test_one_hot_targets_are_split_by_class(tmp_path: Path, partition: str) -> None:
    parts = [
        opened(tmp_path, own(f"def train_data(self): return X, {targets}"), partition=partition).problem.parts  # type: ignore[attr-defined]  # a torch problem
        for targets in ("Y", "one_hot(Y, 3).float()")
    ]
    assert all(np.array_equal(a, b) for a, b in zip(*parts, strict=True))


def test_a_dirichlet_split_of_other_numbers_is_refused(tmp_path: Path) -> None:
    line = own(COLUMN + MSE + "def train_data(self): return X, X[:, 0]")
    opened(tmp_path, line, partition="label")
    assert "needs classes, and the targets are not whole numbers" in refusal(tmp_path, line, partition="dirichlet(1)")


# --- tasks without torch ---

PLAIN = """
import numpy as np
from strategies.method import Evaluation
class Worker:
    def __init__(self, a, b): self.a, self.b, self.n, self.out = a, b, 0, np.zeros(6)
    dim = np.int64(6)
    def full_gradient(self, x): return self.a.T @ (self.a @ x - self.b) / len(self.b) + L2 * x
    def minibatch_gradients(self, points, batch, rng):
        rows = rng.choice(len(self.b), min(batch, len(self.b)), replace=False)
        a, b = self.a[rows], self.b[rows]
        return [a.T @ (a @ x - b) / len(b) + L2 * x for x in points]
L2 = 0.0
class Own:
    optimum = None
    dtype = "float64"
    dim = np.prod((3, 2))
    samples = np.float32(50)
    smoothness = np.float32(1.5)
    def load(self, setting):
        rng = np.random.default_rng(0)
        self.n = setting.honest
        self.parts = [(a := rng.normal(size=(50, 6)), a @ np.arange(6.0)) for _ in range(setting.clients)]
        return self
    def initial(self): return np.zeros(6)
    def oracle(self, worker, *, flipped=False): return Worker(*self.parts[worker])
    def loss(self, x): return np.float32(np.mean([np.mean((a @ x - b) ** 2) / 2 for a, b in self.parts[:self.n]]))
    def evaluate(self, x): return Evaluation(loss=self.loss(x), accuracy=None)
"""


@pytest.mark.parametrize("value", ["None", "np.float32('nan')", "0.5", "np.float64(1)"])
def test_numbers_of_other_types_are_converted_when_a_task_is_loaded(tmp_path: Path, value: str) -> None:
    problem = opened(tmp_path, PLAIN.replace("accuracy=None", f"accuracy={value}")).problem
    numbers = [problem.dim, problem.samples, problem.smoothness, problem.evaluate(problem.initial()).loss]
    assert [type(number) for number in numbers] == [int, int, float, float]
    assert problem.dtype == np.float64
    found = problem.evaluate(problem.initial()).accuracy
    assert found is None if "0" not in value and "1" not in value else type(found) is float


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("accuracy=None", "accuracy=121.0", "accuracy = 121; must be a share from 0 to 1"),
        ("accuracy=None", "accuracy='good'", "accuracy = 'good'; must be one number"),
        ("accuracy=None", "accuracy=np.ones(3)", "accuracy = an array of shape (3,); must be one number"),
        ("loss=self.loss(x)", "loss=np.nan", "gave loss = nan; must be finite"),
        ("loss=self.loss(x)", "loss=None", "gave loss = None"),
        ("return Evaluation(loss=self.loss(x), accuracy=None)", "return 0.5, 0.5", "evaluate() gave tuple"),
        ("loss=self.loss(x)", "loss=-self.loss(x)", "they must be of one objective"),
        ("loss=self.loss(x)", "loss=50 * self.loss(x)", "they must be of one objective"),
        ("L2 = 0.0", "L2 = 9.0", "they must be of one objective, regulariser included"),
        ("def initial(self): return np.zeros(6)", "def initial(self): return [0.0] * 6", "initial() is list"),
        (
            "def initial(self): return np.zeros(6)",
            "def initial(self): return np.full(6, np.nan)",
            "initial(): nan at x0",
        ),
        ("np.prod((3, 2))", "0", "dim = 0: must be a whole number from 1 up"),
        ("np.prod((3, 2))", "'six'", "dim = 'six'"),
        ('dtype = "float64"', 'dtype = "float16"', "dtype = float16: must be float32 or float64"),
        ("np.float32(1.5)", "-1.0", "smoothness = -1.0: must be a finite number above 0"),
        ("a, b = self.a[rows]", "points[0] += 1; a, b = self.a[rows]", "read-only"),
        (
            "a, b = self.a[rows]",
            "self.n += 1; a, b = self.a[rows] * self.n",
            "when asked again with the same",
        ),
        ("self.a[rows], self.b[rows]", "self.a[rows], self.b[rows] + np.random.rand()", "at its second call"),
        ("for x in points]", "+ np.random.rand() for x in points]", "differ"),
        ("for x in points]", "for x in points[:1]]", "1 gradients for 2 points"),
        (
            "rng = np.random.default_rng(0)",
            "rng = np.random.default_rng()",
            "other data at its second call",
        ),
        (
            "return [a.T @ (a @ x - b) / len(b) + L2 * x for x in points]",
            "self.out[:] = a.T @ (a @ points[-1] - b); return [self.out for x in points]",
            "a later gradient changes an earlier one; return a fresh array",
        ),
    ],
)
def test_a_task_without_torch_that_would_mislead_is_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert old in PLAIN
    assert words in refusal(tmp_path, PLAIN.replace(old, new))


def test_a_client_tries_the_gradients_of_its_own_worker_alone(tmp_path: Path) -> None:
    bad = PLAIN.replace("*self.parts[worker]", "*self.parts[worker if worker < 3 else 99]")
    (tmp_path / "own.py").write_text(bad)
    values = {"clients": 4, "byzantine": 0, "partition": "iid", "batch": 8, "attack": ""}
    open_experiment.cache_clear()
    experiment = open_experiment(CONFIG.format(**values), None, tmp_path)
    try_out(experiment, 2)
    with pytest.raises(ConfigError, match=r"IndexError: .*oracle\(3\)"):
        try_out(experiment, 3)
    with pytest.raises(ConfigError, match=r"IndexError"):
        try_out(experiment)


def test_tasks_that_come_with_the_project_are_not_loaded_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    text = CONFIG.format(clients=4, byzantine=1, partition="iid", batch=8, attack="")
    text = text.replace('kind = "custom"\npath = "own.py:Own"\n', 'kind = "digits"\nmodel = "softmax"\n')
    assert parse(text).task.kind == "digits"
    open_experiment.cache_clear()
    experiment = open_experiment(text, None, None)
    monkeypatch.setattr(type(experiment.config.task), "load", lambda *_: pytest.fail("loaded again"))
    try_out(experiment)
