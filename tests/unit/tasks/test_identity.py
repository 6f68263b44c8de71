"""What processes compare of a task: differences are found and named, rounding is not one, and nothing raises."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.contract import Setting
from tasks.custom import CustomTask
from tasks.digits import DigitsTask
from tasks.identity import TaskIdentity, digest, identify
from tasks.logistic import LogisticTask

RNG = np.random.default_rng(0)
INPUTS, LABELS = RNG.normal(size=(500, 7)), np.where(RNG.random(500) < 0.5, -1.0, 1.0)


def told(inputs: Any = INPUTS, labels: Any = LABELS) -> TaskIdentity:
    return TaskIdentity(samples=str(len(labels)), data=digest([inputs, labels]))


def swapped(array: Any, i: int, j: int) -> Any:
    order = np.arange(len(array))
    order[[i, j]] = j, i
    return array[order]


def changed(array: Any, at: Any, value: float) -> Any:
    array = array.copy()
    array[at] = value
    return array


OTHER = {
    "labels swapped": told(labels=-LABELS),
    "one label": told(labels=changed(LABELS, 3, -LABELS[3])),
    "one value": told(changed(INPUTS, (4, 2), 9.0)),
    "two rows swapped": told(swapped(INPUTS, 1, 300)),
    "scaled": told(2 * INPUTS),
    "another type": told(INPUTS.astype(np.float32)),
    "labels as integers": told(labels=LABELS.astype(int)),
    "no number": told(changed(INPUTS, (4, 2), np.nan)),
}


@pytest.mark.parametrize("name", OTHER)
def test_other_data_are_a_difference(name: str) -> None:
    (said,) = OTHER[name].differences(told())
    assert said == "the training data differ: 500 rows both times, with other values or labels"


def test_another_number_of_rows_is_said() -> None:
    (said,) = told(INPUTS[:300], LABELS[:300]).differences(told())
    assert said == "the training data differ: 300 rows at the client, 500 at the server"


def test_rounding_is_no_difference_and_is_told() -> None:
    rounded = told(INPUTS * (1 + 1e-9 * RNG.normal(size=INPUTS.shape)))
    assert rounded.data != told().data
    assert rounded.differences(told()) == []
    assert rounded.roundings(told()) == ["the training data"]
    assert told().roundings(told()) == []


def test_integers_are_compared_exactly() -> None:
    pixels = RNG.integers(0, 256, (40, 9)).astype(np.uint8)
    assert told(changed(pixels, (0, 0), pixels[0, 0] ^ 1), LABELS[:40]).differences(told(pixels, LABELS[:40]))


def test_long_arrays_are_summed_in_parts() -> None:
    long = RNG.normal(size=4093 * 2048 + 5).astype(np.float32)
    late = changed(long, -1, 100.0)
    assert TaskIdentity(data=digest([late])).differences(TaskIdentity(data=digest([long])))


def test_without_the_sums_the_bits_decide() -> None:
    whole, bits = digest([INPUTS]), digest([INPUTS], sums=False)
    assert not TaskIdentity(data=bits).differences(TaskIdentity(data=whole))
    assert TaskIdentity(data=digest([INPUTS + 1e-12], sums=False)).differences(TaskIdentity(data=whole))


def test_each_field_has_its_words_and_an_unknown_one_is_not_compared() -> None:
    mine = TaskIdentity(dim="58", dtype="float64", samples="600", layout="a", files="task.py:1 net.py:2", data="d e f")
    for change, said in {
        "dim": "d = 67 at the client, 58 at the server",
        "dtype": "dtype float32 at the client, float64 at the server",
        "layout": "the model's parameters have other names or shapes",
        "files": "task file task.py differs",
        "frozen": "the model's frozen parameters or buffers have other values",
    }.items():
        value = {"dim": "67", "dtype": "float32", "files": "task.py:9 net.py:2"}.get(change, "x y z")
        theirs = replace(mine, frozen="p q r")
        assert replace(theirs, **{change: value}).differences(theirs) == [said]
        assert replace(theirs, **{change: ""}).differences(theirs) == []
    assert replace(mine, files="task.py:1").differences(mine) == ["task file net.py is used only at the server"]
    assert replace(mine, start="a b c").differences(replace(mine, start="d e f")) == []
    assert replace(mine, start="a b c").roundings(replace(mine, start="d e f")) == ["the initial model"]


FIELDS = st.sampled_from(["dim", "data", "files", "frozen", "start", "x"])
SAID = st.recursive(
    st.none() | st.text() | st.integers() | st.floats(),
    lambda inner: st.lists(inner) | st.dictionaries(FIELDS, inner, max_size=6),
    max_leaves=20,
)


@given(SAID, st.text())
def test_whatever_is_said_is_one_line_and_raises_nothing(said: object, text: str) -> None:
    mine = told()
    for line in (json.dumps(said), json.dumps({"data": text, "files": text, "dim": text, "samples": text}), text):
        theirs = TaskIdentity.parse(line)
        for found in (theirs.differences(mine), mine.differences(theirs), theirs.roundings(mine)):
            assert all(sentence.isprintable() and len(sentence) < 300 for sentence in found)


def test_what_is_written_is_read() -> None:
    mine = identify(DigitsTask().load(Setting(clients=3)))
    assert TaskIdentity.parse(mine.written()) == mine
    assert mine.dim == "2410"
    assert mine.samples == "1438"
    assert len(mine.written()) < 1000


def test_the_seed_changes_the_split_and_not_the_number_of_rows(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("+1 1:1 2:3\n-1 1:2\n+1 2:1\n-1 1:5 2:1\n", encoding="utf-8")
    spec = LogisticTask(data="t")
    one, two = (identify(spec.load(Setting(clients=2, seed=seed, data_dir=tmp_path))) for seed in (0, 1))
    assert one == two
    (tmp_path / "t").write_text("+1 1:1 2:3\n-1 1:2\n+1 2:1\n-1 1:5 2:2\n", encoding="utf-8")
    assert identify(spec.load(Setting(clients=2, data_dir=tmp_path))).differences(one)


POINTS = """
import numpy as np
from strategies.method import Evaluation
from far import SCALE


class Pull:
    dim = 2

    def full_gradient(self, x):
        return x * SCALE

    def minibatch_gradients(self, points, batch, rng):
        return [self.full_gradient(x) for x in points]


class Points:
    dim, samples, smoothness, optimum, dtype = 2, 60, None, None, np.dtype("float64")

    def __init__(self, word):
        self.word = word

    def initial(self):
        return np.zeros(2)

    def oracle(self, worker, *, flipped=False):
        return Pull()

    def evaluate(self, x):
        return Evaluation(float(SCALE * x @ x / 2), 1.0)

    def fingerprint(self):
        return self.word


class Own:
    def __init__(self, word):
        self.word = word

    def load(self, setting):
        return Points(self.word)
"""


def test_a_custom_task_is_known_by_its_files_and_its_fingerprint(tmp_path: Path) -> None:
    def there(name: str, scale: str, word: str) -> TaskIdentity:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "own.py").write_text(POINTS, encoding="utf-8")
        (folder / "far.py").write_bytes(f"SCALE = {scale}\n".encode())
        task = CustomTask(path="own.py:Own", options={"word": word})
        return identify(task.load(Setting(clients=2, config_dir=folder)))

    mine = there("mine", "1", "a")
    assert there("same", "1", "a") == mine
    assert there("dos", "1\r", "a") == mine  # line ends are the editor's affair
    assert there("sibling", "2", "a").differences(mine) == ["task file far.py differs"]
    assert there("word", "1", "b").differences(mine) == [
        "the training data differ: 60 rows both times, with other values or labels"
    ]
