"""Sweeps without running anything: what a file means, what is wrong with one, and what tables and pictures say."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deploy.sweeps.experiment import Cell, Plan, PlannedRun, Target, Tune, load_plan
from deploy.sweeps.figures import draw_all
from deploy.sweeps.results import NOTE, Outcome, as_csv, as_markdown, choose, note, read_outcome, row, summaries
from deploy.sweeps.runner import default_jobs
from foundation.errors import ConfigError
from server.run_folder.record import to_line
from tests.rounds import RECORD

ROOT = Path(__file__).parents[3]
EXPERIMENTS = sorted((ROOT / "benchmarks" / "experiments").glob("*.toml"))
BASE = """
[federation]
clients = 5
byzantine = 1
[task]
kind = "digits"
model = "softmax"
[strategy]
kind = "byz-vr-marina-pp"
rounds = 10
gamma = 0.3
p = 0.2
cohort = 4
batch = 16
alpha = 2.0
[attack]
kind = "bf"
"""
FILE = """
title = "A test"
base = "base.toml"
set = ["strategy.rounds=4"]
seeds = [1, 2]
[axes.attack]
bf = "attack.kind=bf"
shb = ["attack.kind=shb", "attack.s=2.0"]
[axes.alpha]
key = "strategy.alpha"
values = [0.5, 2.0, 8]
"""


def plan_of(folder: Path, text: str = FILE, **options: Any) -> Plan:
    (folder / "base.toml").write_text(BASE, encoding="utf-8")
    path = folder / "experiment.toml"
    path.write_text(text, encoding="utf-8")
    return load_plan(path, **options)


# --- the file ---------------------------------------------------------------------------------------------------------


def test_every_combination_is_run_with_every_seed(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    runs = plan.runs({})
    assert [run.label for run in runs[:3]] == [
        "attack bf, alpha 0.5, seed 1",
        "attack bf, alpha 0.5, seed 2",
        "attack bf, alpha 2.0, seed 1",
    ]
    assert len(runs) == len({run.folder for run in runs}) == 2 * 3 * 2
    last = runs[-1].config
    assert (last.federation.seed, last.strategy.rounds, last.attack.kind) == (2, 4, "shb")  # type: ignore[union-attr]  # it has one
    assert last.strategy.model_dump()["alpha"] == 8
    assert last.checkpoint.every == 0
    assert runs[-1].folder == "runs/attack-shb_alpha-8/seed-2"


def test_combinations_can_be_left_out(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, FILE.replace("[axes.attack]", 'exclude = [{attack = "shb", alpha = "8"}]\n[axes.attack]'))
    assert [cell.label for cell in plan.cells()][-1] == "attack shb, alpha 2.0"
    assert len(plan.cells()) == 5


def test_a_checkpoint_rate_of_the_config_is_kept(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, changes=["checkpoint.every=3"])
    assert plan.runs({})[0].config.checkpoint.every == 3


def test_seeds_and_settings_of_the_command_line_come_last(tmp_path: Path) -> None:
    runs = plan_of(tmp_path, seeds=[7], changes=["strategy.rounds=9"]).runs({})
    assert {run.seed for run in runs} == {7}
    assert {run.config.strategy.rounds for run in runs} == {9}


TUNED = (
    FILE
    + """
[tune]
axis = "alpha"
measure = "accuracy"
seeds = [5]
set = ["strategy.rounds=2"]
"""
)


def test_only_the_chosen_value_of_a_tuned_axis_is_run_to_the_end(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, TUNED)
    trials = plan.tuning()
    assert len(trials) == 2 * 3
    assert {(t.seed, t.config.strategy.rounds, t.folder.partition("/")[0]) for t in trials} == {(5, 2, "tuning")}
    bf, shb = Cell((("attack", "bf"),)), Cell((("attack", "shb"),))
    runs = plan.runs({bf: "0.5", shb: "8"})
    assert [run.cell.label for run in runs] == ["attack bf, alpha 0.5"] * 2 + ["attack shb, alpha 8"] * 2


def test_trials_with_the_settings_of_the_runs_are_not_run_twice(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, TUNED.replace('set = ["strategy.rounds=2"]', "").replace("seeds = [5]", "seeds = [1]"))
    assert plan.tuning()[0].folder == plan.runs({Cell((("attack", "bf"),)): "0.5"})[0].folder


def test_the_reduced_form_is_the_same_experiment_made_small(tmp_path: Path) -> None:
    reduced = """
[reduced]
set = ["strategy.rounds=2"]
seeds = [9]
only = {alpha = ["0.5", "8"]}
axes.attack = {none = ["federation.byzantine=0", "attack.kind=none"]}
"""
    runs = plan_of(tmp_path, FILE + reduced, reduced=True).runs({})
    assert [run.label for run in runs] == ["attack none, alpha 0.5, seed 9", "attack none, alpha 8, seed 9"]
    assert {(run.config.strategy.rounds, run.config.attack) for run in runs} == {(2, None)}


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
@pytest.mark.parametrize("reduced", [False, True], ids=["whole", "reduced"])
def test_every_experiment_that_ships_can_be_run(path: Path, reduced: bool) -> None:
    plan = load_plan(path, reduced=reduced)
    assert plan.cells()
    assert plan.file.figures
    if reduced:
        assert all(run.config.task.kind == "digits" for run in plan.runs({}))
    else:
        assert len(plan.file.seeds) >= 3


MISTAKES = {
    "no TOML": ("title = ", ["not TOML: Invalid value (at end of document)"]),
    "missing": ("seeds = [1]", ["title: missing", "base: missing"]),
    "unknown key": (FILE.replace("seeds", "sseeds"), ["seeds: missing", "sseeds: unknown key; did you mean seeds?"]),
    "no seeds": (
        FILE.replace("[1, 2]", "[]"),
        ["seeds = []: List should have at least 1 item after validation, not 0"],
    ),
    "a seed twice": (FILE.replace("[1, 2]", "[1, 1]"), ["seeds = [1, 1]: a seed is listed twice"]),
    "no setting": (
        FILE.replace('"attack.kind=bf"', '"attack.kind"'),
        ['axes.attack: bf: must be "section.key=value" or a list of such'],
    ),
    "no key": (
        FILE.replace('"strategy.alpha"', '"alpha"'),
        ['axes.alpha: key = \'alpha\': must be "section.key", for example "strategy.alpha"'],
    ),
    "unknown setting": (
        FILE.replace("strategy.alpha", "strategy.alfa"),
        ["attack bf, alpha 0.5: [strategy] alfa: unknown key; did you mean alpha?"],
    ),
    "a value out of bounds, told once": (
        FILE.replace("rounds=4", "rounds=0"),
        ["attack bf, alpha 0.5: [strategy] rounds = 0: must be greater than or equal to 1"],
    ),
    "two mistakes": (
        FILE + '[[figures]]\nname = "a"\nx = "rouns"\npanels = "atack"\nlines = "alpha"\n',
        [
            "figure 'a': panels = 'atack': no such axis; did you mean attack?",
            "figure 'a': x = 'rouns': neither an axis nor one of round, bytes_up, bytes_down, seconds",
            "figure 'a': axis 'attack' has 2 values: name it in panels, rows, lines, styles or where",
        ],
    ),
    "figure of a value that is not there": (
        FILE + '[[figures]]\nname = "a"\nlines = "alpha"\nwhere = {attack = "lf"}\n',
        ["figure 'a': where.attack = 'lf': no such value; did you mean bf?"],
    ),
    "unknown measure": (
        FILE + '[[targets]]\nmeasure = "gaps"\nvalue = 1.0\n',
        ["targets.0.measure = 'gaps': must be 'loss', 'accuracy', 'gap' or 'trigger'"],
    ),
    "tuning of nothing": (TUNED.replace('axis = "alpha"', 'axis = "gamma"'), ["tune.axis = 'gamma': no such axis"]),
    "nothing left": (
        FILE.replace("[axes.attack]", 'exclude = [{attack = "shb"}, {attack = "bf"}]\n[axes.attack]'),
        ["exclude: leaves no combination to run"],
    ),
    "no base": (FILE.replace("base.toml", "nowhere.toml"), ["nowhere.toml: no such file"]),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_each_mistake_in_a_file_is_one_line(tmp_path: Path, case: str) -> None:
    text, expected = MISTAKES[case]
    with pytest.raises(ConfigError) as caught:
        plan_of(tmp_path, text)
    lines = str(caught.value).splitlines()
    assert len(lines) == len(expected), lines
    for line, part in zip(lines, expected, strict=True):
        assert line.startswith(f"{tmp_path / 'experiment.toml'}: ")
        assert part in line


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"changes": ["strategy.alpha=1.0"]}, "--set strategy.alpha=1.0: axis 'alpha' sets strategy.alpha too"),
        ({"changes": ["federation.seed=1"]}, "--set federation.seed=1: the sweep sets it; use --seeds"),
        ({"reduced": True}, "--reduced: the file has no [reduced] table"),
    ],
    ids=["axis", "seed", "reduced"],
)
def test_options_that_the_file_has_no_room_for_are_one_line(
    tmp_path: Path, options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_of(tmp_path, **options)
    assert str(caught.value) == f"{tmp_path / 'experiment.toml'}: {expected}"


def test_runs_in_one_process_get_a_core_each_and_federations_four() -> None:
    assert default_jobs(in_process=True) >= default_jobs(in_process=False) >= 1


# --- results ----------------------------------------------------------------------------------------------------------


def outcome_of(
    folder: Path, run: PlannedRun, accuracies: Sequence[float], *, losses: Sequence[float | None] | None = None
) -> Outcome:
    """A run folder whose model was measured after rounds 1, 2, ..., each of 100 bytes up; a loss of None diverges."""
    losses = losses or [1 - a for a in accuracies]
    path = folder / run.folder
    path.mkdir(parents=True)
    (path / NOTE).write_text(note(run, "in process"), encoding="utf-8")
    lines = [
        json.loads(to_line(replace(RECORD, round=r, bytes_up=100, bytes_down=10, round_s=0.1), {}))
        | {"loss": loss, "accuracy": accuracy}
        for r, (accuracy, loss) in enumerate(zip(accuracies, losses, strict=True), 1)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    summary = {
        "status": "diverged" if losses[-1] is None else "finished",
        "rounds": len(lines),
        "loss": losses[-1],
        "accuracy": accuracies[-1],
        "start": {"loss": 2.0, "accuracy": 0.1},
        "bytes_up": 100 * len(lines),
        "bytes_down": 10 * len(lines),
        "wall_s": 1.5,
        "rejected": {"silent": 2},
    }
    (path / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    found = read_outcome(run, path)
    assert found is not None
    return found


def test_a_run_is_done_if_it_ended_with_this_config(tmp_path: Path) -> None:
    first, other = plan_of(tmp_path).runs({})[:2]
    outcome_of(tmp_path, first, [0.5])
    assert read_outcome(first, tmp_path / first.folder) is not None
    assert read_outcome(other, tmp_path / first.folder) is None, "another seed"
    summary = tmp_path / first.folder / "summary.json"
    summary.write_text(summary.read_text(encoding="utf-8").replace("finished", "interrupted"), encoding="utf-8")
    assert read_outcome(first, tmp_path / first.folder) is None


def test_a_table_has_a_row_for_every_run_whatever_became_of_it(tmp_path: Path) -> None:
    runs = plan_of(tmp_path).runs({})
    good = outcome_of(tmp_path, runs[0], [0.3, 0.8, 0.9])
    wild = outcome_of(tmp_path, runs[1], [0.3, 0.1], losses=[0.7, None])
    lost = Outcome(runs[2], "failed", tmp_path / "none", reason="no data")
    targets = [Target(measure="accuracy", value=0.8)]
    table = list(csv.DictReader(io.StringIO(as_csv([row(o, targets) for o in (good, wild, lost)]))))
    assert [line["status"] for line in table] == ["finished", "diverged", "failed"]
    assert (table[0]["rounds to accuracy 0.8"], table[0]["bytes_up to accuracy 0.8"]) == ("2", "200")
    assert (table[1]["loss"], table[1]["rounds to accuracy 0.8"]) == ("inf", "")
    assert (table[2]["loss"], table[2]["reason"]) == ("", "no data")
    assert table[0]["attack"] == "bf"
    assert "gap" not in table[0], "no run has one"


def test_a_summary_has_the_median_and_the_range_over_the_seeds(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, seeds=[1, 2, 3])
    runs = plan.runs({})[:3]
    ends = ([0.3, 0.7], [0.3, 0.9], [0.2, 0.3])
    outcomes = [outcome_of(tmp_path, run, end) for run, end in zip(runs, ends, strict=True)]
    targets = [Target(measure="accuracy", value=0.7)]
    (line,) = summaries(outcomes, targets)
    assert (line["accuracy median"], line["accuracy min"], line["accuracy max"]) == (0.7, 0.3, 0.9)
    assert (line["rounds to accuracy 0.7 n"], line["rounds to accuracy 0.7 median"]) == (2, 2)
    page = as_markdown("Title", ["attack", "alpha"], outcomes, targets, ["words"])
    assert "| bf | 0.5 | 0.3 (0.1 to 0.7) | 70.0 % (30.0 % to 90.0 %) | 2 (2 of 3) | 0.0002 |" in page


def test_a_table_says_what_clients_claim_and_that_nobody_measured(tmp_path: Path) -> None:
    runs = plan_of(tmp_path).runs({})
    served, claimed, unknown = (outcome_of(tmp_path, run, [0.3, 0.7]) for run in runs[:3])
    claimed = replace(claimed, summary={**claimed.summary, "measured_by": "clients"})
    nothing = {"loss": None, "accuracy": None, "start": None, "measured_by": "none"}
    unknown = replace(unknown, summary={**unknown.summary, **nothing})
    found = list(csv.DictReader(io.StringIO(as_csv([row(each, []) for each in (served, claimed, unknown)]))))
    assert [each["measured_by"] for each in found] == ["", "clients", ""]
    assert [each["accuracy"] for each in found] == ["0.7", "0.7", ""]
    assert "measured_by" not in as_csv([row(served, [])])
    note = "Loss and accuracy are medians of what clients claim."
    assert note in as_markdown("Title", ["attack", "alpha"], [served, claimed], [], [])
    assert note not in as_markdown("Title", ["attack", "alpha"], [served, unknown], [], [])


def test_a_page_says_what_diverged_and_what_failed(tmp_path: Path) -> None:
    runs = plan_of(tmp_path).runs({})
    wild = outcome_of(tmp_path, runs[0], [0.3, 0.1], losses=[0.7, None])
    lost = Outcome(runs[1], "failed", tmp_path, reason="a | b\nc")
    page = as_markdown("Title", ["attack", "alpha"], [wild, lost], [], [])
    assert "| bf | 0.5 | diverged |" in page
    assert "2, 1 diverged, 1 failed |" in page
    assert "- attack bf, alpha 0.5, seed 2: a \\| b c (`runs/attack-bf_alpha-0.5/seed-2`)" in page


def test_the_step_that_reaches_the_target_first_is_chosen_and_never_one_that_diverged(tmp_path: Path) -> None:
    trials = plan_of(tmp_path, TUNED).tuning()
    quick = outcome_of(tmp_path, trials[0], [0.9, 0.9])
    slow = outcome_of(tmp_path, trials[1], [0.1, 0.95])
    wild = outcome_of(tmp_path, trials[2], [0.99, 0.99], losses=[0.1, None])
    best = Tune(axis="alpha", measure="accuracy", seeds=[5])
    bf = Cell((("attack", "bf"),))
    assert choose([quick, slow, wild], best) == {bf: "2.0"}
    assert choose([quick, slow, wild], best.model_copy(update={"reach": 0.9})) == {bf: "0.5"}
    assert choose([quick, slow, wild], best.model_copy(update={"reach": 0.999})) == {bf: "2.0"}
    assert choose([Outcome(trials[0], "failed", tmp_path)], best) == {}


FIGURES = """
[[figures]]
name = "curves"
x = "bytes_up"
y = "loss"
panels = "attack"
lines = "alpha"
[[figures]]
name = "ends"
x = "alpha"
y = "accuracy"
lines = "attack"
[[figures]]
name = "cost"
x = "alpha"
y = "accuracy"
reach = 0.5
cost = "round"
lines = "attack"
"""


def test_figures_are_drawn_also_of_what_diverged_or_never_came(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, FILE + FIGURES)
    outcomes = [
        outcome_of(tmp_path, run, [0.2, 0.9], losses=[0.8, None] if run.seed == 2 else None)
        for run in plan.runs({})
        if not run.cell.has({"attack": "shb", "alpha": "8"})
    ]
    pictures = draw_all(plan.file, outcomes, tmp_path)
    assert [picture.name for picture in pictures] == ["curves.png", "ends.png", "cost.png"]
    before = [picture.read_bytes() for picture in pictures]
    assert all(image.startswith(b"\x89PNG") for image in before)
    assert [picture.read_bytes() for picture in draw_all(plan.file, outcomes, tmp_path)] == before
    assert draw_all(plan.file, [], tmp_path) == []
