"""Tasks whose loss takes the module and a batch: dicts of inputs, several targets, sequences."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.contract import Problem, Setting, TaskError
from tasks.custom import CustomTask
from tasks.trial import Demands
from tasks.tryout import try_out

pytest.importorskip("torch")

HEAD = """
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
G = torch.Generator().manual_seed(0)
WORDS, AGE = torch.randint(0, 9, (40, 5), generator=G), torch.randn(40, 1, generator=G)
LABELS, SIZE = WORDS[:, 0] % 3, AGE[:, 0] * 2
class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.out, self.drop = nn.Embedding(9, 4), nn.Linear(5, 4), nn.Dropout(0.1)
    def forward(self, words, age):
        return self.out(torch.cat([self.drop(self.words(words).mean(1)), age], dim=1))
class Base:
    def model(self): return Both()
"""
DICT = """
    def train_data(self): return {"words": WORDS, "age": AGE, "labels": LABELS, "size": SIZE}
    def loss(self, module, batch):
        out = module(batch["words"], batch["age"])
        return cross_entropy(out[:, :3], batch["labels"]) + mse_loss(out[:, 3], batch["size"])
"""


def load(folder: Path, body: str, **options: Any) -> Problem:
    (folder / "own.py").write_text(HEAD + "class Own(Base):\n" + body)
    task, setting = CustomTask(path="own.py:Own", **options), Setting(3, 1, seed=2, config_dir=folder, batch=8)
    problem = task.load(setting)
    try_out(task, setting, Demands(workers=range(3), batches=(8, 0)), problem)
    return problem


def test_a_dict_with_two_targets_is_trained_and_has_no_accuracy_of_its_own(tmp_path: Path) -> None:
    problem = load(tmp_path, DICT)
    x = problem.initial()
    start = problem.evaluate(x)
    assert start.accuracy is None
    for _ in range(60):
        x = x - np.float32(0.2) * problem.oracle(0).minibatch_gradients([x], 8, np.random.default_rng(0))[0]
    assert problem.oracle(0).value(x) < 0.8 * start.loss  # type: ignore[attr-defined]  # an oracle of torch


CORRECT = """
    def correct(self, module, batch):
        return module(batch["words"], batch["age"])[:, :3].argmax(1) == batch["labels"]
"""


def test_the_class_may_say_what_is_right(tmp_path: Path) -> None:
    accuracy = load(tmp_path, DICT + CORRECT).evaluate(load(tmp_path, DICT).initial()).accuracy
    assert accuracy is not None
    assert 0 <= accuracy <= 1


@pytest.mark.parametrize("partition", ["label", "dirichlet(0.5)"])
def test_labels_under_a_known_key_are_split_and_flipped(tmp_path: Path, partition: str) -> None:
    problem = load(tmp_path, DICT, partition=partition)
    x = problem.initial()
    plain, flipped = (problem.oracle(0, flipped=flip).full_gradient(x) for flip in (False, True))
    assert not np.array_equal(plain, flipped)


PAIRS = """
    def train_data(self): return Pairs()
    def loss(self, module, batch): return cross_entropy(module(*batch[:2])[:, :3], batch[2])
class Pairs(torch.utils.data.Dataset):
    def __len__(self): return 40
    def __getitem__(self, i): return WORDS[i], AGE[i], int(LABELS[i])
"""


def test_a_dataset_is_collated(tmp_path: Path) -> None:
    same = PAIRS.split("class Pairs")[0].replace("Pairs()", "(WORDS, AGE, LABELS)")
    found, expected = (load(tmp_path, code) for code in (PAIRS, same))
    x = expected.initial()
    assert np.array_equal(found.oracle(1).full_gradient(x), expected.oracle(1).full_gradient(x))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (DICT.replace('"labels"', '"classes"'), "the samples have no targets"),
        (DICT.replace('"age": AGE', '"age": AGE[:7]'), "must have one row a sample, equally many"),
        (DICT.replace('"age": AGE', '"age": AGE / 0'), r"gave samples\['age'\] with .* must be finite"),
        (DICT.replace('batch["age"])\n', 'batch["ages"])\n'), "KeyError: 'ages'"),
        (DICT + "\n    def correct(self, output, target): return output", r"write correct\(module, batch\)"),
        (DICT.replace("mse_loss(", "(lambda a, b: ((a - b) ** 2).sum())("), "must be the mean"),
        (
            "    def train_data(self): return []\n    def loss(self, module, batch): return 0",
            "must have one row a sample",
        ),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, body: str, said: str) -> None:
    with pytest.raises(TaskError, match=said) as error:
        load(tmp_path, body, partition="label")
    assert "\n" not in str(error.value)
