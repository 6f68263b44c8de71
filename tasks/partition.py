"""Who holds which data: splits the rows of a training set among the workers.

Five ways, named by a string in the config:

================  ==================================================================================================
``replicated``    every worker holds all rows ("homogeneous" in the papers)
``iid``           a random split
``label``         rows sorted by label and cut into contiguous shards: worker 0 holds the first labels, the last
                  worker the last ones, and each sees few labels
``dirichlet(a)``  each worker draws its label proportions ~ Dir(a, ..., a) and fills its quota by them: small a,
                  skewed workers; large a, nearly iid
``own``           each client has data of its own, from its own folder, and nobody has all rows: nothing is split here
================  ==================================================================================================

``iid``, ``label`` and ``dirichlet(a)`` give disjoint parts that cover the data, of equal size up to one sample, so that
the mean of the workers' losses weighs every sample alike.
"""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from strategies.method import Evaluation, Vector
from strategies.randomness import Role, stream
from tasks.contract import Setting, TaskError, mean_samples

Indices = NDArray[np.int64]
"""Row numbers, ascending."""

OWN = "own"
"""Each client has data of its own."""
ALLOWED = '"replicated", "iid", "label", "own" or "dirichlet(a)" with a number a > 0'


class LocalLoss(Protocol):
    """A worker's loss on its own samples."""

    def value(self, x: Vector) -> float:
        """Return f_i(x)."""

    def accuracy(self, x: Vector) -> float | None:
        """Return the share of the samples that are predicted rightly; None where the task has no such measure."""


_Local = TypeVar("_Local", bound=LocalLoss, covariant=True)


class Partitioned(ABC, Generic[_Local]):
    """What problems share whose training rows are split among the workers.

    Args:
        parts: the rows of each worker.
        honest: |G|; workers from that number on are no part of the objective.
    """

    def __init__(self, parts: Sequence[Indices], honest: int) -> None:
        self.parts, self.honest = parts, honest
        self._local = cache(self._oracle_of)
        self._root: int | None = None

    def keeping(self, rows: Indices | None) -> Self:
        """Return this problem, whose server keeps these training rows to itself; None for none."""
        if rows is not None:
            self._root = len(self.parts)
            self.parts = [*self.parts, rows]
        return self

    @property
    def has_root_data(self) -> bool:
        """Whether the server keeps rows to itself."""
        return self._root is not None

    def root(self) -> _Local:
        """Return the oracle of the rows that the server keeps to itself.

        Raises:
            TaskError: there are none.
        """
        if self._root is None:
            raise TaskError("the server keeps no training rows")
        return self.oracle(self._root)

    @property
    def samples(self) -> int:
        """m, the (mean) number of samples of an honest worker."""
        return mean_samples(self.parts, self.honest)

    @property
    def smoothness(self) -> float | None:
        """L, where the task knows it."""
        return None

    @property
    def optimum(self) -> float | None:
        """f*, where the task knows it."""
        return None

    @property
    def replicated(self) -> bool:
        """Whether every worker holds all rows."""
        return self.parts[self.honest - 1] is self.parts[0]

    def oracle(self, worker: int, *, flipped: bool = False) -> _Local:
        """Return one worker's oracle; the same object each time, so that equal data share memory and cache.

        Args:
            worker: 0 .. n-1.
            flipped: on flipped labels, for an attacker.
        """
        return self._local(0 if self.parts[worker] is self.parts[0] else worker, flipped)

    def measure(self, worker: int, x: Vector) -> Evaluation:
        """Measure the model on a worker's part of the training data: nothing is kept back of data that all share."""
        local = self.oracle(worker)
        return Evaluation(local.value(x), local.accuracy(x))

    def kept_back(self, worker: int) -> int:
        """Return how many samples ``measure`` uses."""
        return len(self.parts[worker])

    @abstractmethod
    def _oracle_of(self, worker: int, flipped: bool) -> _Local:
        """Return a new oracle."""


def check_partition(text: str) -> None:
    """Refuse a string that names no partition.

    Raises:
        ValueError: with the value and what is allowed.
    """
    if text not in ("replicated", "iid", "label", OWN):
        concentration(text)


def concentration(text: str) -> float:
    """Return a of ``"dirichlet(a)"``.

    Raises:
        ValueError: the string is of another form, or a is not a finite number above 0.
    """
    a = math.nan
    if match := re.fullmatch(r"dirichlet\(\s*([^()\s]+)\s*\)", text):
        with suppress(ValueError):
            a = float(match[1])
    if not 0 < a < math.inf:
        raise ValueError(f'partition = "{text}": must be {ALLOWED}')
    return a


def split(partition: str, labels: NDArray[np.generic], workers: int, seed: int) -> list[Indices]:
    """Split rows 0 .. m-1 among the workers; the same arguments give the same parts on every machine.

    Args:
        partition: one of the strings above.
        labels: shape (m,), the label of each row; any sortable type.
        workers: n, how many parts.
        seed: the run's seed.

    Returns:
        n arrays of row numbers, each ascending. ``replicated``: n times the same array.

    Raises:
        ValueError: ``partition`` names no partition, or "own".
        TaskError: fewer rows than workers; Dirichlet over labels that are no whole numbers.

    Source: Dirichlet label skew: Hsu, Qi, Brown 2019 (arXiv 1909.06335); here with equal quotas.
    """
    check_partition(partition)
    if partition == OWN:
        raise ValueError(f'partition = "{OWN}": nothing is split, as each client has data of its own')
    samples = len(labels)
    if samples < (1 if partition == "replicated" else workers):
        fix = 'use fewer clients, more data or partition = "replicated"'
        raise TaskError(f'{samples} samples for {workers} workers: "{partition}" needs at least one each; {fix}')
    if partition == "replicated":
        return [np.arange(samples)] * workers

    rng = stream(seed, Role.PARTITION)
    quotas = np.full(workers, samples // workers)
    quotas[: samples % workers] += 1
    shuffled = rng.permutation(samples)
    if partition not in ("iid", "label"):
        return _dirichlet(partition, labels, shuffled, quotas, rng)
    # Which rows of a label: at random.
    order = shuffled if partition == "iid" else shuffled[np.argsort(labels[shuffled], kind="stable")]
    return [np.sort(part) for part in np.split(order, np.cumsum(quotas)[:-1])]


def share_out(partition: str, labels: NDArray[np.generic], setting: Setting) -> tuple[list[Indices], Indices | None]:
    """Split rows among the workers, after those that the server keeps to itself.

    Args:
        partition: see ``split``.
        labels: see ``split``.
        setting: of the federation; ``setting.root`` rows are kept, of each label its share.

    Returns:
        The parts of the workers, and the rows that are kept, ascending; None where none are.

    Raises:
        ValueError, TaskError: see ``split``; also where no rows are left.
    """
    if not setting.root:
        return split(partition, labels, setting.clients, setting.seed), None
    if setting.root >= len(labels):
        problem = f"{len(labels)} training samples in all, and the server keeps {setting.root} (root_samples)"
        raise TaskError(f"{problem}; lower federation.root_samples")
    # The best fit to the shares of the labels: rows in the order of their labels, at random among equal ones, evenly.
    order = stream(setting.seed, Role.ROOT).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    places = (np.arange(setting.root) * 2 + 1) * len(labels) // (2 * setting.root)
    kept = np.sort(order[places])
    rest = np.setdiff1d(np.arange(len(labels)), kept, assume_unique=True)
    parts = split(partition, labels[rest], setting.clients, setting.seed)
    if parts[-1] is parts[0]:
        return [rest[parts[0]]] * setting.clients, kept
    return [rest[part] for part in parts], kept


def _dirichlet(
    partition: str, labels: NDArray[np.generic], shuffled: Indices, quotas: Indices, rng: np.random.Generator
) -> list[Indices]:
    """Fill each worker's quota by its own label proportions ~ Dir(a, ..., a).

    Labels run out, so the last to choose take what is left: the workers choose in random order.
    """
    numbers: NDArray[Any] = labels
    if numbers.dtype.kind == "f" and (broken := numbers != np.round(numbers)).any():
        problem = f"needs classes, and the targets are not whole numbers, such as {numbers[broken][0]:g}"
        raise TaskError(f'partition = "{partition}" {problem}; use "iid", or "label", which sorts by them')
    pools = [shuffled[labels[shuffled] == label] for label in np.unique(labels)]
    sizes = np.array([len(pool) for pool in pools])
    left = sizes.copy()
    parts: list[Indices] = [np.empty(0, dtype=np.int64)] * len(quotas)
    for worker in rng.permutation(len(quotas)):
        proportions = rng.dirichlet(np.full(len(pools), concentration(partition)))
        taken = np.zeros_like(left)
        while (need := quotas[worker] - taken.sum()) > 0:
            weights = np.where(left > taken, proportions, 0.0)
            if not weights.sum() > 0:  # only labels of share 0 are left (a small a underflows): take them as they lie
                weights = (left - taken).astype(np.float64)
            # Each pass fills the quota or empties at least one label, so this ends.
            taken += np.minimum(rng.multinomial(need, weights / weights.sum()), left - taken)
        chosen = [pool[start : start + count] for pool, start, count in zip(pools, sizes - left, taken, strict=True)]
        parts[worker] = np.sort(np.concatenate(chosen))
        left -= taken
    return parts


def stratified(labels: NDArray[np.generic], share: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Choose that share of each label's samples at random; returns a mask of shape (m,)."""
    chosen = np.zeros(len(labels), dtype=np.bool_)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        chosen[rows[: round(share * len(rows))]] = True
    return chosen


def check_root(root: Sequence[NDArray[Any]], test: Sequence[NDArray[Any]]) -> None:
    """Refuse training data of the server's that are also in its test data.

    Args:
        root: arrays whose k-th rows are together one sample.
        test: the same of the test data.

    Raises:
        TaskError: some are; one line.
    """
    tested = {_sample(test, row) for row in range(len(test[0]))}
    same = sum(_sample(root, row) in tested for row in range(len(root[0])))
    if same:
        problem = f"{same} of the server's {len(root[0])} own training samples are in its test data too"
        raise TaskError(f"{problem}, which would then measure what it was trained on; take them out of one of the two")


def _sample(arrays: Sequence[NDArray[Any]], row: int) -> bytes:
    return b"|".join(np.ascontiguousarray(array[row]).tobytes() for array in arrays)


def kept_back(labels: NDArray[np.generic], share: float, seed: int) -> tuple[Indices, Indices]:
    """Split the rows of one party into those that it trains on and those that it keeps back to measure models.

    Of each label the same share is kept back, and at least one row is trained on. The same arguments give the same
    rows.

    Args:
        labels: of the party's rows, shape (m_i,); equal ones where there are no classes.
        share: of the rows that are kept back, in [0, 1).
        seed: the run's seed.

    Returns:
        Two arrays of row numbers, each ascending; the second is empty where nothing is kept back.
    """
    kept = stratified(labels, share, stream(seed, Role.PARTITION, worker=1))  # worker 0 splits shared data
    if kept.all():
        kept[0] = False
    return np.flatnonzero(~kept), np.flatnonzero(kept)


def draw(samples: int, batch: int, rng: np.random.Generator) -> Indices:
    """Draw a minibatch: min(b, m_i) of 0 .. m_i-1, uniformly WITHOUT replacement.

    Args:
        samples: m_i, how many samples the worker holds.
        batch: b, at least 1.
        rng: this worker's stream of this round.

    Returns:
        Shape (min(b, m_i),), in no particular order. All samples: ascending, and nothing is drawn.
    """
    return np.arange(samples) if batch >= samples else rng.choice(samples, batch, replace=False, shuffle=False)
