"""Seconds per round on Flower deployments, beside the live link: one SuperLink and four SuperNodes on loopback.

The same experiment each time, deploy/configs/flower.toml with all four clients in every round, and the median of what
metrics.jsonl says of its rounds. Flower is started from environments of its own, as the tests do it.

    python -m benchmarks.flower [--json FILE] [--rounds N] [--versions V ...] [--quick]
"""

import json
import statistics
import tempfile
from argparse import ArgumentParser
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.flower.environments import NEWEST, OLDEST
from tests.flower.harness import SETTINGS, Flower, copy_checkout
from tests.integration.processes import ROOT, Processes, free_address, rounds_of, sets

CONFIG = "deploy/configs/flower.toml"
LONG_S = 1800.0
"""A bound for the rounds of one row."""


@dataclass(frozen=True)
class Row:
    """One way to run the experiment.

    Args:
        way: what carries a round.
        version: of Flower; "" for none.
        rounds: how many were measured; the first one of a run is left out.
        round_s: their median.
    """

    way: str
    version: str
    rounds: int
    round_s: float


def median_of(way: str, version: str, out: Path) -> Row:
    """Return the row of a run that has ended."""
    seconds = [line["round_s"] for line in rounds_of(out)][1:]
    return Row(way, version, len(seconds), statistics.median(seconds))


def changes(rounds: int) -> list[str]:
    """Return the changes to the experiment for this many measured rounds."""
    return [f"strategy.rounds={rounds + 1}", "strategy.cohort=4", "evaluation.every=1000000"]


def on_flower(version: str, folder: Path, few: int, many: int) -> list[Row]:
    """Measure one Flower version: rounds through stock SuperNodes, through ours, and over the link."""
    rows = []
    ways: tuple[tuple[str, Mapping[str, str], int, bool], ...] = (
        ("stock SuperNodes", {}, few, False),
        ("SuperNodes with our settings", SETTINGS, few, False),
        ("the live link over Flower", {}, many, True),
    )
    app = copy_checkout(folder / "app")
    for i, (way, settings, rounds, linked) in enumerate(ways):
        with Processes() as processes:
            flower = Flower(processes, version, folder / f"{i}")
            try:
                flower.ready()
                for worker in range(4):
                    flower.node(worker, env=settings)
                flower.online()
                run = flower.run(
                    app,
                    folder / f"run-{i}",
                    config=CONFIG,
                    set=" ".join(changes(rounds)),
                    link=free_address() if linked else "",
                )
                status = run.wait(LONG_S)
                if status != "finished:completed":
                    raise RuntimeError(f"{way} on Flower {version}: {status}\n{run.log()}")
                rows.append(median_of(way, version, run.out))
            finally:
                flower.close()
    return rows


def on_the_live_link(folder: Path, rounds: int) -> Row:
    """Measure `breakwater run`."""
    out = folder / "live"
    honest = ("federation.byzantine=0", "attack.kind=none")
    with Processes() as processes:
        run = processes.breakwater("run", ROOT / CONFIG, "--out", out, *sets(*changes(rounds), *honest))
        run.ends(0, LONG_S)
    return median_of("the live link, without Flower's machinery", "", out)


def main() -> None:
    """Measure and print a Markdown table."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to FILE as well")
    parser.add_argument("--quick", action="store_true", help="measure two rounds through SuperNodes")
    parser.add_argument("--rounds", type=int, default=8, help="rounds through SuperNodes (default: %(default)s)")
    parser.add_argument("--versions", nargs="+", default=[OLDEST, NEWEST], help="Flower versions (default: both ends)")
    options = parser.parse_args()
    few, many = (2, 100) if options.quick else (options.rounds, 500)
    rows: list[Row] = []
    for version in options.versions:
        with tempfile.TemporaryDirectory(prefix="breakwater-") as folder:
            rows += on_flower(version, Path(folder), few, many)
    with tempfile.TemporaryDirectory(prefix="breakwater-") as folder:
        rows.append(on_the_live_link(Path(folder), many))
    print("| a round goes through | Flower | rounds | median seconds |\n|---|---|---:|---:|")
    for row in rows:
        print(f"| {row.way} | {row.version} | {row.rounds} | {row.round_s:.3g} |")
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
