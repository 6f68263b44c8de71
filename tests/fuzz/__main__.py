"""``python -m tests.fuzz``: a coverage-guided fuzzer on each target, two at a time, and a table of what was done.

    python -m tests.fuzz                          all targets, over a million inputs, about twenty minutes
    python -m tests.fuzz reader --inputs 300000   one of them
    python -m tests.fuzz --minimise               also keep what covers more in tests/corpus (few and small files)

A target runs in its own process, with a time limit for each input and a memory limit. An input on which it fails is
kept as found-HASH in tests/corpus/TARGET.txt, and ``make test`` replays it from then on. The fuzzer is atheris
(libFuzzer on Python's branches), which has wheels for Linux on x86-64 only: the extra ``fuzz``.
"""

import argparse
import importlib
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz import corpus

ROOT = Path(__file__).parents[2]
INPUTS = {"reader": 300_000, "ask": 150_000, "live": 100_000, "watch": 60_000, "watchers": 20_000}
"""How many by default; of each codec ``CODEC_INPUTS``."""
CODEC_INPUTS = 65_000
INPUT_S = 30
"""A longer input is a hang."""
MEMORY_MB = {"live": 900, "watchers": 900}
"""The resident set of a target's process, libraries and all, at most; of others ``MOST_MEMORY_MB``."""
MOST_MEMORY_MB = 700
LONGEST = 600
"""Bytes of an input."""
KEPT_BYTES = 24 << 10
"""At most so many bytes of inputs in each corpus file, failures not counted."""
_MISSING = (
    "atheris, the fuzzer, is not installed: python -m pip install 'atheris>=3,<4' (it has wheels for Linux on x86-64, "
    "CPython 3.11 to 3.14, and for nothing else)"
)


@dataclass(frozen=True)
class Outcome:
    """What came of fuzzing one target."""

    target: str
    inputs: int
    seconds: float
    features: int
    memory_mb: int
    found: str
    said: str

    def row(self) -> str:
        """Return a row of the table."""
        rate = self.inputs / max(self.seconds, 1e-9)
        return (
            f"| {self.target} | {self.inputs:,} | {self.seconds:.0f} | {rate:,.0f} | {self.features:,} | "
            f"{self.memory_mb} | {self.found or 'none'} |"
        )


def main() -> int:
    """Run what the command line says; return the exit status."""
    if sys.argv[1:2] == ["--child"]:
        return _child(sys.argv[2], sys.argv[3:])
    from tests.fuzz.names import NAMES  # not in the child, where the fuzzer must see modules before they are imported

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz what reads a peer's bytes.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"any of {', '.join(NAMES)}; default all")
    parser.add_argument("--inputs", type=int, help="inputs for each target; default a million in all")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the fuzzer's choices; default the time")
    parser.add_argument("--jobs", type=int, default=2, help="targets at a time; default 2")
    parser.add_argument("--minimise", action="store_true", help="keep inputs that cover more in tests/corpus")
    given = parser.parse_args()
    unknown = set(given.targets).difference(NAMES)
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: no such target; there are {', '.join(NAMES)}")
    if importlib.util.find_spec("atheris") is None:
        print(_MISSING, file=sys.stderr)
        return 2
    names = sorted(given.targets or NAMES, key=lambda name: -_inputs(name, None))
    print(f"seed {given.seed}; {given.jobs} targets at a time", flush=True)
    began = time.monotonic()
    with ThreadPoolExecutor(given.jobs) as pool:
        jobs = [pool.submit(_fuzz, name, _inputs(name, given.inputs), given.seed, given.minimise) for name in names]
        for job in as_completed(jobs):
            print(job.result().row(), flush=True)
    outcomes = [job.result() for job in jobs]
    print(f"\n{_table(outcomes)}\n\n{sum(o.inputs for o in outcomes):,} inputs in {time.monotonic() - began:.0f} s")
    for outcome in outcomes:
        if outcome.found:
            print(f"\n{outcome.target}: {outcome.found}\n{outcome.said}")
    return int(any(outcome.found for outcome in outcomes))


def _inputs(name: str, wish: int | None) -> int:
    return wish if wish is not None else INPUTS.get(name, CODEC_INPUTS)


def _table(outcomes: list[Outcome]) -> str:
    head = "| target | inputs | seconds | inputs/s | features | memory MB | found |\n|---|---:|---:|---:|---:|---:|---|"
    return "\n".join([head, *(outcome.row() for outcome in outcomes)])


def _fuzz(name: str, inputs: int, seed: int, minimise: bool) -> Outcome:
    """Run the fuzzer on a target in a process of its own."""
    from tests.fuzz.seeds import seeds  # see ``main``

    kept = corpus.load(corpus.path_of(name))
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        work = Path(folder) / "work"
        work.mkdir()
        for label, data in kept.items():
            (work / label).write_bytes(data)
        for i, seed_input in enumerate(seeds(name)):
            (work / f"seed-{i}").write_bytes(seed_input)
        options = (
            f"-runs={inputs}", f"-seed={seed % 2**31 or 1}", f"-max_len={LONGEST}", f"-timeout={INPUT_S}",
            f"-rss_limit_mb={MEMORY_MB.get(name, MOST_MEMORY_MB)}", f"-artifact_prefix={folder}/", "-reload=0",
            "-print_final_stats=1", "-len_control=20",
        )  # fmt: skip
        began = time.monotonic()
        ended = _start(name, *options, str(work))
        seconds = time.monotonic() - began
        found = ""
        for path in (path for path in Path(folder).iterdir() if path.is_file()):
            what = path.name.rpartition("-")[0]
            if what == "slow-unit":  # slower than 10 s, which on a busy machine says nothing; a hang is a "timeout"
                continue
            label = corpus.name_of(path.read_bytes(), found=True)
            kept[label] = path.read_bytes()
            found = f"{what}: {label} in tests/corpus/{name}.txt"
        if ended.returncode and not found:
            found = f"exit status {ended.returncode}"
        if minimise and not found:
            kept = _minimised(name, Path(folder), work, kept)
        corpus.save(corpus.path_of(name), kept)
    said = ended.stdout
    last = re.findall(r"^#(\d+)\s.*ft: (\d+)", said, re.MULTILINE)
    done = re.search(r"stat::number_of_executed_units:\s+(\d+)", said)
    memory = re.search(r"stat::peak_rss_mb:\s+(\d+)", said)
    return Outcome(
        target=name,
        inputs=int(done[1] if done else last[-1][0] if last else 0),
        seconds=seconds,
        features=int(last[-1][1]) if last else 0,
        memory_mb=int(memory[1]) if memory else 0,
        found=found,
        said="\n".join(said.splitlines()[-40:]) if found else "",
    )


def _start(name: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "tests.fuzz", "--child", name, *arguments]
    return subprocess.run(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )


def _minimised(name: str, folder: Path, work: Path, kept: dict[str, bytes]) -> dict[str, bytes]:
    """Return few and small inputs that cover what all of them cover, as far as there is room."""
    merged = folder / "merged"
    merged.mkdir()
    _start(name, "-merge=1", f"-max_len={LONGEST}", str(merged), str(work))
    inputs = [path.read_bytes() for path in merged.iterdir()]
    if not inputs:
        return kept
    chosen = {label: data for label, data in kept.items() if label.startswith(corpus.FOUND)}
    room = KEPT_BYTES
    for data in sorted(inputs, key=lambda data: (len(data), corpus.name_of(data))):
        room -= len(data)
        if room < 0:
            break
        chosen[corpus.name_of(data)] = data
    return chosen


def _child(name: str, arguments: list[str]) -> int:
    """Be the process that fuzzes: what is imported within the block tells the fuzzer of its branches."""
    atheris = importlib.import_module("atheris")
    warnings.simplefilter("ignore")
    importlib.import_module("flwr.clientapp")
    importlib.import_module("flwr.serverapp")
    with atheris.instrument_imports(include=["foundation", "link", "strategies", "adapters", "server", "deploy"]):
        run = importlib.import_module("tests.fuzz.names").target(name)
    importlib.import_module("tests.fuzz.targets").prepare()  # out here: what is compiled must be as it is written
    warnings.simplefilter("error")
    again = f"{sys.executable} -m tests.fuzz --child {name}"  # what a merge starts, through a shell
    atheris.Setup([again, *arguments], run)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
