"""What this machine has: Python, packages, compiled loops, cores, files, disk, clock."""

import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Any, Protocol

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from deploy.doctor.findings import Finding, ok, problem, warning
from deploy.environment import ours_first
from deploy.files import OWN_FILES
from foundation import origin

ROOM = 512
"""Connections beyond the clients' that a server accepts: ``link.guard.ROOM``, without importing gRPC."""
LITTLE_DISK = 1 << 30
"""Warn if there is less free disk than this, in bytes."""
PROBE_S = 120.0
"""How long an import may take on a slow disk."""
_JUMP_S = 0.5
"""Warn if the clock moves by more than this against the monotonic one while the checks run."""
_LOOPS_MODULE = "strategies.aggregators.kernels"

_TORCH = """
import json, torch
value = float((torch.ones(64, 64) @ torch.ones(64, 64)).sum())
cuda = torch.cuda.is_available()
found = {"version": torch.__version__, "threads": torch.get_num_threads(), "value": value,
        "cuda": torch.cuda.get_device_name(0) if cuda else None}
print(json.dumps(found))
"""

_LOOPS = """
import importlib, json, sys
from numba.core.dispatcher import Dispatcher
kernels = importlib.import_module(sys.argv[1])
found = [kernel.stats.cache_path for kernel in vars(kernels).values() if isinstance(kernel, Dispatcher)]
print(json.dumps({"cache": next((path for path in found if path), None)}))
"""


class Answer(Protocol):
    """A result that is available later."""

    def result(self) -> dict[str, Any] | str:
        """Wait for the result; a text is the reason why there is none."""


class Probe:
    """Python code in a separate process, so that a crash or hang there does no harm here.

    Args:
        code: prints one JSON object, as its last line.
        argument: of the code, its ``sys.argv[1]``.
    """

    def __init__(self, code: str, argument: str = "") -> None:
        with ours_first():
            self._process = subprocess.Popen(  # noqa: S603  # this interpreter, on code from this file
                [sys.executable, "-c", code, argument], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )

    def result(self) -> dict[str, Any] | str:
        """Return what it printed, or the reason why there is nothing."""
        try:
            out, err = self._process.communicate(timeout=PROBE_S)
        except subprocess.TimeoutExpired:
            return f"no answer within {PROBE_S:g} s"
        finally:
            self._process.kill()
            self._process.communicate()
        if self._process.returncode == 0:
            answer: dict[str, Any] = json.loads(out.splitlines()[-1])
            return answer
        lines = err.strip().splitlines()
        return lines[-1][:300] if lines else f"ended with status {self._process.returncode}"


def torch_probe() -> Probe:
    """Begin to import torch, which takes seconds."""
    return Probe(_TORCH)


def loops_probe() -> Probe:
    """Begin to look where compiled loops are kept."""
    return Probe(_LOOPS, _LOOPS_MODULE)


def python() -> Iterator[Finding]:
    """Look at the interpreter."""
    wanted = metadata("breakwater")["Requires-Python"]
    here = platform.python_version()
    if here not in SpecifierSet(wanted, prereleases=True):
        yield problem("python", f"{here}, but {wanted} is needed", "make setup PYTHON=python3.12, in a new .venv")
    else:
        yield ok("python", f"{here} ({sys.executable})")


def packages() -> Iterator[Finding]:
    """Look at every package that the project names, against its bounds."""
    needed = [each for each in _requirements() if each.marker is None or each.marker.evaluate({"extra": ""})]
    good = 0
    for requirement in needed:
        try:
            there = version(requirement.name)
        except PackageNotFoundError:
            yield problem("packages", f"{requirement.name} is not installed", _how_to_install())
            continue
        if requirement.specifier.contains(there, prereleases=True):
            good += 1
        else:
            says = f"{requirement.name} {there} is outside the tested range {requirement.specifier}"
            yield problem("packages", says, _how_to_install())
    if good == len(needed):
        yield ok("packages", f"{good} of {len(needed)} within their bounds")


def flower() -> Iterator[Finding]:
    """Use each private name of flwr once that the link needs."""
    there = version("flwr")
    fix = "pip install --constraint constraints.txt flwr"
    try:
        from flwr.app import Message, RecordDict

        from link import flwr_compat

        flwr_compat.set_identity(1)
        message = Message(RecordDict(), 5, "train")
        flwr_compat.stamp(message, message_id="42", run_id=9)
        ids: dict[str, Any] = {"run_id": 9, "node_id": 5, "message_id": "42", "group_id": ""}
        asked = flwr_compat.instruction(RecordDict(), message_type="train", ttl_s=1.0, **ids)
        reply = Message(RecordDict(), reply_to=asked)
        flwr_compat.name_reply(reply, "43")
        seen = message.metadata.message_id, message.metadata.run_id, reply.metadata.message_id
        lost = flwr_compat.unreadable("42", 9, "x").has_error() and flwr_compat.empty_run(9).run_id == 9
    except (ImportError, AttributeError, NameError, TypeError, RuntimeError) as error:
        yield problem("flwr", f"{there} lacks a name that the link needs: {error}", fix)
        return
    if seen != ("42", 9, "43") or not lost:
        yield problem("flwr", f"{there} has the names that the link needs, but they behave differently", fix)
    else:
        yield ok("flwr", f"{there} has the names that the link needs")


def torch(probe: Answer | None) -> Iterator[Finding]:
    """Check torch, which neural tasks need."""
    if probe is None:
        yield warning("torch", "is not installed, so the tasks mnist, cifar10 and custom cannot run", "make setup")
        return
    answer = probe.result()
    if isinstance(answer, str):
        yield problem("torch", f"cannot be imported: {answer}", "reinstall it: make setup")
    elif answer["value"] != 64.0**3:
        yield problem("torch", f"a product of matrices of ones gives {answer['value']}", "reinstall it: make setup")
    else:
        cuda = f"CUDA: {answer['cuda']}, which built-in tasks do not use" if answer["cuda"] else "no CUDA"
        yield ok("torch", f"{answer['version']}, {answer['threads']} threads, {cuda}")


def loops(probe: Answer) -> Iterator[Finding]:
    """Check where compiled loops are cached between runs."""
    answer = probe.result()
    if isinstance(answer, str):
        yield problem("numba", f"the compiled loops cannot be loaded: {answer}", _how_to_install())
    elif answer["cache"] is None or not _writable(Path(answer["cache"])):
        says = "compiled loops cannot be cached, so with a large model every process compiles them for half a minute"
        yield warning("numba", says, "set NUMBA_CACHE_DIR to a writable folder")
    else:
        yield ok("numba", f"compiled loops are cached in {answer['cache']}")


def code() -> Iterator[Finding]:
    """Report the code fingerprint, which server and clients must share."""
    from experiment.code import code_fingerprint

    yield ok("code", f"fingerprint {code_fingerprint()}; server and clients of a run must have the same")


def cores(clients: int | None) -> Iterator[Finding]:
    """Check the processors that this process may use."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    share = f", of which {quota:g} at a time" if quota is not None and quota < there else ""
    load = f"; a local run has {clients + 1} processes" if clients is not None else ""
    if quota is not None and quota < 1:
        yield warning("cores", f"{there}{share}: rounds will be slow{load}", "give the container at least one core")
    else:
        yield ok("cores", f"{there}{share}{load}")


def open_files(clients: int | None) -> Iterator[Finding]:
    """Check how many connections a server can have. It raises the soft limit to the hard one itself."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard == resource.RLIM_INFINITY:
        yield ok("files", "no limit to open files")
        return
    wanted = 10 if clients is None else clients
    fix = f"raise it: ulimit -Hn {wanted + ROOM + OWN_FILES} as root, LimitNOFILE= of systemd, or --ulimit of docker"
    text = f"limit {hard}; a server of {wanted} clients needs {wanted + OWN_FILES}"
    if hard < wanted + OWN_FILES:
        yield problem("files", text, fix)
    elif hard < wanted + OWN_FILES + ROOM:
        yield warning("files", f"{text}, and {ROOM} more for unauthenticated peers", fix)
    else:
        yield ok("files", text)


def disk(out: Path, needed: int) -> Iterator[Finding]:
    """Check the free space for run folders.

    Args:
        out: a run folder, or where they are made; need not be there.
        needed: bytes that a run writes, as far as that is known.
    """
    place = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    text = f"{_size(free)} free in {place}"
    if not place.is_dir() or not _writable(place):
        yield problem("disk", f"{place} is not a writable folder", "give another folder as --out")
    elif free < max(needed, 64 << 20):
        yield problem("disk", f"{text}, but a run needs {_size(max(needed, 64 << 20))}", "free disk space")
    elif free < needed + LITTLE_DISK:
        yield warning("disk", text, "free disk space; on a full disk a server continues, but cannot write results")
    else:
        yield ok("disk", text)


class Clock:
    """Compares the wall clock with the monotonic one, from now until ``findings``."""

    def __init__(self) -> None:
        self._began = time.time() - time.monotonic()

    def findings(self) -> Iterator[Finding]:
        """Check whether the clock was set meanwhile, or is earlier than the code."""
        now = datetime.now(UTC)
        moved = time.time() - time.monotonic() - self._began
        newest = datetime.fromtimestamp((origin.ROOT / "deploy" / "versions.py").stat().st_mtime, UTC)
        fix = "enable the system's time service; certificates depend on the clock"
        if abs(moved) > _JUMP_S:
            yield warning("clock", f"moved by {moved:+.1f} s during this check", fix)
        elif now < newest:
            says = f"it is {now:%Y-%m-%d %H:%M} UTC, before this code was written ({newest:%Y-%m-%d})"
            yield problem("clock", says, fix)
        else:
            yield ok("clock", f"{now:%Y-%m-%d %H:%M:%S} UTC")


def has_torch() -> bool:
    """Return whether torch is installed, without importing it."""
    try:
        version("torch")
    except PackageNotFoundError:
        return False
    return True


def _how_to_install() -> str:
    """Return the command that installs what is needed."""
    if origin.manifest() is not None:
        return "pip install --upgrade breakwater, from where you got it"
    return "make setup, or pip install --constraint constraints.txt --editable ."


def _requirements() -> list[Requirement]:
    """Return the requirements of the checkout, as an install may be older; without a checkout, of the install."""
    path = origin.ROOT / "pyproject.toml"
    if path.is_file():
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
        extra = project["optional-dependencies"]["torch"] if has_torch() else []
        return [Requirement(text) for text in (*project["dependencies"], *extra)]
    return [Requirement(text) for text in requires("breakwater") or []]


def _quota() -> float | None:
    """Return how many cores the control group may use at a time, or None for no limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # there is none, or "max"
        return None


def _writable(path: Path) -> bool:
    """Return whether a folder, or its first parent that exists, is writable."""
    place = next((each for each in (path, *path.parents) if each.exists()), path)
    return os.access(place, os.W_OK | os.X_OK)


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
