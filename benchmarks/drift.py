"""Would drift find attackers that `breakwater suspects` misses? A trial of evidence that runs do not keep.

A client's drift is how far the directions of its differences from the cohort's median add up over a run,
||sum_k u_k||^2 / K - 1 with u_k the difference of round k, scaled to length 1: 0 where they are independent. An honest
client's data differ a little from the others', always in the same way, so its drift is high. Attackers with jitter add
new noise in every round: theirs is low. Clients are ranked by it, the lowest first. It needs a vector for each client
at the server.

    python -m benchmarks.drift [--seeds N] [--rounds N]
"""

import argparse
from collections.abc import Sequence
from unittest.mock import patch

import numpy as np
from numpy.random import Generator

import strategies.estimates
import strategies.method
from benchmarks.suspects import CONFIGS, FEDERATIONS, run
from experiment.config import load
from strategies.evidence import Evidence, examine
from strategies.operators import Combined

ATTACKS = ("alie, jitter 1", "shb, jitter 1", "ipm, jitter 1", "fang", "bf")


class Drift:
    """The sums of a run."""

    def __init__(self) -> None:
        self._sums: dict[int, tuple[np.ndarray, int]] = {}

    def examine(self, workers: Sequence[int], combined: Combined, rng: Generator) -> Evidence | None:
        """Note the rows of a round, and return its evidence."""
        if combined.rows is not None and len(combined.rows) > 3:
            rows = combined.rows.astype(np.float64)
            for worker, away in zip(workers, rows - np.median(rows, axis=0), strict=True):
                length = float(np.linalg.norm(away))
                if 0 < length < np.inf:
                    total, count = self._sums.get(worker, (np.zeros(len(away)), 0))
                    self._sums[worker] = total + away / length, count + 1
        return examine(workers, combined, rng)

    def of_each(self) -> dict[int, float]:
        """Return the drift by worker."""
        return {worker: float(total @ total) / count - 1 for worker, (total, count) in sorted(self._sums.items())}


def measured(config: str, attack: str, seed: int, rounds: int) -> dict[int, float]:
    """Return the drift of every client of a run."""
    drift = Drift()
    with (
        patch.object(strategies.method, "examine", drift.examine),
        patch.object(strategies.estimates, "examine", drift.examine),
    ):
        run(config, attack, seed, rounds)
    return drift.of_each()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="how many seeds (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=300, metavar="N", help="rounds of a run (default: %(default)s)")
    options = parser.parse_args()
    for title, config in FEDERATIONS.items():
        federation = load(CONFIGS / config).federation
        n, f = federation.clients, federation.byzantine
        for attack in ATTACKS:
            found, attackers, honest = 0, [], []
            for seed in range(1, 1 + options.seeds):
                drift = measured(config, attack, seed, options.rounds)
                ranked = sorted(drift, key=lambda worker: drift[worker])
                found += sum(worker >= n - f for worker in ranked[:f])
                attackers += [value for worker, value in drift.items() if worker >= n - f]
                honest += [value for worker, value in drift.items() if worker < n - f]
            figures = (
                f"drift {min(attackers):.1f} to {max(attackers):.1f}, honest {min(honest):.1f} to {max(honest):.1f}"
            )
            print(f"{title}, {attack}: {found} of {f * options.seeds} first; {figures}", flush=True)


if __name__ == "__main__":
    main()
