"""Attacks called alone: given the honest vectors, what f attackers send."""

from typing import Any

import numpy as np
import pytest
import torch

from attacks.adaptive import Fang, MinMax, OptimalALIE
from attacks.attack import Attack
from attacks.classical import ALIE, FOE, IPM, BitFlip, Gaussian, LabelFlip, ShiftBack, Silence, default_z
from strategies.aggregators import Mean, TrimmedMean

HONEST = np.random.default_rng(2).standard_normal((7, 5))


def test_alie_sends_mean_minus_z_deviations_from_each_attacker() -> None:
    sent = ALIE().vectors(HONEST, f=3)
    wanted = HONEST.mean(axis=0) - default_z(10, 3) * HONEST.std(axis=0, ddof=1)
    np.testing.assert_allclose(sent, np.tile(wanted, (3, 1)))


def test_tensors_come_back_as_tensors_in_the_shape_of_a_list() -> None:
    layers = [torch.tensor(row, dtype=torch.float32).reshape(5, 1) for row in HONEST]
    sent = ALIE().vectors(layers, f=2)
    assert (sent.shape, sent.dtype) == ((2, 5, 1), torch.float32)
    wanted = ALIE().vectors(HONEST.astype(np.float32), f=2)
    np.testing.assert_array_equal(sent.reshape(2, 5).numpy(), wanted)


def test_attackers_that_start_from_their_own_vectors_take_them_or_the_honest_mean() -> None:
    own = HONEST[:2] + 1
    np.testing.assert_array_equal(BitFlip().vectors(HONEST, 2, own=own), -own)
    np.testing.assert_allclose(BitFlip().vectors(HONEST, 2), np.tile(-HONEST.mean(axis=0), (2, 1)))
    np.testing.assert_array_equal(LabelFlip().vectors(HONEST, 2, flipped=own), own)


def test_a_silent_attacker_sends_no_rows() -> None:
    assert Silence().vectors(HONEST, 2).shape == (0, 5)


def test_an_attack_that_fits_itself_to_the_rule_harms_it_more_than_one_that_does_not() -> None:
    def harm(attack: Attack) -> float:
        sent = attack.vectors(HONEST, 3, rule=TrimmedMean())
        crowd = np.concatenate([HONEST, sent])
        return float(np.linalg.norm(TrimmedMean()(crowd, 3) - HONEST.mean(axis=0)))

    assert harm(OptimalALIE()) > harm(ALIE())


def test_a_majority_shifts_back_by_model_and_step() -> None:
    x, x0 = HONEST[0], HONEST[1]
    np.testing.assert_allclose(ShiftBack(s=0.5).vectors(HONEST[:1], 2, x=x, x0=x0, gamma=0.1)[0], 5 * (x - x0))


def test_a_seed_gives_the_same_draws_to_all_attackers_of_equal_calls() -> None:
    first, second = (Gaussian().vectors(HONEST, 2, rng=4) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_attackers_that_differ_draw_each_for_itself() -> None:
    sent = ALIE(jitter=1.0).vectors(HONEST, 3, rng=4)
    np.testing.assert_allclose(sent.mean(axis=0), ALIE().vectors(HONEST, 3)[0])
    assert len(np.unique(sent[:, 0])) == 3
    np.testing.assert_array_equal(sent, ALIE(jitter=1.0).vectors(HONEST, 3, rng=4))
    assert len(np.unique(Fang().vectors(HONEST, 3, rng=4)[:, 0])) == 3


@pytest.mark.parametrize(
    ("attack", "given", "message"),
    [
        (Fang(), {}, "fang draws at random: pass rng"),
        (IPM(jitter=1.0), {}, "ipm draws at random: pass rng"),
        (Gaussian(), {}, "gaussian draws at random: pass rng"),
        (LabelFlip(), {}, "lf needs flipped: pass flipped="),
        (FOE(), {}, "foe needs rule: pass rule="),
        (ShiftBack(), {"f": 9}, "shb needs x: pass x="),
        (ShiftBack(), {"f": 9, "x": HONEST[0]}, "shb needs x0: pass x0="),
        (ShiftBack(s=1.0), {"f": 9, "x": HONEST[0], "x0": HONEST[0]}, "shb needs gamma: pass gamma="),
        (IPM(), {"f": 0}, "f = 0: must be at least 1"),
        (IPM(), {"f": 1.5}, "f = 1.5: must be a whole number"),
        (BitFlip(), {"own": HONEST[:3]}, r"own of shape \(3, 5\): must be \(2, 5\), f rows"),
        (MinMax(), {"honest": HONEST[0]}, r"rows of shape \(5,\): must be a matrix"),
        (ALIE(), {"honest": HONEST[:1], "f": 4}, r".*"),
    ],
)
def test_what_is_missing_or_wrong_is_named_in_one_line(attack: Attack, given: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"honest": HONEST, "f": 2} | given
    with pytest.raises(ValueError, match=f"^{message}") as error:
        attack.vectors(**arguments)
    assert "\n" not in str(error.value)


def test_a_rule_that_takes_fewer_defends_against_as_many_as_it_can() -> None:
    sent = FOE().vectors(HONEST, 3, rule=Mean())
    assert np.isfinite(sent).all()
