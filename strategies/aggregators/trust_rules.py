"""The rule that trusts a row of the server's own, computed on data that the server has: fltrust."""

from dataclasses import dataclass
from math import frexp, isfinite, ldexp
from typing import ClassVar, Literal

import numpy as np

from strategies.aggregators.rule import Rule
from strategies.aggregators.weighted_rows import Array, WeightedRows
from strategies.method import Vector
from strategies.vectors import norm


@dataclass(frozen=True, kw_only=True)
class FLTrust(Rule):
    """FLTrust: rows count by their cosine to the server's own row v_0, and are brought to its length.

    With the trust ts_i = max(0, <v_i, v_0> / (||v_i|| ||v_0||)), 0 for v_i = 0:

        result = sum_i ts_i (||v_0|| / ||v_i||) v_i / sum_i ts_i

    and 0 where v_0 = 0 or all ts_i = 0. In Python v_0 is given as ``center``. It is never longer than v_0, and never
    points against it, so any number of Byzantine rows does bounded harm, and the rule needs no f. The price is that of
    v_0: near the optimum it is the sampling error of the server's data, every row is stretched to its length, and the
    run stalls there. With declared weights ts_i is multiplied by the weight of its row.

    It is for rows that are gradients, momenta or model deltas. It does not withstand a shift of all rows.

    Source:
        Cao, Fang, Liu, Gong: FLTrust: Byzantine-robust federated learning via trust bootstrapping (NDSS 2021),
        Algorithm 2.
    """

    needs_root: ClassVar[bool] = True
    takes_weights: ClassVar[bool] = True
    uses_f: ClassVar[bool] = False
    kind: Literal["fltrust"] = "fltrust"

    def limit(self, n: int) -> int:
        """Return n: the bound is the length of v_0, whatever f is."""
        return n

    def aggregate(self, rows: WeightedRows, f: int, center: Vector | None) -> Vector:
        """Return the mean of the rows of length ||v_0||, each by its trust; ``center`` is v_0."""
        if center is None:
            raise ValueError("fltrust needs the server's own row: pass it as center=")
        with np.errstate(invalid="ignore"):
            length, unit = norm(center), 1.0
        coefficients: Array = np.zeros(len(rows))
        total = 0.0
        if length > 0.0 and isfinite(length):
            rows, units = _directions(rows)
            if units.min() != 1.0 or units.max() != 1.0 or not 1e-100 < length < 1e100:
                unit = ldexp(0.5, frexp(length)[1])
                length, center = length / unit, center / center.dtype.type(unit)
            lengths, products = rows.towards(center)
            with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
                stretch = length / lengths
                known = np.isfinite(stretch / units)  # others are 0, or nothing beside v_0
                trust: Array = np.where(known, np.clip(products / lengths / length, 0.0, 1.0), 0.0) * rows.counts
            coefficients = trust * np.where(known, stretch, 0.0)
            total = float(trust.sum())
        if not total > 0.0:
            rows.note(np.zeros(len(rows)))
            return np.zeros(rows.rows.shape[1], rows.dtype)
        rows.taken.unit = unit
        result = rows.combine(coefficients, total)
        return result if unit == 1.0 else result * rows.dtype.type(unit)


def _directions(rows: WeightedRows) -> tuple[WeightedRows, Array]:
    """Return rows whose squares stay within float64, with the same directions, and what each was divided by."""
    units = np.ones(len(rows))
    if rows.dtype == np.float32:
        return rows, units
    peaks = rows.peaks()
    if peaks[peaks > 0.0].min(initial=1.0) > 1e-100 and peaks.max() < 1e100:
        return rows, units
    units = np.maximum(peaks, 1e-300)
    return rows.mixed(np.eye(len(rows)), units), units
