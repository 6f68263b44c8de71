"""Every aggregation rule and pre-aggregator beside a plain mean of the same array: time and memory.

The array holds n vectors of d float32; a part of them are outliers, each f-th of which is one kind of attack (a
thousand times too long, the others' negated mean, one number everywhere), so that no rule has an easy time with equal
rows. In every turn each rule and the plain mean ``rows.mean(axis=0)`` run once; what is compared is the best turn of
either. Also timed: NumPy's and torch's medians, and ByzFL's rules where the package ``byzfl`` is installed.

Memory is what a call allocates beyond the rows at its peak, in vectors of length d, by tracemalloc.

    python -m benchmarks.rules [--json FILE] [--quick] [--n N] [--d D ...] [--turns T] [--clean]
        [--only NAME ...]
"""

import importlib.util
import time
import tracemalloc
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from benchmarks.bench import Result, arguments, publish
from strategies import parallel
from strategies.aggregators import (
    Bulyan,
    CenteredClipping,
    ComparativeGradientElimination,
    CoordinateMedian,
    CovarianceFilter,
    DivideAndConquer,
    FLTrust,
    GeometricMedian,
    Krum,
    Mean,
    MeanAroundMedian,
    MinimumDiameterAveraging,
    MoNNA,
    MultiKrum,
    Rule,
    SignGuard,
    SmallestVarianceAveraging,
    TrimmedMean,
)
from strategies.aggregators.preaggregators import (
    AdaptiveRobustClipping,
    Bucketing,
    NearestNeighbourMixing,
    StaticClipping,
)
from strategies.aggregators.weighted_rows import prepare
from strategies.method import Rows
from strategies.weights import Masses

Call = Callable[[], object]

RULES: tuple[Rule, ...] = (
    Mean(),
    CoordinateMedian(),
    TrimmedMean(),
    MeanAroundMedian(),
    Krum(),
    MultiKrum(),
    Bulyan(),
    MinimumDiameterAveraging(),
    MoNNA(),
    GeometricMedian(),
    CenteredClipping(),
    CovarianceFilter(),
    SmallestVarianceAveraging(),
    DivideAndConquer(),
    SignGuard(),
    ComparativeGradientElimination(),
    FLTrust(),
    Mean(pre=(NearestNeighbourMixing(),)),
    CoordinateMedian(pre=(NearestNeighbourMixing(),)),
    Krum(pre=(NearestNeighbourMixing(),)),
    CoordinateMedian(pre=(Bucketing(s=2),)),
    CoordinateMedian(pre=(StaticClipping(c=100.0),)),
    CoordinateMedian(pre=(AdaptiveRobustClipping(),)),
)
WEIGHTED: tuple[Rule, ...] = (
    Mean(),
    CoordinateMedian(),
    TrimmedMean(),
    GeometricMedian(),
    CenteredClipping(),
    CoordinateMedian(pre=(NearestNeighbourMixing(),)),
)
PEER = "rows.mean(axis=0)"


def array(n: int, d: int, outliers: int) -> Rows:
    """Return n rows of d standard normal numbers, the first ``outliers`` of them attacks."""
    rng = np.random.default_rng([n, d])
    rows = np.empty((n, d), np.float32)
    for row in rows:
        rng.standard_normal(out=row, dtype=np.float32)
    for i in range(outliers):
        if i % 3 == 0:
            rows[i] *= 1e3
        elif i % 3 == 1:
            rows[i] = -rows[outliers:].mean(axis=0)
        else:
            rows[i] = -1e3
    return rows


def weights(n: int) -> Masses:
    """Return weights from 1 to 5, as those of large and small parties."""
    return np.random.default_rng(n).integers(1, 6, n)


def calls(rows: Rows, f: int) -> dict[str, Call]:
    """Return what is timed, by name: our rules and their peers."""
    n = len(rows)

    def ours(rule: Rule, mass: Masses | None = None) -> Call:
        most = min(f, rule.tolerates(n))
        while mass is not None and not rule.withstands(mass, most):
            most -= 1
        root = rows[-1] if rule.needs_root else None
        return lambda: rule.weigh(rows, most, np.random.default_rng(0), root, mass)

    found: dict[str, Call] = {}
    for rule in RULES:
        if rule.tolerates(n) >= 0:
            found[" after ".join([rule.kind, *(step.kind for step in rule.pre)])] = ours(rule)
    for rule in WEIGHTED:
        found[" after ".join([f"weighted {rule.kind}", *(step.kind for step in rule.pre)])] = ours(rule, weights(n))
    found["numpy.median"] = lambda: np.median(rows, axis=0)
    if importlib.util.find_spec("torch"):
        import torch

        tensor = torch.from_numpy(rows)
        found["torch.median"] = lambda: tensor.median(dim=0)
        found["torch.mean"] = lambda: tensor.mean(dim=0)
    return found | byzfl_calls(rows, f)


def byzfl_calls(rows: Rows, f: int) -> dict[str, Call]:
    """Return ByzFL's rules on the same array, if it is installed; else say that they are skipped."""
    try:
        import byzfl
    except ImportError as error:  # it is not there, or something that it imports is not
        print(f"byzfl cannot be imported: its rules are skipped ({error})")
        return {}
    peers: dict[str, Any] = {
        "Median": byzfl.Median(),
        "TrMean": byzfl.TrMean(f=f),
        "Meamed": byzfl.Meamed(f=f),
        "Krum": byzfl.Krum(f=f),
        "MultiKrum": byzfl.MultiKrum(f=f),
        "GeometricMedian": byzfl.GeometricMedian(nu=0.1, T=8),
        "CenteredClipping": byzfl.CenteredClipping(L=3),
        "NNM": byzfl.NNM(f=f),
    }
    return {f"byzfl.{name}": partial(peer, rows) for name, peer in peers.items()}


def memory(call: Call) -> int:
    """Return the most bytes that are allocated at one time during a call."""
    tracemalloc.start()
    call()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def measure(n: int, d: int, f: int, outliers: int, turns: int, only: Sequence[str] = ()) -> list[Result]:
    """Time everything, or what ``only`` names, on one array, in turns, and print it."""
    rows = array(n, d, outliers)
    timed = {name: call for name, call in calls(rows, f).items() if not only or name in only}
    for call in timed.values():
        call()  # loads what it needs
    best = dict.fromkeys(timed, np.inf)
    plain = np.inf
    for _ in range(turns):
        for name, call in timed.items():
            for _ in range(2):  # the mean twice as well: it is the measure of all
                began = time.perf_counter()
                rows.mean(axis=0)
                plain = min(plain, time.perf_counter() - began)
            began = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - began)
    what = f"{outliers} outliers" if outliers else "no outliers"
    print(f"\nn = {n}, d = {d:,}, float32, f = {f}, {what}; {PEER} takes {1e3 * plain:.2f} ms")
    print(f"{'':24}{'ms':>9}{'x mean':>9}{'extra memory, in d floats':>28}")
    results = []
    for name, seconds in best.items():
        extra = memory(timed[name]) / rows[0].nbytes
        print(f"{name:24}{1e3 * seconds:9.2f}{seconds / plain:9.2f}{extra:28.2f}")
        label = f"{name}, n = {n}, d = {d}, {what}"
        results.append(
            Result(name=label, value=1e3 * seconds, unit="ms", peer=PEER, peer_value=1e3 * plain, ratio=plain / seconds)
        )
    return results


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--n", type=int, default=20, help="rows (default: %(default)s)")
    parser.add_argument("--d", type=int, nargs="+", default=[1_000_000, 11_000_000], help="their length")
    parser.add_argument("--turns", type=int, default=7, help="times that each is run (default: %(default)s)")
    parser.add_argument("--clean", action="store_true", help="no outliers: distances tell nothing, the hardest for nnm")
    parser.add_argument("--only", nargs="+", default=(), metavar="NAME", help="these alone, as the table names them")
    options = parser.parse_args()
    f = options.n // 4
    print(f"kernels ready after {prepare(np.dtype(np.float32), weighted=True):.1f} s; {parallel.threads()} threads")
    results: list[Result] = []
    for d in options.d[:1] if options.quick else options.d:
        for outliers in (0,) if options.clean else (f, 0):
            results += measure(options.n, d, f, outliers, 3 if options.quick else options.turns, options.only)
    if options.json:
        publish(results, options.json)


if __name__ == "__main__":
    main()
