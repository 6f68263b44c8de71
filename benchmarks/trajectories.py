"""Compares what two checkouts compute: the same experiments, in the same environment, must give the same bits.

Every config of the other checkout's ``deploy/configs`` is run a few rounds by both checkouts, in one process and as
processes over the link, and so is the reduced form of every experiment. Compared are the bytes of the last model, and
of every round the accepted workers, the rejected clients with the kind of reason, and the bytes up and down.

    git worktree add ../before COMMIT
    python -m benchmarks.trajectories ../before [--data DIR] [--rounds N] [--only WORD] [--over process|link]

The exit status is 1 if anything differs. Configs whose data are missing are reported as skipped.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent
WAYS = ("process", "link")
TIMEOUT_S = 600


@dataclass(frozen=True)
class Checkout:
    """One version of the code, run with the Python of this process.

    Args:
        root: its folder.
    """

    root: Path

    def breakwater(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command of this version to its end."""
        project = tomllib.loads((self.root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        module, _, function = project["scripts"]["breakwater"].partition(":")
        code = f"import sys; from {module} import {function}; sys.exit({function}())"
        environment = {**os.environ, "PYTHONPATH": str(self.root), "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            cwd=self.root,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )

    def run(self, config: Path, way: str, out: Path, settings: Sequence[str]) -> str:
        """Run a config into a folder; return what went wrong, "" for nothing."""
        changes = [word for setting in settings for word in ("--set", setting)]
        if way == "link":
            ended = self.breakwater("run", config, "--out", out / "run", "-q", *changes)
        else:
            out.mkdir()
            experiment = out / "one.toml"
            experiment.write_text(f'title = "One"\nbase = "{config}"\nseeds = [1]\n[axes.all]\n"1" = []\n')
            ended = self.breakwater("sweep", experiment, "--in-process", "--out", out / "sweep", *changes)
        return "" if ended.returncode == 0 else _last_words(ended)

    def reduced(self, experiment: Path, out: Path) -> str:
        """Run the reduced form of an experiment into a folder; return what went wrong, "" for nothing."""
        ended = self.breakwater("sweep", experiment, "--reduced", "--in-process", "--out", out)
        return "" if ended.returncode == 0 else _last_words(ended)


def _last_words(ended: subprocess.CompletedProcess[str]) -> str:
    lines = (ended.stderr + ended.stdout).strip().splitlines()
    told = [line for line in lines if "error" in line.lower() or line.startswith(("failed", "stalled"))]
    return (told or lines or ["no word"])[-1][:300]


def runs_in(folder: Path) -> dict[str, Path]:
    """Return the run folders in a folder by their relative path."""
    return {str(path.parent.relative_to(folder)): path.parent for path in sorted(folder.rglob("metrics.jsonl"))}


def difference(one: Path, other: Path) -> str:
    """Return the first thing in which two run folders differ, "" for nothing."""
    first, second = (_rounds(path) for path in (one, other))
    for a, b in zip(first, second, strict=False):
        for key in a:
            if a[key] != b[key]:
                return f"round {a['round']}: {key}: {b[key]} there, {a[key]} here"
    if len(first) != len(second):
        return f"{len(second)} rounds there, {len(first)} here"
    models = [_model(path) for path in (one, other)]
    return "" if models[0] == models[1] else "the models differ"


def _rounds(path: Path) -> list[dict[str, Any]]:
    """Return what must be equal of every round."""
    found = []
    for line in (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        kept = {key: record.get(key) for key in ("round", "kind", "cohort", "accepted", "bytes_up", "bytes_down")}
        rejected = [(entry["client"], entry["reason"].partition(":")[0]) for entry in record["rejected"]]
        found.append({**kept, "rejected": rejected, "loss": record.get("loss"), "step_norm": record["step_norm"]})
    return found


def _model(path: Path) -> bytes:
    from server.run_folder.reader import read_model  # late: it is heavy, and only this process needs it

    x = read_model(path).x
    if x is None:
        raise ValueError(f"{path}: the order of its parameters is unknown")
    return str(x.dtype).encode() + x.tobytes()


def compared(ours: Path, theirs: Path, words: tuple[str, str]) -> str:
    """Return the verdict on the runs that two checkouts have left in two folders.

    Args:
        ours: folder of this checkout.
        theirs: of the other one.
        words: what went wrong here and there, "" for nothing.
    """
    if all(words):
        return f"skipped: {words[1]}"
    if any(words):
        return f"DIFFERS: {'here' if words[0] else 'there'} it fails: {words[0] or words[1]}"
    mine, others = runs_in(ours), runs_in(theirs)
    if not mine or mine.keys() != others.keys():
        return f"DIFFERS: {len(others)} runs there, {len(mine)} here"
    for name, path in mine.items():
        if found := difference(path, others[name]):
            return f"DIFFERS: {name}: {found}"
    return f"same ({len(mine)} runs)" if len(mine) > 1 else "same"


def verdicts(before: Checkout, options: argparse.Namespace, scratch: Path) -> Iterator[tuple[str, str]]:
    """Run everything in both checkouts; yield name and verdict of each comparison."""
    now = Checkout(HERE)
    settings = [f"strategy.rounds={options.rounds}", f"evaluation.every={max(1, options.rounds // 3)}"]
    for config in sorted((before.root / "deploy" / "configs").glob("*.toml")):
        tree = tomllib.loads(config.read_text(encoding="utf-8"))
        attacked = "attack" in tree or not tree["federation"].get("byzantine")
        changes = settings if attacked else [*settings, "attack.kind=bf"]  # its attackers come by hand
        for way in options.over:
            name = f"{config.stem} ({way})"
            if options.only in name:
                ours, theirs = scratch / f"{name} here", scratch / f"{name} there"
                words = now.run(config, way, ours, changes), before.run(config, way, theirs, changes)
                yield name, compared(ours, theirs, words)
    for experiment in sorted((before.root / "benchmarks" / "experiments").glob("*.toml")):
        name = f"{experiment.stem} (reduced)"
        if options.only in name and "process" in options.over:
            ours, theirs = scratch / f"{name} here", scratch / f"{name} there"
            yield name, compared(ours, theirs, (now.reduced(experiment, ours), before.reduced(experiment, theirs)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, print a line for each, and return the exit status."""
    parser = argparse.ArgumentParser(description="Compare the trajectories of another checkout with those of this one.")
    parser.add_argument("checkout", type=Path, help="folder of the other version")
    parser.add_argument("--rounds", type=int, default=12, help="rounds of each config (default: %(default)s)")
    parser.add_argument("--only", default="", metavar="WORD", help="only what has this in its name")
    parser.add_argument("--over", choices=WAYS, action="append", help="in one process or over the link (default: both)")
    parser.add_argument("--data", type=Path, help="folder of data files (default: BREAKWATER_DATA)")
    options = parser.parse_args(arguments)
    options.over = options.over or list(WAYS)
    if options.data is not None:
        os.environ["BREAKWATER_DATA"] = str(options.data.resolve())
    differ = same = 0
    with tempfile.TemporaryDirectory() as scratch:
        for name, verdict in verdicts(Checkout(options.checkout.resolve()), options, Path(scratch)):
            print(f"{name:<44} {verdict}", flush=True)
            differ += verdict.startswith("DIFFERS")
            same += verdict.startswith("same")
    print(f"{same} the same, {differ} differ")
    return 1 if differ or not same else 0


if __name__ == "__main__":
    sys.exit(main())
