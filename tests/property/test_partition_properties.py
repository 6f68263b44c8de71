"""What holds for every partition: equal, disjoint, complete, repeatable."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tasks.partition import draw, split

LABELS = st.lists(st.integers(0, 5), min_size=1, max_size=60).map(lambda labels: np.array(labels))
SPLITS = st.one_of(
    st.sampled_from(["iid", "label"]),
    st.floats(1e-300, 1e300).map(lambda a: f"dirichlet({a!r})"),
)


@given(labels=LABELS, partition=SPLITS, share=st.floats(0.01, 1), seed=st.integers(0, 2**32))
def test_parts_are_disjoint_complete_ascending_and_of_equal_size(
    labels: NDArray[np.int64], partition: str, share: float, seed: int
) -> None:
    workers = max(1, int(share * len(labels)))
    parts = split(partition, labels, workers, seed)
    assert len(parts) == workers
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert all(np.all(np.diff(part) > 0) for part in parts)


@given(labels=LABELS, partition=SPLITS, seed=st.integers(0, 2**32))
def test_the_same_seed_gives_the_same_parts(labels: NDArray[np.int64], partition: str, seed: int) -> None:
    workers = (len(labels) + 1) // 2
    for first, again in zip(
        split(partition, labels, workers, seed), split(partition, labels, workers, seed), strict=True
    ):
        assert np.array_equal(first, again)


@given(labels=LABELS, workers=st.integers(1, 60), seed=st.integers(0, 2**32))
def test_by_label_no_worker_holds_a_label_below_the_one_before(
    labels: NDArray[np.int64], workers: int, seed: int
) -> None:
    parts = split("label", labels, min(workers, len(labels)), seed)
    for before, after in pairwise(parts):
        assert labels[before].max() <= labels[after].min()


@given(samples=st.integers(1, 200), batch=st.integers(1, 250), seed=st.integers(0, 2**32))
def test_a_minibatch_holds_distinct_samples(samples: int, batch: int, seed: int) -> None:
    rows = draw(samples, batch, np.random.default_rng(seed))
    assert len(np.unique(rows)) == len(rows) == min(batch, samples)
    assert rows.min() >= 0
    assert rows.max() < samples
