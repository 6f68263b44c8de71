"""What a federation of four hospitals reaches: alone, pooled, federated, and with one of them attacking.

    python examples/hospitals/hospitals.py run runs/hospitals.csv --data DATA
    python examples/hospitals/hospitals.py table runs/hospitals.csv
    python examples/hospitals/hospitals.py figure runs/hospitals.csv runs/hospitals.png

``DATA/heart`` has a folder for each hospital with its table; README.md says how to get them. Each run is a federation
of ``study.toml`` in one process. Its model is measured on the quarter that all four hospitals keep back together, which
nobody trains on, whoever attacks. An interrupted ``run`` continues. All 20 splits take about 20 minutes of two cores.
"""

import argparse
import csv
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import minimize

import breakwater as bw
from breakwater.tasks import Setting

if TYPE_CHECKING:
    from breakwater.tasks import Vector

STUDY = Path(__file__).parent / "study.toml"
NAMES = ("cleveland", "hungarian", "switzerland", "va")
SHORT = {"cleveland": "Cleveland", "hungarian": "Budapest", "switzerland": "Zurich/Basel", "va": "Long Beach"}
PATIENTS = {"cleveland": 303, "hungarian": 294, "switzerland": 123, "va": 200}
"""Declared by the server, as weights are."""
COLUMNS = ("setting", "attack", "attacker", "split", "accuracy", *NAMES)
"""Of the results; accuracies in percent, of all hospitals' patients together and of each one's."""


@dataclass(frozen=True)
class Way:
    """A way to train the federation.

    Args:
        label: what a reader sees.
        overrides: changes to the study.
        power: weights of the hospitals are their numbers of patients to this power; 0 for none.
        attacks: under which it is run, by each hospital in turn.
    """

    label: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    power: float = 0.0
    attacks: Sequence[str] = ("bf", "lf")


def _rule(kind: str, **keys: Any) -> dict[str, Any]:
    return {f"aggregator.{key}": value for key, value in {"kind": kind, **keys}.items()}


_SGD = {"strategy.kind": "robust-sgd", "strategy.batch": 0}
_LOCAL = _SGD | {
    "strategy.kind": "local-sgd",
    "strategy.local_steps": 5,
    "strategy.local_gamma": 1.0,
    "strategy.gamma": 5.0,
}
WAYS = {
    "mean": Way("`mean`", _rule("mean")),
    "cm": Way("`cm` (with four rows: also `cwtm`)", _rule("cm")),
    "rfa": Way("`rfa`", _rule("rfa")),
    "centered-clip": Way("`centered-clip`, `tau = 0.1`", _rule("centered-clip", tau=0.1)),
    "clipped-mean": Way(
        "`mean` of rows clipped to their median length", _rule("mean", pre=[{"kind": "static-clip", "c": "median"}])
    ),
    "rfa-nnm": Way("`rfa` with `nnm`", _rule("rfa", pre=["nnm"])),
    "rfa-sqrt": Way("`rfa`, weights: roots of the sizes", _rule("rfa"), 0.5),
    "rfa-size": Way("`rfa`, weights: sizes", _rule("rfa"), 1.0),
    "mean-size": Way("`mean`, weights: sizes", _rule("mean"), 1.0, ()),
    "rfa-full": Way("`rfa`, full gradients (`robust-sgd`)", _SGD | _rule("rfa"), 0.0, ("bf",)),
    "rfa-local": Way("`rfa`, five local steps a round (`local-sgd`)", _LOCAL | _rule("rfa")),
    "rfa-l2": Way("`rfa`, `l2 = 0.1`", _rule("rfa") | {"task.l2": 0.1}, 0.0, ("bf",)),
    "rfa-long": Way("`rfa`, 200 rounds", _rule("rfa") | {"strategy.rounds": 200}, 0.0, ("bf",)),
}


@dataclass(frozen=True)
class Job:
    """One model: what it is called in the results, and for ``Way`` who attacks how."""

    setting: str
    attack: str
    attacker: str
    split: int


def jobs(splits: int, ways: Iterable[str]) -> Iterator[Job]:
    """Yield everything to compute, split by split."""
    for split in range(1, splits + 1):
        for name in NAMES:
            yield Job("alone", "", name, split)
        yield Job("pooled", "", "", split)
        for name in NAMES:
            yield Job("pooled", "left out", name, split)
        for way in ways:
            yield Job(way, "", "", split)
            for attack in WAYS[way].attacks:
                for name in NAMES:
                    yield Job(way, attack, name, split)


# --- the laboratory, which has all tables ---


@cache
def laboratory(data: Path, split: int) -> Any:
    """Return the task with all four tables: training rows and the quarters kept back of this split, scaled alike."""
    task: Any = bw.load_config(STUDY).task
    problem = task.load(Setting(clients=4, byzantine=1, seed=split, folders={i: data / n for i, n in enumerate(NAMES)}))
    problem.settle(problem.scaling_of({name: problem.statistics(i) for i, name in enumerate(NAMES)}, 1))
    return problem


def best(problem: Any, hospitals: Sequence[int]) -> "Vector":
    """Return the logistic regression on the training rows of some hospitals together, solved to optimality."""
    oracles = [problem.oracle(i) for i in hospitals]
    shares = np.array([problem.count(i) for i in hospitals], dtype=np.float64)
    shares /= shares.sum()
    found = minimize(
        lambda x: sum(w * each.value(x) for w, each in zip(shares, oracles, strict=True)),
        problem.initial(),
        jac=lambda x: sum(w * each.full_gradient(x) for w, each in zip(shares, oracles, strict=True)),
        method="L-BFGS-B",
        options={"maxiter": 10_000, "ftol": 1e-15, "gtol": 1e-9},
    )
    x: Vector = found.x
    return x


def measured(problem: Any, x: "Vector") -> list[float]:
    """Return the accuracy in percent on what all hospitals keep back together, and on each one's part of it."""
    each = [100 * problem.measure(i, x).accuracy for i in range(len(NAMES))]
    return [float(np.average(each, weights=[problem.kept_back(i) for i in range(len(NAMES))])), *each]


# --- one model ---


def trained(job: Job, data: Path, rounds: int | None) -> "Vector":
    """Return the model of a federation; the laboratory takes no part in it."""
    way = WAYS[job.setting]
    changes: dict[str, Any] = {
        "federation.seed": job.split,
        "checkpoint.every": 0,
        "evaluation.every": 1000,
        **way.overrides,
    }
    if rounds is not None:
        changes["strategy.rounds"] = rounds
    if way.power:
        changes["federation.weights"] = {name: round(count**way.power, 3) for name, count in PATIENTS.items()}
    if job.attack:
        changes["attack.kind"] = job.attack
    with tempfile.TemporaryDirectory() as folder:
        run = bw.run(
            STUDY,
            overrides=changes,
            out=Path(folder) / "run",
            data=data,
            attackers=[job.attacker] if job.attacker else [],
            processes=False,
            quiet=True,
            pictures=False,
        )
        model = bw.load_model(run.folder)
    own = laboratory(data, job.split).description()["scaling"]
    if {name: vars(column) for name, column in model.scaling.columns.items()} != own:
        raise RuntimeError("the federation agreed on another scaling than the laboratory")
    return model.x


def done(job: Job, data: Path, rounds: int | None = None) -> list[str]:
    """Compute one model; return its row of the results."""
    problem = laboratory(data, job.split)
    if job.setting in WAYS:
        x = trained(job, data, rounds)
    elif job.setting == "alone":
        x = best(problem, [NAMES.index(job.attacker)])
    else:
        x = best(problem, [i for i, name in enumerate(NAMES) if name != job.attacker])
    return [job.setting, job.attack, job.attacker, str(job.split), *(f"{each:.2f}" for each in measured(problem, x))]


def run(data: Path, out: Path, wanted: Sequence[Job], workers: int, rounds: int | None = None) -> None:
    """Compute what the results lack, and add it."""
    have = (
        {(row["setting"], row["attack"], row["attacker"], row["split"]) for row in read(out)} if out.exists() else set()
    )
    missing = [job for job in wanted if (job.setting, job.attack, job.attacker, str(job.split)) not in have]
    out.parent.mkdir(parents=True, exist_ok=True)
    compute = partial(done, data=data, rounds=rounds)
    with out.open("a", newline="", encoding="utf-8") as file, ExitStack() as stack:
        if workers > 1:
            pool = stack.enter_context(ProcessPoolExecutor(workers, get_context("spawn")))
        table = csv.writer(file, lineterminator="\n")
        if not have:
            table.writerow(COLUMNS)
        for number, row in enumerate((pool.map if workers > 1 else map)(compute, missing), 1):
            table.writerow(row)
            file.flush()
            print(f"\r{number} of {len(missing)}", end="", file=sys.stderr)
    print(file=sys.stderr)


def read(path: Path) -> list[dict[str, str]]:
    """Return the rows of the results."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# --- what the results say ---


class Results:
    """The results, by what they are of.

    Args:
        rows: of the CSV file.
    """

    def __init__(self, rows: Iterable[Mapping[str, str]]) -> None:
        self._found: dict[tuple[str, str, str], dict[int, Mapping[str, str]]] = {}
        for row in rows:
            key = row["setting"], row["attack"], row["attacker"]
            self._found.setdefault(key, {})[int(row["split"])] = row

    def ways(self) -> list[str]:
        """Return the ways to train that are there."""
        return [way for way in WAYS if (way, "", "") in self._found]

    def of(self, setting: str, attack: str = "", attacker: str = "", column: str = "accuracy") -> list[float]:
        """Return one accuracy by split; none where it was not computed."""
        rows = self._found.get((setting, attack, attacker), {})
        return [float(rows[split][column]) for split in sorted(rows)]

    def attacked(self, setting: str, attack: str) -> tuple[list[float], str, float] | None:
        """Return by split the mean over who attacks, the worst attacker for the whole, and the mean accuracy then."""
        each = {name: self.of(setting, attack, name) for name in NAMES}
        if not all(each.values()) or len({len(values) for values in each.values()}) > 1:
            return None
        worst = min(NAMES, key=lambda name: mean(each[name]))
        return [mean(split) for split in zip(*each.values(), strict=True)], worst, mean(each[worst])


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.1f} \N{PLUS-MINUS SIGN} {stdev(values):.1f}" if len(values) > 1 else f"{mean(values):.1f}"


def tables(results: Results) -> tuple[str, str]:
    """Return two tables in Markdown, of means and standard deviations over the splits.

    Returns:
        Where each model is how good; what attacks cost each way to train.
    """
    labels = [("alone", name, f"{SHORT[name]} alone") for name in NAMES]
    labels += [("pooled", "", "pooled"), *((way, "", WAYS[way].label) for way in results.ways()[:3])]
    lines = [f"| model | all patients | {' | '.join(SHORT.values())} |", "|---|---:|---:|---:|---:|---:|"]
    for setting, attacker, label in labels:
        each = [f"{mean(results.of(setting, '', attacker, name)):.1f}" for name in NAMES]
        lines.append(f"| {label} | {_spread(results.of(setting, '', attacker))} | {' | '.join(each)} |")
    first = "\n".join(lines)

    lines = [
        "| training | nobody attacks | `bf` | `bf`, worst | `lf` | `lf`, worst |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    left_out = results.attacked("pooled", "left out")
    if left_out is not None:
        cell = f"{_spread(left_out[0])} | {left_out[2]:.1f} ({SHORT[left_out[1]]})"
        lines.append(f"| pooled, without the attacker | {_spread(results.of('pooled'))} | {cell} | as `bf` | |")
    for way in results.ways():
        cells = [_spread(results.of(way))]
        for attack in ("bf", "lf"):
            found = results.attacked(way, attack)
            cells += ["", ""] if found is None else [_spread(found[0]), f"{found[2]:.1f} ({SHORT[found[1]]})"]
        lines.append(f"| {WAYS[way].label} | {' | '.join(cells)} |".replace("  ", " "))
    return first, "\n".join(lines)


def figure(results: Results, out: Path) -> None:
    """Draw the accuracy of each way to train: honest, and with each hospital attacking."""
    from matplotlib.figure import Figure

    ways = [way for way in results.ways() if results.attacked(way, "lf") is not None]
    canvas = Figure(figsize=(9.5, 0.4 * len(ways) + 1.7), layout="constrained")
    titles = {"bf": "one sends the opposite (bf)", "lf": "one trains on flipped labels (lf)"}
    colours = dict(zip(NAMES, ("#0072B2", "#E69F00", "#009E73", "#CC79A7"), strict=True))
    for axes, attack in zip(canvas.subplots(1, 2, sharey=True), titles, strict=True):
        axes.axvline(mean(results.of("pooled")), color="0.4", linestyle="--", label="pooled, all honest")
        for at, way in enumerate(ways):
            for name in NAMES:
                values = results.of(way, attack, name)
                label = f"{SHORT[name]} attacks" if at == 0 else None
                axes.plot(mean(values), at, "o", color=colours[name], label=label, markersize=7)
            honest = mean(results.of(way))
            axes.plot(honest, at, "|", color="black", markersize=15, label="nobody attacks" if at == 0 else None)
        axes.set(title=titles[attack], xlabel="accuracy on the common quarter (%)")
        axes.set_yticks(range(len(ways)), [WAYS[way].label.replace("`", "") for way in ways])
        axes.grid(axis="x", alpha=0.3)
    canvas.axes[0].invert_yaxis()
    canvas.legend(*canvas.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(out, dpi=120, metadata={"Software": None})


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(required=True, dest="command")
    command = commands.add_parser("run", help="train all models and measure them")
    command.add_argument("results", type=Path, help="a CSV file; what it has already is kept")
    command.add_argument("--data", type=Path, default=os.environ.get("BREAKWATER_DATA"), help="folder that has heart/")
    command.add_argument("--splits", type=int, default=20)
    command.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    command.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time")
    command.add_argument("--rounds", type=int, help="in place of the study's, for a trial")
    command = commands.add_parser("table", help="print tables of the results")
    command.add_argument("results", type=Path)
    command = commands.add_parser("figure", help="draw the results")
    command.add_argument("results", type=Path)
    command.add_argument("out", type=Path, help="a PNG")
    options = parser.parse_args(arguments)
    if options.command == "run":
        if options.data is None:
            parser.error("name the folder that has heart/ with --data, or set BREAKWATER_DATA")
        wanted = list(jobs(options.splits, options.ways))
        run(Path(options.data) / "heart", options.results, wanted, options.jobs, options.rounds)
    elif options.command == "table":
        print(*tables(Results(read(options.results))), sep="\n\n")
    else:
        figure(Results(read(options.results)), options.out)


if __name__ == "__main__":
    main()
