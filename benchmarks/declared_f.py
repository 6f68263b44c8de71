"""What over- and under-estimating f costs: the f that the server declares against the number of clients that attack.

Robust SGD with worker momentum, 20 clients in one process, minibatches of 32; on a9a whose rows are split at random,
and on phishing, where clients have unlike shares of the two labels. The server's rule defends against ``declared``
clients; 3 or 5 attack, and the objective is over the others' data. An experiment file cannot say this, as there the f
of the config attack. Every finished run is a row of ``runs.csv``, and a second start continues there; ``table.md`` and
a figure for each data set are made anew from all rows.

    python -m benchmarks.declared_f --data DIR [--out DIR] [--rounds N] [--seeds N] [--minutes M]
"""

import argparse
import csv
import io
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from itertools import product
from pathlib import Path
from statistics import median

from deploy.inprocess import grid_of
from experiment.config import changed, load, resolve
from experiment.opened import Experiment, open_experiment
from foundation.files import replace_text
from server.monitor.exporters import Monitoring
from server.run import run as run_server
from server.run_folder.reader import read_rounds
from server.run_folder.writer import RunFolder

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "declared-f"
RULES = {
    "cm": ["aggregator.kind=cm"],
    "rfa": ["aggregator.kind=rfa"],
    "krum": ["aggregator.kind=krum"],
    "nnm + cwtm": ["aggregator.kind=cwtm", 'aggregator.pre=["nnm"]'],
    "cge": ["aggregator.kind=cge"],
}
ATTACKS = {
    "none": [],
    "alie": ["attack.kind=alie", "attack.z=1.06", "attack.view=omniscient"],
    "bf": ["attack.kind=bf"],
    "foe": ["attack.kind=foe", "attack.eps=10.0", "attack.view=omniscient"],
}
DATA = {
    "a9a": ["task.data=libsvm/a9a.gz", "task.partition=iid"],
    "phishing": ["task.data=libsvm/phishing.gz", "task.partition=dirichlet(1)"],
}
TRUE, DECLARED = (3, 5), (0, 1, 3, 5, 8)
BLIND = ("cm", "rfa")
"""Rules that do the same whatever f is: two values of it show that."""
BASE = [
    *("strategy.kind=robust-momentum-sgd", "strategy.gamma=1.0/L", "strategy.batch=32"),
    *("strategy.beta=0.9", "compressor.kind=identity", "evaluation.every=10"),
]
COLUMNS = ("data", "rule", "attack", "true", "declared", "seed", "rounds", "gap", "accuracy")
Row = Mapping[str, str]


def measure(
    data: str, rule: str, attack: str, true: int, declared: int, seed: int, rounds: int, folder: Path
) -> dict[str, str]:
    """Run one federation; the gap is the median of the measurements in the last third of the run."""
    changes = [*BASE, f"strategy.rounds={rounds}", f"federation.byzantine={true}", f"federation.seed={seed}"]
    configs = ROOT / "deploy" / "configs"
    config = load(configs / "a9a.toml", [*changes, *DATA[data], *RULES[rule], "attack.kind=none", *ATTACKS[attack]])
    played = open_experiment(config.to_toml(), folder, configs)
    believed = changed(
        config, ["attack.kind=none", f"federation.byzantine={declared}", "federation.reveal_cohort=true"]
    )
    server = Experiment(resolve(believed, played.problem), played.problem, played.setting)
    with tempfile.TemporaryDirectory() as place, redirect_stdout(io.StringIO()):
        with RunFolder(Path(place) / "run", None) as written:
            run_server(server, written, grid_of(played), Monitoring(), incarnation=1)
        measured = [record.evaluation for record in read_rounds(Path(place) / "run") if record.evaluation]
    late = measured[-(len(measured) // 3) :]
    gap = median(each.gap for each in late if each.gap is not None)
    accuracy = median(each.accuracy for each in late if each.accuracy is not None)
    shown = (data, rule, attack, true, declared, seed, rounds, f"{gap:.4g}", f"{accuracy:.4f}")
    return dict(zip(COLUMNS, map(str, shown), strict=True))


def cases(seeds: int) -> Iterator[tuple[str, str, str, int, int, int]]:
    """Yield (data, rule, attack, true, declared, seed), all of one seed first."""
    for seed, data, declared in product(range(1, seeds + 1), DATA, DECLARED):
        for true, rule, attack in product(TRUE, RULES, ATTACKS):
            once = attack == "none" and true != TRUE[0]
            if not once and (rule not in BLIND or declared in (DECLARED[0], DECLARED[-1])):
                yield data, rule, attack, true, declared, seed


def medians(rows: Sequence[Row], rule: str, attack: str, true: int) -> dict[int, float]:
    """Return the median gap over the seeds by declared f."""
    found: dict[int, list[float]] = {}
    for row in rows:
        if (row["rule"], row["attack"], row["true"]) == (rule, attack, str(true)):
            found.setdefault(int(row["declared"]), []).append(float(row["gap"]))
    return {f: median(gaps) for f, gaps in sorted(found.items())}


def table(rows: Sequence[Row]) -> str:
    """Return the gaps as Markdown: a row for each rule, attack and number of attackers, a column for each f."""
    lines = []
    for data in DATA:
        heads = " | ".join(f"f = {f}" for f in DECLARED)
        lines += [f"| {data} | attack | attackers | {heads} |", "|---" * (3 + len(DECLARED)) + "|"]
        for rule, true, attack in product(RULES, TRUE, ATTACKS):
            gaps = medians([row for row in rows if row["data"] == data], rule, attack, true)
            cells = [f"{gaps[f]:.2g}" if f in gaps else "" for f in DECLARED]
            if gaps:
                lines.append(f"| {rule} | {attack} | {0 if attack == 'none' else true} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw the gap against the declared f: a panel for each attack and number of attackers, a line for each rule."""
    from matplotlib.figure import Figure

    attacks = [attack for attack in ATTACKS if attack != "none"]
    figure = Figure(figsize=(4 * len(attacks), 3 * len(TRUE)), layout="constrained")
    panels = figure.subplots(len(TRUE), len(attacks), sharex=True, sharey=True)
    for (true, attack), axes in zip(product(TRUE, attacks), panels.flat, strict=True):
        for rule, marker in zip(RULES, "osd^v", strict=True):
            gaps = medians(rows, rule, attack, true)
            axes.plot(list(gaps), list(gaps.values()), marker=marker, label=rule)
        axes.axvline(true, color="grey", linestyle=":")
        axes.set(title=f"{attack}, {true} attack", yscale="log")
    for axes in panels[-1]:
        axes.set_xlabel("declared f")
    for axes in panels[:, 0]:
        axes.set_ylabel("f(x) - f*")
    panels[0][0].legend(fontsize="small")
    figure.savefig(path, dpi=100)


def main() -> None:
    """Run what is missing, and make table and figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with libsvm/a9a.gz and phishing.gz")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of runs.csv, table and figure")
    parser.add_argument("--rounds", type=int, default=120, help="rounds of a run")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 1 to N")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no run after this many")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    runs, end = options.out / "runs.csv", time.monotonic() + 60 * options.minutes
    logging.disable(logging.WARNING)  # rounds that a rule cannot take are the subject
    rows: list[Row] = list(csv.DictReader(runs.read_text().splitlines())) if runs.exists() else []
    known = {tuple(row[key] for key in COLUMNS[:7]) for row in rows}
    with runs.open("a") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if not rows:
            writer.writeheader()
        for case in cases(options.seeds):
            if (*map(str, case), str(options.rounds)) in known or time.monotonic() > end:
                continue
            row = measure(*case, options.rounds, options.data)
            writer.writerow(row)
            file.flush()
            rows.append(row)
            print(" ".join(row.values()), flush=True)
    rows = [row for row in rows if int(row["rounds"]) == options.rounds]
    replace_text(options.out / "table.md", table(rows))
    for data in {row["data"] for row in rows}:
        draw([row for row in rows if row["data"] == data], options.out / f"declared-f-{data}.png")


if __name__ == "__main__":
    main()
