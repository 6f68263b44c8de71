"""Who attacked? How many of the true attackers the ranking of server/monitor/suspects.py puts first, attack by attack.

Two federations, each in one process: that of the demo, whose clients have alike data, and one whose clients' data
differ (Dirichlet), where an honest client may look odd too. With nobody attacking the ranking can only be wrong: the
row `none` says how high an honest client's score gets. The last columns leave out that colluding attackers often send
the very same vector, which a grain of noise would hide.

Where membership is mobile, every client attacks in some rounds. The true attackers are then the f clients that did so
in most rounds, and a second line says how many attackers a ranking of each round by itself puts first. For a backdoor
the second line says how often its trigger works at the end.

    python -m benchmarks.suspects [--json FILE] [--quick] [--seeds N] [--rounds N] [--attack NAME ...]
"""

import io
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

from attacks.attack import mobile_attackers
from benchmarks.bench import Result, arguments, publish
from deploy.inprocess import run_in_process
from deploy.local import LocalOptions
from experiment.config import load
from server.monitor.suspects import tally
from server.run_folder.reader import read_rounds
from strategies.strategy import RoundRecord

CONFIGS = Path(__file__).parent.parent / "deploy" / "configs"
FEDERATIONS = {"alike data (demo.toml)": "demo.toml", "uneven data (heterogeneous.toml)": "heterogeneous.toml"}
ATTACKS = (
    *("bf", "lf", "gaussian", "zero", "big", "foe", "ipm", "shb", "alie", "min-max", "mimic", "fang"),
    *("ipm, jitter 1", "alie, jitter 1", "min-max, jitter 1", "shb, jitter 1"),
    *(
        "replace",
        "replace, boost 4",
        "replace, triggers 4",
        "ipm, membership mobile",
        "alie, membership mobile",
        "none",
    ),
)
OMNISCIENT = {"foe", "ipm", "shb", "alie", "min-max", "mimic", "fang", "replace"}
"""They see the honest clients' messages: the strongest view."""


def run(config: str, attack: str, seed: int, rounds: int) -> list[RoundRecord]:
    """Return the rounds of one run."""
    attack, *keys = attack.split(", ")
    changes = [f"attack.kind={attack}", f"federation.seed={seed}", f"strategy.rounds={rounds}"]
    if attack in OMNISCIENT:
        changes.append("attack.view=omniscient")
    changes += [f"attack.{key.replace(' ', '=')}" for key in keys]
    if attack == "none":
        changes.append("federation.byzantine=0")
    if attack == "foe" and config == "demo.toml":
        changes.append("attack.eps=2.4")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        with redirect_stdout(io.StringIO()):
            run_in_process(LocalOptions(config=load(CONFIGS / config, changes), out=out, config_dir=CONFIGS))
        return read_rounds(out)


def measure(seeds: range, rounds: int, attacks: Sequence[str] = ATTACKS) -> Iterator[Result]:
    """Yield a result for each attack, printing a table as it comes."""
    for title, config in FEDERATIONS.items():
        federation = load(CONFIGS / config).federation
        n, f = federation.clients, federation.byzantine
        print(f"\n{title}: {f} of {n} attack, {rounds} rounds, seeds {seeds[0]} to {seeds[-1]}")
        _row("attack", "ranked first", "all, in", "lowest attacker", "highest honest", "equal vectors unseen")
        for attack in attacks:
            found, unseen, low, high = [], [], [], []
            alone, triggered = [0, 0], []
            for seed in seeds:
                told = run(config, attack, seed, rounds)
                ranked = tally(told, f)
                attackers = set() if attack == "none" else set(range(n - f, n))
                if attack.endswith("mobile"):
                    attackers = _most_often(told, n, f, seed)
                    alone = [a + b for a, b in zip(alone, _by_single_rounds(told, n, f, seed), strict=True)]
                triggered += [record.evaluation.trigger for record in told[-1:] if record.evaluation is not None]
                found.append(sum(suspect.worker in attackers for suspect in ranked[:f]))
                low += [suspect.score or 0.0 for suspect in ranked if suspect.worker in attackers]
                high += [suspect.score or 0.0 for suspect in ranked if suspect.worker not in attackers]
                ranked = tally([_without_same(record) for record in told], f)
                unseen.append(sum(suspect.worker in attackers for suspect in ranked[:f]))
            if attack == "none":
                _row(attack, "-", "-", "-", f"{max(high):.1f}", "-")
                continue
            most = f * len(seeds)
            ranked_first, all_in = f"{sum(found)} of {most}", f"{found.count(f)} of {len(seeds)} runs"
            _row(attack, ranked_first, all_in, f"{min(low):.1f}", f"{max(high):.1f}", f"{sum(unseen)} of {most}")
            if alone[1]:
                print(f"  ranked first in the round in which they attacked: {alone[0]:,} of {alone[1]:,}", flush=True)
            if shares := [share for share in triggered if share is not None]:
                print(f"  the trigger works in {min(shares):.0%} to {max(shares):.0%} of images", flush=True)
            chance = f / n * most
            yield Result(
                name=f"{config}, {attack}", value=sum(found), unit=f"of {most}", peer="chance", peer_value=chance,
                ratio=sum(found) / chance,
            )  # fmt: skip


def _attacking(record: RoundRecord, n: int, f: int, seed: int) -> frozenset[int]:
    """Return who of those whose reply counted attacked in a round where membership is mobile."""
    return mobile_attackers(n, f, seed, record.round).intersection(record.accepted)


def _most_often(rounds: Sequence[RoundRecord], n: int, f: int, seed: int) -> set[int]:
    """Return the f clients that attacked in most rounds."""
    times = Counter(worker for record in rounds for worker in _attacking(record, n, f, seed))
    return {worker for worker, _ in times.most_common(f)}


def _by_single_rounds(rounds: Sequence[RoundRecord], n: int, f: int, seed: int) -> tuple[int, int]:
    """Return how many attackers a ranking of each round puts first, as many as attacked in it, and how many there were.

    Rounds in which half of the replies or more were attackers' do not count.
    """
    found = there = 0
    for record in rounds:
        attackers = _attacking(record, n, f, seed)
        if 2 * len(attackers) < len(record.accepted):
            first = tally([record], f)[: len(attackers)]
            found, there = found + sum(suspect.worker in attackers for suspect in first), there + len(attackers)
    return found, there


def _without_same(record: RoundRecord) -> RoundRecord:
    return replace(record, evidence=record.evidence and replace(record.evidence, same=()))


def _row(*cells: str) -> None:
    print(f"{cells[0]:<26}" + "".join(f"{cell:<18}" for cell in cells[1:]).rstrip(), flush=True)


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__ or "", rounds=300)
    parser.add_argument("--seeds", type=int, default=10, metavar="N", help="how many seeds (default: %(default)s)")
    parser.add_argument("--attack", nargs="+", choices=ATTACKS, default=ATTACKS, help="these alone (default: all)")
    options = parser.parse_args()
    seeds = range(1, 1 + (2 if options.quick else options.seeds))
    results = list(measure(seeds, options.rounds, options.attack))
    print()
    publish(results, options.json)


if __name__ == "__main__":
    main()
