"""Checks whether the data files of the tasks are complete, and whether a config can run with them."""

import gzip
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from deploy.doctor.findings import Demand, Finding, ok, problem, warning
from foundation.errors import ConfigError
from foundation.text import TextError, read_text
from tasks.cifar10 import BATCHES, SUBSET, TEST, TRAIN
from tasks.contract import TaskError
from tasks.mnist import FILES

SUMS = "SHA256SUMS"
"""An optional file of check sums in the data folder, as ``sha256sum`` writes it."""
_PUBLISHED = (
    "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
)
_MNIST = dict(zip(FILES, _PUBLISHED, strict=True))
"""SHA-256 of the unpacked files of MNIST as published."""
_CIFAR10 = dict(
    zip(
        (*TRAIN, TEST),
        (
            "c99cafc152244af753f735de768cd75f",
            "d4bba439e000b95fd0a9bffe97cbabec",
            "54ebc095f3ab1f0389bbae665268c751",
            "634d18415352ddfa80567beed471001a",
            "482c414d41f54cd18b22e5b47cb7c3cb",
            "40351d587109b95175f43aff81a1287e",
        ),
        strict=True,
    )
)
"""MD5 of the files of CIFAR-10 as published: the sums that torchvision compares."""
_ANEW = "copy the file again"


def look(given: Path | None) -> Iterator[Finding]:
    """Check the data folder.

    Args:
        given: ``--data``; None for BREAKWATER_DATA, which may be unset.
    """
    name = given or os.environ.get("BREAKWATER_DATA")
    if not name:
        yield ok("data", "no data folder given (--data, BREAKWATER_DATA): only the tasks digits and custom can run")
        return
    folder = Path(name)
    if not folder.is_dir():
        yield problem("data", f"{name}: no such folder", "name the folder that holds libsvm/ and MNIST/")
        return
    sums = list(_sums(folder))
    yield from sums
    tables = sorted(path for path in (folder / "libsvm").glob("*") if path.is_file())
    mnist = list(_mnist(folder))
    cifar10 = list(_cifar10(folder))
    own = [path for path in folder.glob("*.*") if path.suffix in (".csv", ".parquet")]  # of the task table
    if not (tables or mnist or cifar10 or own):
        yield warning("data", f"{folder} holds no data set that a task reads", "put libsvm/a9a.gz or MNIST/raw/ there")
    for path in tables:
        yield from _table(path)
    yield from mnist
    yield from cifar10


def _sums(folder: Path) -> Iterator[Finding]:
    """Compare the files with the folder's own check sums."""
    if not (folder / SUMS).is_file():
        return
    try:
        lines = read_text(folder / SUMS).split("\n")
    except TextError as error:
        yield warning("data", f"{folder / SUMS} {error}", "create it again with sha256sum")
        return
    good = 0
    for line in filter(None, lines):
        wanted, _, name = line.partition(" ")
        path = folder / name.strip().removeprefix("*")
        if not path.is_file():
            yield warning("data", f"{path} is in {SUMS}, but missing", "copy it, if a task needs it")
        elif hashlib.sha256(path.read_bytes()).hexdigest() != wanted:
            yield problem("data", f"{path} does not match {SUMS}", _ANEW)
        else:
            good += 1
    yield ok("data", f"{good} files match {folder / SUMS}")


def _table(path: Path) -> Iterator[Finding]:
    """Read a LIBSVM file as the task does."""
    from tasks.libsvm import read_libsvm

    try:
        samples = read_libsvm(path)
    except TaskError as error:
        yield problem("data", str(error), _ANEW)
        return
    columns = int(samples.columns.max(initial=-1)) + 1
    yield ok("data", f"libsvm/{path.name}: {len(samples.labels)} samples, {columns} features")


def _mnist(folder: Path) -> Iterator[Finding]:
    """Check MNIST, without downloading it."""
    from tasks.mnist import read_mnist

    raw = folder / "MNIST" / "raw"
    found = {name: _present(raw, name) for name in FILES}
    missing = [name for name, path in found.items() if path is None]
    if len(missing) == len(FILES):
        return
    if missing:
        yield problem("data", f"MNIST in {raw} lacks {', '.join(missing)}", "copy these files, packed (.gz) or not")
        return
    try:
        images = read_mnist(folder)[0]
    except TaskError as error:
        yield problem("data", str(error), _ANEW)
        return
    other = [name for name, path in found.items() if path is not None and _digest(path) != _MNIST[name]]
    if other:
        says = f"MNIST in {raw}: {', '.join(other)}: not as published"
        yield warning("data", says, "results are not comparable with those of papers")
    else:
        yield ok("data", f"MNIST: {len(images)} training images, as published")


def _cifar10(folder: Path) -> Iterator[Finding]:
    """Check CIFAR-10, without downloading it."""
    from tasks.cifar10 import read_cifar10

    missing = [name for name in _CIFAR10 if not (folder / BATCHES / name).is_file()]
    if missing and not (folder / SUBSET).is_file():
        if len(missing) < len(_CIFAR10):
            yield problem("data", f"CIFAR-10 in {folder / BATCHES} lacks {', '.join(missing)}", "copy these files")
        return
    try:
        images = read_cifar10(folder)[0]
    except TaskError as error:
        yield problem("data", str(error), _ANEW)
        return
    if missing:
        yield ok("data", f"CIFAR-10: {len(images)} training images in {SUBSET}")
        return
    sums = {name: hashlib.md5((folder / BATCHES / name).read_bytes(), usedforsecurity=False) for name in _CIFAR10}
    other = [name for name, found in sums.items() if found.hexdigest() != _CIFAR10[name]]
    if other:
        says = f"CIFAR-10 in {folder / BATCHES}: {', '.join(other)}: not as published"
        yield warning("data", says, "results are not comparable with those of papers")
    else:
        yield ok("data", f"CIFAR-10: {len(images)} training images, as published")


def _present(raw: Path, name: str) -> Path | None:
    return next((path for path in (raw / name, raw / f"{name}.gz") if path.is_file()), None)


def _digest(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha256(gzip.decompress(content) if path.suffix == ".gz" else content).hexdigest()


def config(path: Path, given: Path | None, demand: Demand) -> Iterator[Finding]:
    """Open the experiment of a config, with its data.

    Args:
        path: the config.
        given: ``--data``.
        demand: set to what the experiment needs, if it can be opened.
    """
    from experiment.config import load
    from experiment.opened import open_config, try_out

    folder = given or os.environ.get("BREAKWATER_DATA")
    try:
        read = load(path)
        data_dir = Path(folder).resolve() if folder else None
        experiment = open_config(read, data_dir, path.resolve().parent)
        try_out(experiment)
    except ConfigError as error:
        yield problem("config", " / ".join(str(error).splitlines()), "`breakwater check` explains a config")
        return
    problem_, federation = experiment.problem, experiment.config.federation
    vector = problem_.dim * problem_.dtype.itemsize
    # A checkpoint holds a few vectors of the server's and at most two for each client; one more is being written.
    kept = (experiment.config.checkpoint.keep + 1) * (2 * federation.clients + 6) * vector
    demand.clients = federation.clients
    demand.disk = kept + experiment.config.strategy.rounds * (200 + 16 * federation.clients)
    yield ok("config", f"{path}: {experiment.config.task.kind}, d = {problem_.dim}, {federation.clients} clients")
