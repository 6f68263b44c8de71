"""The partition on tiny data, answers by hand."""

import numpy as np
import pytest

from tasks.contract import TaskError
from tasks.partition import check_partition, concentration, draw, split

LABELS = np.array([1, 0, 1, 0, 2, 2])


def test_replicated_gives_every_worker_the_same_array_of_all_rows() -> None:
    parts = split("replicated", LABELS, workers=9, seed=0)
    assert len(parts) == 9
    assert all(part is parts[0] for part in parts)
    assert parts[0].tolist() == [0, 1, 2, 3, 4, 5]


def test_label_cuts_the_sorted_rows() -> None:
    assert [part.tolist() for part in split("label", LABELS, workers=3, seed=7)] == [[1, 3], [0, 2], [4, 5]]


def test_sizes_differ_by_one_and_the_first_workers_hold_more() -> None:
    for partition in ("iid", "label", "dirichlet(0.5)"):
        assert [len(part) for part in split(partition, LABELS, workers=4, seed=3)] == [2, 2, 1, 1]


def test_a_small_a_gives_workers_of_one_label_and_a_large_one_balanced_workers() -> None:
    labels = np.repeat(np.arange(10), 1000)
    largest = {
        partition: float(np.mean([np.bincount(labels[part]).max() / len(part) for part in parts]))
        for partition in ("dirichlet(0.01)", "dirichlet(1000)", "iid")
        for parts in [split(partition, labels, workers=10, seed=1)]
    }
    assert largest["dirichlet(0.01)"] > 0.7
    assert largest["dirichlet(1000)"] < 0.2
    assert largest["iid"] < 0.2


def test_another_seed_gives_another_partition() -> None:
    labels = np.arange(100) % 5
    for partition in ("iid", "label", "dirichlet(1)"):
        first, again, other = (np.concatenate(split(partition, labels, 3, seed)) for seed in (1, 1, 2))
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    "text",
    [
        *("", "IID", "random", "dirichlet", "dirichlet()", "dirichlet(0)", "dirichlet(-1)", "dirichlet(nan)"),
        *("dirichlet(x)", "dirichlet(inf)", "dirichlet(1", "dirichlet(1) ", "dirichlet(1e-999)"),
    ],
)
def test_a_string_that_names_no_partition_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match='must be "replicated", "iid", "label", "own" or "dirichlet') as error:
        check_partition(text)
    assert f'"{text}"' in str(error.value)


def test_the_concentration_is_read() -> None:
    assert concentration("dirichlet(0.5)") == 0.5
    assert concentration("dirichlet( 1e2 )") == 100


def test_more_workers_than_samples_is_refused_with_both_numbers() -> None:
    with pytest.raises(TaskError, match="6 samples for 7 workers"):
        split("iid", LABELS, workers=7, seed=0)
    with pytest.raises(TaskError, match="0 samples for 3 workers"):
        split("replicated", LABELS[:0], workers=3, seed=0)


def test_a_minibatch_is_drawn_without_replacement() -> None:
    rows = draw(10, 9, np.random.default_rng(0))
    assert len(set(rows.tolist())) == 9
    assert draw(3, 5, np.random.default_rng(0)).tolist() == [0, 1, 2]
