"""A sweep from the experiment file to tables and pictures; ``breakwater sweep`` calls it."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from deploy import files
from deploy.sweeps.experiment import Cell, PlannedRun
from deploy.sweeps.results import FAILED, Outcome, as_csv, as_markdown, choose, number, read_outcome, row, summaries
from deploy.sweeps.runner import SweepOptions, run_all
from foundation.errors import ConfigError
from foundation.files import lock, replace_text

COPY, LOCK = "experiment.toml", ".lock"
"""In the sweep's folder: a copy of the experiment file, and the lock that keeps a second sweep out."""


def sweep(options: SweepOptions) -> int:
    """Run everything that has not been run, write tables and pictures; return the exit status.

    Raises:
        ConfigError: the folder cannot be used.
    """
    with _claimed(options.out):
        return _sweep(options)


def _sweep(options: SweepOptions) -> int:
    plan, out = options.plan, options.out
    _compare(options)
    began = time.monotonic()
    tuned, chosen = list[Outcome](), dict[Cell, str]()
    try:
        if plan.file.tune is not None:
            tuned = _run("tuning", plan.tuning(), options)
            chosen = choose(tuned, plan.file.tune)
            for rest, value in chosen.items():
                print(f"{rest.label or 'all'}: {plan.file.tune.axis} {value}")
        outcomes = _run("runs", plan.runs(chosen), options)
    except KeyboardInterrupt:
        print(f"interrupted; the same command continues in {out}")
        raise
    _write(options, tuned, outcomes)
    from deploy.sweeps.figures import draw_all  # matplotlib takes a second to import, which --help need not wait for

    pictures = draw_all(plan.file, outcomes, out)
    failed = [outcome for outcome in (*tuned, *outcomes) if outcome.status in FAILED]
    written = ", ".join([str(out / "table.md"), "table.csv", "summary.csv", *(picture.name for picture in pictures)])
    print(f"{len(outcomes)} runs in {time.monotonic() - began:.0f} s: {written}")
    for outcome in failed:
        print(f"{outcome.status}: {outcome.run.label}: {outcome.reason}")
    for outcome in (*tuned, *outcomes):
        if outcome.warning:
            print(f"warning: {outcome.run.label}: {outcome.warning}")
    return 1 if failed else 0


def _run(stage: str, runs: Sequence[PlannedRun], options: SweepOptions) -> list[Outcome]:
    """Run what has not been run, and print a line for each; return all in the order of the plan."""
    done = (read_outcome(run, options.out / run.folder) for run in runs)
    found = {outcome.run.folder: outcome for outcome in done if outcome is not None}
    todo = [run for run in runs if run.folder not in found]
    if not options.in_process and todo:
        most = max(run.config.federation.clients for run in todo)
        files.allow(files.for_server(most), f"a run of {most} clients")
        files.allow(files.for_launcher(options.jobs * (most + 2)), f"a sweep of {options.jobs} such runs at a time")
    beside = f", {options.jobs} at a time" if options.jobs > 1 else ""
    kept = f", {len(found)} done before" if found else ""
    print(f"{stage}: {len(runs)} runs{kept}; {options.how}{beside}", flush=True)
    spent = 0.0
    for ended, (outcome, seconds) in enumerate(run_all(todo, options), 1):
        found[outcome.run.folder] = outcome
        spent += seconds
        left = spent / ended * (len(todo) - ended) / options.jobs
        print(f"[{ended}/{len(todo)}] {_line(outcome)}  {seconds:.1f} s{_left(left)}", flush=True)
    return [found[run.folder] for run in runs]


def _line(outcome: Outcome) -> str:
    """Return a run in a line."""
    if outcome.status in FAILED:
        return f"{outcome.run.label}: {outcome.status}: {outcome.reason}"
    shown = [f"{name} {number(value, name)}" for name, value in outcome.measures.items()]
    return f"{outcome.run.label}: {outcome.status}  {'  '.join(shown)}"


def _left(seconds: float) -> str:
    if seconds < 1:
        return ""
    return f", about {seconds / 60:.0f} min left" if seconds >= 90 else f", about {seconds:.0f} s left"


def _write(options: SweepOptions, tuned: Sequence[Outcome], outcomes: Sequence[Outcome]) -> None:
    file, out = options.plan.file, options.out
    hows = sorted({outcome.how for outcome in outcomes if outcome.how})
    preface = [
        f"{len(outcomes)} runs of `{options.path.name}` ({', '.join(hows) or 'none finished'}), "
        f"seeds {', '.join(map(str, file.seeds))}; {time.strftime('%Y-%m-%d')}. Each figure is the median over the "
        "seeds, with the range in brackets."
    ]
    if file.tune is not None:
        preface.append(
            f"`{file.tune.axis}` was chosen for each combination on seed {', '.join(map(str, file.tune.seeds))}; "
            "tuning.csv has what was tried."
        )
        replace_text(out / "tuning.csv", as_csv([row(o, file.targets) for o in tuned]))
    replace_text(out / "table.csv", as_csv([row(o, file.targets) for o in outcomes]))
    replace_text(out / "summary.csv", as_csv(summaries(outcomes, file.targets)))
    page = as_markdown(file.title, list(file.axes), outcomes, file.targets, preface)
    replace_text(out / "table.md", page)


def _compare(options: SweepOptions) -> None:
    """Keep a copy of the file, and print a line if the folder was begun with another one."""
    copy = options.out / COPY
    before = copy.read_text(encoding="utf-8") if copy.exists() else None
    if before is not None and before != options.plan.text:
        rest = "only runs whose config has changed are run again"
        print(f"{options.path} has changed since the sweep in {options.out} began: {rest}")
    copy.write_text(options.plan.text, encoding="utf-8")


@contextmanager
def _claimed(out: Path) -> Iterator[None]:
    """Within: no other sweep uses the folder.

    Raises:
        ConfigError: it cannot be used, or another one does.
    """
    try:
        if out.exists() and any(out.iterdir()) and not (out / COPY).exists():
            raise ConfigError(f"--out {out}: is not empty and holds no sweep; choose another folder")
        out.mkdir(parents=True, exist_ok=True)
        with (out / LOCK).open("w") as file:
            if not lock(file.fileno()):
                raise ConfigError(f"--out {out}: another sweep is running there")
            yield
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be used: {error.strerror or error}") from None
