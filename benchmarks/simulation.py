"""How fast rounds in one process are, against the loops that somebody would write instead.

* a9a: whole runs of ``deploy/configs/a9a.toml`` (600 rounds, 20 clients, alie) against ``examples/plain_loop.py``, the
  same run without messages, screening, evidence and a run folder. Skipped without the data folder.
* a network of 431,080 parameters, 10 clients, batch 25, robust SGD with the trimmed mean: rounds in which two attack by
  ``ipm`` and see what the others send, against rounds with an attack that looks at nobody, and against ByzFL's own loop
  of the same job. That is skipped without ByzFL, which may be installed for another Python: ``pip install byzfl`` in an
  environment of its own, and ``--byzfl ENVIRONMENT/bin/python``.

    BREAKWATER_DATA=DIR python -m benchmarks.simulation [--byzfl PYTHON] [--json FILE] [--quick]

Times are processor time with one thread: of a run, or the median of its rounds; the least of several runs that take
turns.
"""

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch

from benchmarks.bench import Result, arguments, publish
from benchmarks.lenet import LeNet, images
from deploy.inprocess import grid_of
from examples.plain_loop import trajectory
from experiment.config import load
from experiment.opened import Experiment, open_config
from server.monitor.exporters import Monitoring
from server.run import run
from server.run_folder.writer import RunFolder
from strategies.strategy import RoundRecord

ROOT = Path(__file__).resolve().parent.parent
A9A = ROOT / "deploy" / "configs" / "a9a.toml"
LENET_RUN = """
[federation]
clients = 10
byzantine = 2

[task]
kind = "custom"
path = "lenet.py:LeNet"

[strategy]
kind = "robust-sgd"
rounds = 1
gamma = 0.05
batch = 25

[aggregator]
kind = "cwtm"

[attack]
kind = "ipm"

[evaluation]
every = 100000
"""
WARM_UP = 5
"""Rounds that are not timed, as more is compiled and loaded in them."""


class Clocked(RunFolder):
    """A run folder that notes the processor time at which each round has ended."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, None)
        self.ends: list[float] = []

    def add(self, record: RoundRecord) -> None:
        """Add a round."""
        super().add(record)
        self.ends.append(time.process_time())


def whole_run(experiment: Experiment) -> list[float]:
    """Run an experiment as ``breakwater sweep`` does, forget its results, and return when its rounds ended."""
    quiet = Monitoring(quiet=True, silent=True, pictures=False)
    with tempfile.TemporaryDirectory() as out, Clocked(Path(out) / "run") as folder:
        run(experiment, folder, grid_of(experiment), quiet, incarnation=1)
    return folder.ends


def seconds(what: Callable[[], object]) -> float:
    """Return the processor time of a call."""
    began = time.process_time()
    what()
    return time.process_time() - began


def least(calls: Mapping[str, Callable[[], float]], times: int) -> dict[str, float]:
    """Return the least of what each call returned; they take turns."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(times):
        for name, call in calls.items():
            found[name].append(call())
    return {name: min(values) for name, values in found.items()}


def a9a(data: Path, times: int) -> Iterator[Result]:
    """Yield the whole run against the plain loop."""
    experiment = open_config(load(A9A, []), data, A9A.parent)
    experiment.problem.evaluate(experiment.problem.initial())  # works out f*
    calls = {
        "run": lambda: seconds(lambda: whole_run(experiment)),
        "loop": lambda: seconds(lambda: list(trajectory(experiment))),
    }
    found = least(calls, times)
    yield compared("a9a, 600 rounds in one process", found["run"], "s", "plain loop", found["loop"])


def lenet(byzfl: str | None, times: int, rounds: int) -> Iterator[Result]:
    """Yield rounds of ipm against those of an attack that looks at nobody, and against ByzFL's."""
    here = Path(__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "lenet.toml"
        file.write_text(LENET_RUN)

        def timed(kind: str, view: str) -> Callable[[], float]:
            changes = [f"attack.kind={kind}", f"attack.view={view}", f"strategy.rounds={WARM_UP + rounds}"]
            experiment = open_config(load(file, changes), None, here)
            return lambda: median(b - a for a, b in pairwise(whole_run(experiment)[WARM_UP - 1 :])) * 1e3

        calls = {"ipm": timed("ipm", "omniscient"), "big": timed("big", "own"), "torch": lambda: gradients(rounds)}
        if byzfl is not None:
            calls["byzfl"] = lambda: byzfl_round(byzfl, rounds)
        found = least(calls, times)
    name = "431,080 parameters, a round of omniscient ipm"
    yield compared(name, found["ipm"], "ms", "attack that looks at nobody", found["big"])
    yield compared(name, found["ipm"], "ms", "PyTorch alone", found["torch"])
    if "byzfl" in found:
        yield compared(name, found["ipm"], "ms", "ByzFL", found["byzfl"])


def compared(name: str, ours: float, unit: str, peer: str, theirs: float) -> Result:
    """Return a result."""
    return Result(name=name, value=ours, unit=unit, peer=peer, peer_value=theirs, ratio=theirs / ours)


def gradients(rounds: int) -> float:
    """Return the ms that PyTorch takes for the gradients of the honest clients of a round, and nothing else."""
    module, loss, (pixels, classes) = LeNet().model(), torch.nn.CrossEntropyLoss(), images()
    times = []
    for _ in range(WARM_UP + rounds):
        began = time.process_time()
        for at in range(0, 8 * 25, 25):
            module.zero_grad(set_to_none=False)
            loss(module(pixels[at : at + 25]), classes[at : at + 25]).backward()
        times.append(time.process_time() - began)
    return median(times[WARM_UP:]) * 1e3


def byzfl_round(python: str, rounds: int) -> float:
    """Return the ms of a round of ByzFL's loop, run by that Python."""
    command = [python, "-m", "benchmarks.byzfl_loop", str(rounds)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return float(done.stdout)


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--byzfl", metavar="PYTHON", help="a Python that has byzfl (default: this one, if it has)")
    options = parser.parse_args()
    times, rounds = (2, 10) if options.quick else (5, 40)
    byzfl = options.byzfl or (sys.executable if importlib.util.find_spec("byzfl") else None)
    results: list[Result] = []
    if data := os.environ.get("BREAKWATER_DATA"):
        results += a9a(Path(data), times)
    else:
        print("a9a is skipped: BREAKWATER_DATA names no folder that holds libsvm/a9a.gz")
    if byzfl is None:
        print("ByzFL is skipped: it is not installed here; --byzfl names a Python that has it")
    results += lenet(byzfl, times, rounds)
    publish(results, options.json)
    print("ratio: above 1 means that ours takes less time")


if __name__ == "__main__":
    main()
