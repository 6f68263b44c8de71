"""The paper's experiment on a9a, over gRPC with 20 client identities: objective gap at round 600 under each attack.

Each row is one `breakwater run` of deploy/configs/a9a.toml with attack, compressor and seed changed. The peer of a gap
is the largest one that we accept there; with clipping off, the least divergence. Needs the LIBSVM file a9a.gz.

    BREAKWATER_DATA=DIR python -m benchmarks.a9a [--json FILE] [--seeds 1 2 3] [--quick]
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.bench import Result, arguments, publish
from server.monitor.curves import curve
from server.run_folder.reader import read_rounds

CONFIG = Path(__file__).parent.parent / "deploy" / "configs" / "a9a.toml"
IDENTITY = ("compressor.kind=identity",)
BOUNDS = {
    "identity": {"bf": 1e-9, "lf": 1e-9, "alie": 1e-9, "ipm": 1e-9, "shb": 1e-9, "big": 1e-4},
    "rand-k": {"bf": 1e-8, "lf": 1e-8, "alie": 1e-8, "shb": 1e-8},
}


def settings(attack: str, seed: int) -> list[str]:
    """Return the overrides for an attack, in the strength that the reference numbers are given for."""
    changes = [f"attack.kind={attack}", f"federation.seed={seed}"]
    if attack == "alie":
        changes.append("attack.z=1.06")
    if attack in ("alie", "ipm"):
        changes.append("attack.view=omniscient")
    return changes


def run(changes: list[str]) -> tuple[list[float], float]:
    """Return the gaps at rounds 150, 300, 450 and 600, and the seconds from the command to its end."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "deploy.cli", "run", str(CONFIG), "--out", str(out)]
        began = time.perf_counter()
        subprocess.run(
            [*command, *(word for change in changes for word in ("--set", change))],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        seconds = time.perf_counter() - began
        found = curve(read_rounds(out), "round", "gap", diverged=True)
        gaps = dict(zip(found.x, found.y, strict=True))
    return [gaps.get(k, float("inf")) for k in (150, 300, 450, 600)], seconds


def measure(seeds: list[int]) -> Iterator[Result]:
    """Yield one result a run, printing each as it comes."""
    for seed in seeds:
        for compressor, bounds in BOUNDS.items():
            for attack, bound in bounds.items():
                changes = settings(attack, seed) + (list(IDENTITY) if compressor == "identity" else [])
                gaps, seconds = run(changes)
                name = f"{compressor}, {attack}, seed {seed}"
                print(f"{name:26}", *(f"{gap:.0e}" for gap in gaps), f"{seconds:.0f} s", sep="  ", flush=True)
                yield Result(
                    name=name, value=gaps[-1], unit="f-f*", peer="bound", peer_value=bound, ratio=bound / gaps[-1]
                )
        gaps, seconds = run([*settings("shb", seed), *IDENTITY, "strategy.clip=false"])
        name = f"identity, shb without clipping, seed {seed}"
        print(f"{name:26}", *(f"{gap:.0e}" for gap in gaps), f"{seconds:.0f} s", sep="  ", flush=True)
        yield Result(name=name, value=max(gaps), unit="f-f*", peer="divergence", peer_value=1e2, ratio=max(gaps) / 1e2)


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="seeds to run (default: 1 2 3)")
    options = parser.parse_args()
    if not os.environ.get("BREAKWATER_DATA"):
        print("benchmarks.a9a: skipped: BREAKWATER_DATA names no folder that holds libsvm/a9a.gz")
        return
    print("rounds 150, 300, 450, 600; seconds from the command to its end")
    publish(list(measure(options.seeds[:1] if options.quick else options.seeds)), options.json)


if __name__ == "__main__":
    main()
