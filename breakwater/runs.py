"""Runs: start one, open what it left behind, compare several.

    import breakwater as bw

    run = bw.run("demo.toml", overrides={"strategy.rounds": 200}, out="runs/first")
    run.status, run.accuracy, run.bytes_up
    run.metrics["gap"]
    bw.compare([run, bw.Run("runs/other")]).report("both.html")

A ``Run`` is a view of a run folder: it reads what is there when it is asked, also of a run that is under way.
"""

import os
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from deploy import logs
from deploy.child import ChildOptions, run_in_child
from deploy.folders import data_folder, new_folder, remove_unused
from deploy.local import LocalOptions, check_attack
from experiment.config import Config, Overrides, changed, load, parse
from experiment.explain import title
from foundation.errors import ConfigError, ProcessEnded
from foundation.signals import raising
from foundation.text import one_line
from server.monitor.exporters import Monitoring
from server.monitor.plot import Picture, picture
from server.monitor.report import REPORT, notebook, reading, write_comparison, write_report
from server.monitor.report.several import grouped
from server.monitor.suspects import Suspect
from server.run_folder import CONFIG, METRICS, SUMMARY
from server.run_folder.reader import each_round, read_model
from server.run_folder.record import Counts
from strategies.method import Vector
from strategies.strategy import RoundRecord, StalledError

if TYPE_CHECKING:
    import pandas as pd
    import torch

Columns = Mapping[str, NDArray[Any]]
"""Arrays of one length by name."""
PathLike = str | os.PathLike[str]
ModuleT = TypeVar("ModuleT", bound="torch.nn.Module")

_MEASURES = ("loss", "accuracy", "gap", "trigger")
_NUMBERS = ("bytes_up", "bytes_down", "round_s", "lam", "step_norm")


def run(
    config: PathLike | Config,
    *,
    overrides: Overrides | None = None,
    out: PathLike | None = None,
    data: PathLike | None = None,
    attackers: Sequence[str] = (),
    server_data: PathLike | None = None,
    processes: bool = True,
    quiet: bool = False,
    pictures: bool = True,
) -> "Run":
    """Run a federation on this machine to its end.

    It works in a script, with or without ``if __name__ == "__main__"``, in a thread and in a notebook. Ctrl-C ends the
    run in order, and no process is left behind, not even when this program is killed.

    Args:
        config: path of a TOML file, or a ``Config``.
        overrides: values to change: ``{"strategy.rounds": 200}``, or a list of ``"section.key=value"`` as on the
            command line.
        out: the run folder, which must not hold anything yet; default: runs/NAME-TIME.
        data: folder of the data sets; default: the environment variable BREAKWATER_DATA. With ``partition = "own"`` it
            has a sub-folder for each client, under the client's name.
        attackers: with ``partition = "own"``, the names of the clients that attack; default: the last f by name.
        server_data: with ``partition = "own"``, the folder of the server's own test set; default: it has none.
        processes: one process for the server and for each client, talking over sockets, as ``breakwater run`` does;
            False runs everything in this process, without sockets. Model and bytes are the same, bit for bit.
        quiet: print nothing but problems.
        pictures: leave a picture and a report in the run folder, which takes a second or two. False for many short
            runs.

    Returns:
        The run, whose ``status`` says how it ended: "finished", "diverged", "stalled" (too few clients answered), or
        "interrupted" where something else than this program stopped it.

    Raises:
        ConfigError: the config, its task or a folder cannot be used; one line for each problem.
        BreakwaterError: the run could not be completed, for example because its server was killed.
        KeyboardInterrupt: Ctrl-C; what the run had done by then is in its folder.
    """
    chosen = load_config(config, overrides)
    name = chosen.strategy.kind if isinstance(config, Config) else Path(config).stem
    folder = new_folder(None if out is None else Path(out), name, option="out").absolute()
    data_dir = data_folder(None if data is None else Path(data), option="data")
    config_dir = chosen.folder or Path.cwd()
    check_attack(chosen)
    if processes:
        where = None if data_dir is None else str(data_dir)
        run_in_child(
            ChildOptions(
                config=chosen.to_toml(),
                out=str(folder),
                data=where,
                config_dir=str(config_dir),
                quiet=quiet,
                pictures=pictures,
                attackers=list(attackers),
                server_data=None if server_data is None else str(server_data),
            )
        )
    else:
        _run_here(
            LocalOptions(
                config=chosen,
                out=folder,
                data=data_dir,
                config_dir=config_dir,
                monitoring=Monitoring(quiet=quiet, silent=quiet, pictures=pictures),
                attackers=list(attackers),
                server_data=None if server_data is None else Path(server_data),
            )
        )
    if not (folder / METRICS).is_file():
        raise ProcessEnded("the run was interrupted before it began")
    return Run(folder if out is None else out)


def load_config(config: PathLike | Config, overrides: Overrides | None = None) -> Config:
    """Read a config file and change values of it.

    Args:
        config: path of a TOML file; or a ``Config``, of which a changed one is returned.
        overrides: see ``run``.

    Raises:
        ConfigError: one line for each problem, with the key, the value, the bound and the fix.
    """
    if isinstance(config, Config):
        return changed(config, overrides or ())
    return load(Path(config), overrides or ())


def _run_here(options: LocalOptions) -> None:
    """Run a federation in this process, and leave the process as it was."""
    from deploy.inprocess import run_in_process

    logs.make_folder(options.out / "logs", f"run folder {options.out}")
    with ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():
            stack.enter_context(raising(ctrl_c=KeyboardInterrupt))  # the first one ends it in order
        stack.enter_context(logs.within(options.out / "logs" / "server.log", terminal=not options.monitoring.quiet))
        stack.enter_context(_threads_restored())
        try:
            run_in_process(options)
        except StalledError:
            pass  # the summary has it
        except BaseException:
            remove_unused(options.out)
            raise


@contextmanager
def _threads_restored() -> Iterator[None]:
    """Within: tasks may set the numbers of threads of BLAS and torch; afterwards they are as before."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # ships no types; comes with scikit-learn

    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch is not None else None
    with threadpool_limits(limits=1, user_api="blas"):
        try:
            yield
        finally:
            if torch is not None:
                torch.set_num_threads(threads)


class Run:
    """A run folder, of a run that has ended or is under way, of this version or an older one.

    Properties read the folder when they are asked, so those of a run under way change.

    Args:
        folder: the run folder.

    Raises:
        ConfigError: no run is there.
    """

    def __init__(self, folder: PathLike) -> None:
        self._folder = Path(folder)
        self._stamp: Any = None
        self._read: reading.Run | None = None
        self._columns: Columns | None = None
        if not (self._folder / METRICS).is_file():
            raise ConfigError(f"{self._folder}: no run is there ({METRICS} is missing)")

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self._folder

    @property
    def status(self) -> str:
        """How the run ended: "finished", "diverged", "stalled", "interrupted" or "killed"; "going" while it is under
        way.
        """
        return self._now().status

    @property
    def rounds(self) -> int:
        """How many rounds have been run."""
        return int(self._now().total("round"))

    @property
    def loss(self) -> float | None:
        """The training objective f(x) of the last model that was measured; None where it is not finite or unknown."""
        return self._now().last("loss")

    @property
    def accuracy(self) -> float | None:
        """Share of correct predictions of that model, in [0, 1]; None where the task has none."""
        return self._now().last("accuracy")

    @property
    def measured_by(self) -> str:
        """Whose loss and accuracy these are: "server"; "clients" for the median of what they claim; or "none"."""
        run = self._now()
        if "measured_by" in (run.summary or {}):
            return str((run.summary or {})["measured_by"])
        return "clients" if run.claimed else "server" if run.has("loss") else "none"

    @property
    def gap(self) -> float | None:
        """f(x) - f* of that model; None where the task does not know f*."""
        return self._now().last("gap")

    @property
    def bytes_up(self) -> int:
        """Bytes from all clients to the server, over the whole run."""
        return int(self._now().total("bytes_up"))

    @property
    def bytes_down(self) -> int:
        """Bytes from the server to all clients, over the whole run."""
        return int(self._now().total("bytes_down"))

    @property
    def wall_s(self) -> float:
        """Seconds spent on rounds."""
        summary = self._now().summary or {}
        return float(summary.get("wall_s", self._now().total("seconds")))

    @property
    def summary(self) -> dict[str, Any]:
        """What ``summary.json`` holds (docs/run-folder.md lists the keys); empty for a run that has not ended."""
        return dict(self._now().summary or {})

    @property
    def config(self) -> Config:
        """The config, with all that it left open filled in: it runs again to the same bits.

        Raises:
            ConfigError: there is none yet, or this version cannot read it.
        """
        run = self._now()
        if not run.text:
            raise ConfigError(f"{self._folder}: no config is there ({CONFIG} is missing)")
        return run.config if run.config is not None else parse(run.text, name=str(self._folder / CONFIG))

    @property
    def metrics(self) -> Columns:
        """The rounds as columns, by name; each has one entry per round.

        * ``round``: 1, 2, ...; ``kind``: the method's word for the round, as text.
        * ``loss``, ``accuracy``, ``gap``, ``trigger``: of the model that the round ended with; NaN in rounds that
          were not measured and where there is no such measure; ``trigger`` is the success rate of a backdoor.
          ``measured`` is true in rounds that the server measured, ``claimed`` in those whose measures are medians of
          what clients claim.
        * ``bytes_up``, ``bytes_down``, ``round_s``: bytes and seconds of the round.
        * ``sampled``, ``replied``, ``accepted``, ``rejected``, ``clipped``: how many clients.
        * ``lam``: the clipping radius; NaN where nothing is clipped. ``step_norm``: length of the last step.
        """
        self._now()
        if self._columns is None:
            self._columns = _columns(each_round(self._folder))
        return self._columns

    def to_pandas(self) -> "pd.DataFrame":
        """Return ``metrics`` as a pandas data frame, with the round as its index.

        Raises:
            ImportError: pandas is not installed; one line that says how to install it.
        """
        try:
            import pandas
        except ImportError:
            raise _missing("pandas", "pip install pandas") from None
        frame: pd.DataFrame = pandas.DataFrame(dict(self.metrics)).set_index("round")
        return frame

    @property
    def model(self) -> Vector:
        """The trained parameters as one vector x, shape (d,): of the last model that was measured.

        Raises:
            ConfigError: there is no model yet, or its file does not give the order of its tensors.
        """
        x = read_model(self._folder).x
        if x is None:
            raise ConfigError(f"{self._folder}: the model's file gives no vector x; use state_dict()")
        return x

    def state_dict(self) -> "dict[str, torch.Tensor]":
        """Return the model of a torch task by names, for ``load_state_dict``: parameters and buffers.

        Raises:
            ConfigError: there is no model yet, or it has no names because the task is none of torch.
            ImportError: torch is not installed; one line that says how to install it.
        """
        tensors = read_model(self._folder).tensors
        if not tensors:
            raise ConfigError(f"{self._folder}: the model is one vector without names, no torch module; use model")
        try:
            import torch
        except ImportError:
            raise _missing("torch", "pip install 'breakwater[torch]'") from None
        return {name: torch.from_numpy(np.array(array)) for name, array in tensors.items()}

    def load_into(self, module: ModuleT) -> ModuleT:
        """Load the model of a torch task into a module of the same form, and return the module.

        Args:
            module: its parameters and buffers are overwritten.

        Raises:
            ConfigError: as ``state_dict``, or the module has other names or shapes; one line.
        """
        state, own = self.state_dict(), module.state_dict()
        for found, what in (
            (sorted(own.keys() - state.keys()), "the module has {}, which the model lacks"),
            (sorted(state.keys() - own.keys()), "the model has {}, which the module lacks"),
            (
                [
                    f"{name} of shape {tuple(state[name].shape)}"
                    for name in state.keys() & own.keys()
                    if state[name].shape != own[name].shape
                ],
                "the model has {}, the module another shape",
            ),
        ):
            if found:
                some = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
                raise ConfigError(f"{self._folder}: the model does not fit this module: {what.format(some)}")
        module.load_state_dict(state)
        return module

    def report(self) -> Path:
        """Return the path of the run's report, a page for a browser; it is written if missing or out of date.

        Raises:
            ConfigError: it cannot be written.
        """
        page, summary = self._folder / REPORT, self._folder / SUMMARY
        if self.status in ("going", "killed") or not page.exists() or page.stat().st_mtime < summary.stat().st_mtime:
            write_report(self._folder)
        return page

    def plot(self) -> Picture:
        """Return accuracy, where the task has one, and loss or gap against rounds, as a matplotlib figure."""
        run = self._now()
        return picture({self._label: (run.start, run.rounds)}, title="" if run.config is None else title(run.config))

    def suspects(self) -> list[Suspect]:
        """Return the clients, the most suspicious first: a ranking to look into, not a verdict."""
        return list(self._now().suspects)

    def __repr__(self) -> str:
        """Return folder, status and the main numbers on one line."""
        parts = [f"{self.rounds:,} rounds"]
        if self.accuracy is not None:
            parts.append(f"accuracy {100 * self.accuracy:.1f} %")
        for name in ("gap", "loss"):
            if (value := getattr(self, name)) is not None:
                parts.append(f"{name} {value:.4g}")
                break
        if self.measured_by == "clients":
            parts[-1] += " (claimed)"
        return f"<Run {one_line(str(self._folder), 200)}: {one_line(self.status, 40)}, {', '.join(parts)}>"

    def _repr_html_(self) -> str:
        """Return numbers and curves for a notebook."""
        return notebook.of_run(self._now())

    @property
    def _label(self) -> str:
        return self._folder.absolute().name

    def _now(self) -> reading.Run:
        """Return the folder as it is now; read again only if it has changed."""
        files = (self._folder / name for name in (METRICS, SUMMARY, CONFIG))
        stamp = [(found.st_mtime_ns, found.st_size) if (found := _stat(file)) else None for file in files]
        if self._read is None or stamp != self._stamp or self._read.going:
            self._read, self._stamp, self._columns = reading.read(self._folder), stamp, None
        return self._read


class Comparison:
    """Several runs side by side, see ``compare``.

    Args:
        runs: at least one.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = list(runs)

    def report(self, path: PathLike) -> Path:
        """Write a page that compares the runs, as ``breakwater report`` does, and return its path.

        Args:
            path: of the page.

        Raises:
            ConfigError: it cannot be written; one line.
        """
        out = Path(path)
        if out.exists() and not out.is_file():
            raise ConfigError(f"{out}: is not a regular file; give the path of a page, such as both.html")
        write_comparison([run.folder for run in self.runs], out)
        return out

    def plot(self) -> Picture:
        """Return the curves of all runs against rounds, as a matplotlib figure."""
        found = [run._now() for run in self.runs]
        labels = {id(run): group.label for group in grouped(found) for run in group.runs}
        several = len(set(labels.values())) < len(found)
        named: dict[str, Any] = {}
        for number, (run, now) in enumerate(zip(self.runs, found, strict=True)):
            label = f"{labels[id(now)]} ({run._label})" if several else labels[id(now)]
            named[label if label not in named else f"{label} {number}"] = (now.start, now.rounds)
        return picture(named)

    def __repr__(self) -> str:
        """Return the folders on one line."""
        return f"<Comparison of {', '.join(one_line(str(run.folder), 80) for run in self.runs)}>"

    def _repr_html_(self) -> str:
        """Return numbers and curves for a notebook."""
        return notebook.of_several([run._now() for run in self.runs])


def compare(runs: Iterable[Run | PathLike]) -> Comparison:
    """Compare runs: a page, a figure, or a table in a notebook. Runs that differ in the seed alone share a line.

    Args:
        runs: at least one, or their folders.

    Raises:
        ConfigError: a folder holds no run.
        ValueError: there is none to compare.
    """
    if isinstance(runs, str | os.PathLike | Run):
        raise ValueError("compare takes a list of runs, as in compare([run, other])")
    found = [run if isinstance(run, Run) else Run(run) for run in runs]
    if not found:
        raise ValueError("compare: no runs are given")
    return Comparison(found)


def _columns(rounds: Iterable[RoundRecord]) -> Columns:
    rows: list[dict[str, Any]] = []
    for record in rounds:
        seen, by = record.headline, record.measured_by
        row: dict[str, Any] = {"round": record.round, "kind": record.kind}
        row |= {"measured": by == "server", "claimed": by == "clients"}
        row |= {name: getattr(seen, name, None) for name in _MEASURES}
        row |= {name: getattr(record, name) for name in _NUMBERS}
        rows.append(row | Counts.of(record)._asdict())
    counts = dict.fromkeys(("round", "bytes_up", "bytes_down", *Counts._fields), np.int64)
    types: dict[str, Any] = counts | {"kind": np.str_, "measured": np.bool_, "claimed": np.bool_}
    names = ("round", "kind", "measured", "claimed", *_MEASURES, *_NUMBERS, *Counts._fields)
    columns = {name: np.array([row[name] for row in rows], dtype=types.get(name, np.float64)) for name in names}
    for column in columns.values():
        column.flags.writeable = False
    return MappingProxyType(columns)


def _stat(file: Path) -> os.stat_result | None:
    try:
        return file.stat()
    except OSError:
        return None


def _missing(name: str, command: str) -> ImportError:
    """Return the error of an optional library that is not there."""
    return ImportError(f"{name} is not installed: {command}", name=name)
