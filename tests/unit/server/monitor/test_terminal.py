"""What a run shows while it goes: its state, the live view of it, and the lines where there is no terminal."""

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from experiment.config import parse
from server.monitor.live import HISTORY, MAX_REASONS, OTHERS, LiveRun, State, Title, checked, sparkline
from server.monitor.terminal import RunProgress, last_line, plain, view
from server.run_folder.record import from_line, to_line
from strategies.method import Evaluation
from strategies.strategy import RoundRecord
from tests.rounds import MEASURED, RECORD, START

TITLE = Title(
    run="first",
    method="byz-vr-marina-pp",
    rule="nnm + cm",
    task="digits",
    attack="alie",
    clients=5,
    byzantine=2,
    rounds=100,
)
COUNTS = {"sampled": 3, "replied": 3, "accepted": 2, "answered": 2, "rejected": 1, "clipped": 1}
HOSTILE = "[red]x[/red]\x1b[2J\x1b]0;title\x07\r\nforged\u202e\u2028line" + 1000 * "y"


def run(records: list[RoundRecord], title: Title = TITLE) -> LiveRun:
    live = LiveRun(title, lambda: 4, "127.0.0.1:9090")
    live.begin(START)
    for record in records:
        live.add(record)
    return live


def rounds(count: int, every: int = 2) -> list[RoundRecord]:
    return [replace(RECORD, round=k, evaluation=MEASURED if k % every == 0 else None) for k in range(1, count + 1)]


def again(records: list[RoundRecord]) -> list[RoundRecord]:
    """Return rounds as they are read back from metrics.jsonl."""
    written: dict[int, str] = {}
    read: dict[int, str] = {}
    return [from_line(to_line(record, written), read) for record in records]


def drawn(state: State, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(view(state, width))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def shown(records: list[RoundRecord], *, terminal: bool = False, quiet: bool = False, **env: str) -> str:
    """Return what a run of these rounds writes."""
    live = LiveRun(TITLE, lambda: 4)
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100, _environ=env)
    with RunProgress(console, live, quiet=quiet) as progress:
        live.begin(START)
        progress.start()
        for record in records:
            live.add(record)
            progress.add(record)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


# --- the state ---


def test_a_state_counts_the_last_round_and_all_of_them() -> None:
    state = run(rounds(4)).state()
    assert state["status"] == "running"
    assert (state["round"], state["measured"], state["connected"]) == (4, 4, 4)
    assert (state["loss"], state["accuracy"], state["gap"]) == (0.5, 0.75, 0.25)
    assert state["last"] == COUNTS
    assert state["all"] == {name: 4 * count for name, count in COUNTS.items()}
    assert (state["up"], state["down"]) == (400, 4000)
    assert state["round_s"] == pytest.approx(RECORD.round_s)
    assert state["reasons"] == {"wrong shape": 4}
    assert state["rejected_of"] == {"client-1": 4}
    assert state["rejections"][-1] == {"round": 4, "client": "client-1", "reason": RECORD.rejected[0][1]}
    assert state["history"] == {"loss": [2.0, 0.5, 0.5], "accuracy": [0.25, 0.75, 0.75], "gap": [1.5, 0.25, 0.25]}
    assert state["left_s"] > 0


def test_a_reply_is_counted_whether_good_or_bad_and_silence_is_none() -> None:
    missing = [
        ("a", "silent: no reply within 3 s"),
        ("b", "disconnected: worker 1 (b)"),
        ("c", "not connected: node 5"),
    ]
    record = replace(RECORD, cohort=[0, 1, 2, 3, 4, 5], rejected=[*missing, ("d", "oversize: 9 bytes")])
    last = run([record]).state()["last"]
    assert (last["sampled"], last["replied"], last["accepted"], last["rejected"]) == (6, 3, 2, 4)


def test_a_state_is_json_also_when_the_run_diverges() -> None:
    lost = replace(RECORD, evaluation=Evaluation(loss=math.nan, accuracy=0.1, gap=math.inf), lam=math.inf)
    state = json.loads(run([lost]).to_json())
    assert (state["loss"], state["gap"], state["lam"], state["accuracy"]) == (None, None, None, 0.1)
    assert "not finite" in drawn(state)


def test_rounds_read_from_a_run_folder_give_the_same_state() -> None:
    changing = ("left_s", "rounds_s", "up_s", "down_s", "round_s", "now", "round_at")
    states = [run(records).state() for records in (rounds(6), again(rounds(6)))]
    shown, read = ({k: v for k, v in state.items() if k not in changing} for state in states)
    assert shown == read


def test_what_is_kept_of_a_long_run_is_bounded() -> None:
    live = run([])
    for k in range(1, 3000):
        who = f"client-{k}", f"kind {k}: said"
        live.add(replace(RECORD, round=k, evaluation=replace(MEASURED, loss=float(k)), rejected=[who]))
    state = live.state()
    losses = state["history"]["loss"]
    assert HISTORY <= len(losses) <= 2 * HISTORY
    assert (losses[0], losses[-1]) == (2.0, 2999.0)
    assert losses == sorted(losses)
    assert len(state["rejections"]) == 5
    assert len(state["rejected_of"]) == TITLE.clients + 1
    assert state["rejected_of"][OTHERS] == 2999 - TITLE.clients
    assert len(state["reasons"]) == MAX_REASONS + 1
    assert len(live.to_json()) < 20_000


def test_a_title_names_the_rule_with_what_stands_before_it() -> None:
    text = '[federation]\nclients = 4\nbyzantine = 1\n[attack]\nkind = "alie"\n[task]\nkind = "digits"\n'
    text += '[strategy]\nkind = "robust-sgd"\nrounds = 10\ngamma = 0.1\n[aggregator]\nkind = "cm"\npre = ["nnm"]\n'
    title = Title.of(parse(text), "a")
    assert (title.rule, title.attack, title.rounds) == ("nnm + cm", "alie", 10)


def test_every_state_of_ours_passes_as_one() -> None:
    live = LiveRun(TITLE, lambda: 4)
    state = live.state(parties=True)
    assert checked(state) == state
    lost = replace(RECORD, evaluation=Evaluation(loss=1.7e308, accuracy=0.1, gap=-math.inf), lam=math.nan)
    many = [replace(RECORD, round=k, evaluation=MEASURED, rejected=[(f"c{k}", f"{k}: x")]) for k in range(1, 200)]
    for records in ([], [lost], rounds(9), many):
        state = json.loads(run(records).to_json())
        assert checked(state) == state
    assert checked(state | {"away": "x", "goodbye": "y"}) == state | {"away": "x", "goodbye": "y"}
    assert checked(state | {"extra": [[]]}) == state, "a newer server's keys are left out"


NO_STATES: list[tuple[str, object]] = [
    ("measured", "\x1b[2J"),
    ("round", -(10**12)),
    ("clients", True),
    ("up", 10**400),
    ("loss", 10**400),
    ("gap", math.nan),
    ("round_s", "x"),
    ("attack", 5),
    ("status", None),
    ("away", ["x"]),
    ("connected", 0.5),
    ("last", {}),
    ("all", COUNTS | {"clipped": "\x1b[2J"}),
    ("all", COUNTS | {"more": 1}),
    ("history", {"loss": [1.0], "accuracy": []}),
    ("history", {"loss": [1.0], "accuracy": [], "gap": ["x"]}),
    ("history", {"loss": 1000 * [1.0], "accuracy": [], "gap": []}),
    ("reasons", ["x"]),
    ("reasons", {str(i): 1 for i in range(100)}),
    ("rejected_of", {"x": None}),
    ("rejections", 6 * [{"round": 1, "client": "x", "reason": "y"}]),
    ("rejections", [{"round": "\x1b[2J", "client": "x", "reason": "y"}]),
    ("rejections", [{"round": 1, "client": "x"}]),
]


@pytest.mark.parametrize(("key", "value"), NO_STATES, ids=[f"{key}-{i}" for i, (key, _) in enumerate(NO_STATES)])
def test_what_is_no_state_does_not_pass_as_one(key: str, value: object) -> None:
    state = run(rounds(4)).state()
    with pytest.raises(ValueError, match=f"^{key}$"):
        checked(state | {key: value})
    if key != "away":
        del state[key]
        with pytest.raises(ValueError, match=f"^{key}$"):
            checked(state)


# --- the live view ---


@pytest.mark.parametrize("width", [20, 40, 80, 120, 300])
def test_no_line_of_the_view_is_wider_than_the_terminal(width: int) -> None:
    live = run([replace(record, rejected=[(HOSTILE, HOSTILE)]) for record in rounds(9)])
    lines = drawn(live.state(), max(width, 40)).splitlines()
    assert len(lines) <= 16
    assert max(map(len, lines)) <= max(width, 40)


def test_the_view_tells_how_the_run_goes() -> None:
    text = drawn(run(rounds(40)).state())
    for words in (
        "byz-vr-marina-pp / nnm + cm  digits  2 of 5 attack by alie",
        "round 40/100",
        " 40 %",
        "loss       0.5",
        "f(x) - f*  2.5e-01",
        "accuracy   75.0 %",
        "12.3 ms a round",
        "4.0 kB up",
        "40.0 kB down",
        "connected 4/5  sampled 3  accepted 2  rejected 1  clipped 1",
        "66.7 % accepted  33.3 % rejected  50.0 % clipped",
        "127.0.0.1:9090  run folder first",
        "rejected   round 40  client-1  wrong shape: 3 values, expected 4",
    ):
        assert words in text, text


def test_the_view_of_a_run_that_waits_and_of_one_whose_server_is_away() -> None:
    waiting = LiveRun(TITLE, lambda: 3).state()
    assert "waiting for clients: 3 of 5 are connected" in drawn(waiting)
    assert "loss" not in drawn(waiting), "nothing has been measured"
    assert "the server is away: it was stopped; looking for it" in drawn(waiting | {"away": "it was stopped"})


def test_hostile_names_and_reasons_are_shown_as_plain_text() -> None:
    state = run([replace(RECORD, rejected=[(HOSTILE, HOSTILE)])]).state()
    text = drawn(state, 120)
    assert "[red]x[/red]?[2J?]0" in text
    assert all(c.isprintable() for c in text.replace("\n", ""))
    told = state | {"away": HOSTILE, "status": HOSTILE, "address": HOSTILE, "run": HOSTILE, "method": HOSTILE}
    for words in (drawn(told, 120), plain(told)):
        assert all(c.isprintable() for c in words.replace("\n", ""))


def test_a_terminal_is_left_with_its_cursor_and_the_last_state() -> None:
    text = shown(rounds(100), terminal=True, TERM="xterm")
    assert "100/100" in text
    assert text.index("\x1b[?25l") < text.rindex("\x1b[?25h"), "the cursor is hidden, then shown again"
    assert "\x1b[?1049h" not in text, "what was on the screen stays there"


def test_a_terminal_is_left_as_it_was_after_an_interrupt() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80, _environ={"TERM": "xterm"})
    with pytest.raises(KeyboardInterrupt), RunProgress(console, run(rounds(3))):
        raise KeyboardInterrupt
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().rstrip().endswith("\x1b[?25h")


# --- lines ---


def test_lines_where_there_is_no_terminal() -> None:
    lines = shown(rounds(100)).splitlines()
    assert lines[0] == "byz-vr-marina-pp/nnm + cm  round 0/100  loss 2  f-f* 1.5e+00  accuracy 25.0 %"
    assert lines[1] == (
        "byz-vr-marina-pp/nnm + cm  round 2/100  loss 0.5  f-f* 2.5e-01  accuracy 75.0 %  12.3 ms/round  "
        "200 B up  2.0 kB down"
    )
    assert lines[-1].startswith("byz-vr-marina-pp/nnm + cm  round 100/100  ")
    assert len(lines) <= 15, "a log is not a screen"


def test_a_dumb_terminal_gets_lines() -> None:
    text = shown(rounds(4), terminal=True, TERM="dumb")
    assert "\x1b" not in text
    assert "round 2/100" in text


@pytest.mark.parametrize("terminal", [False, True])
def test_quiet_shows_nothing(terminal: bool) -> None:
    assert shown(rounds(100), terminal=terminal, quiet=True, TERM="xterm") == ""


def test_the_last_line_of_a_run() -> None:
    summary = {"status": "diverged", "rounds": 7, "wall_s": 1.25, "loss": None, "accuracy": 0.5}
    told = last_line(summary | {"bytes_up": 1500, "bytes_down": 2}, Path("runs/a"))
    assert told == (
        "diverged after 7 rounds in 1.2 s  loss not finite  accuracy 50.0 %  1.5 kB up  2 B down  run folder runs/a"
    )


@pytest.mark.parametrize(
    ("values", "log", "text"),
    [
        ([0.0, 0.5, 1.0], False, "▁▅█"),
        ([1.0, None, 0.0], False, "█ ▁"),
        ([1.0, 10.0, 100.0], True, "▁▅█"),
        ([0.0, 10.0, 100.0], True, "▁▂█"),
        ([1.0, 1.0], False, ""),
        ([None], False, ""),
        ([1.7e308, -1.7e308], False, ""),
        ([], False, ""),
    ],
)
def test_curves_of_blocks(values: list[float | None], log: bool, text: str) -> None:
    assert sparkline(values, 10, log=log) == text


def test_a_curve_of_many_values_keeps_its_ends() -> None:
    curve = sparkline([float(i) for i in range(1000)], 24)
    assert len(curve) == 24
    assert (curve[0], curve[-1]) == ("▁", "█")


# --- runs that are not well ---


def test_a_run_that_is_held_says_what_it_waits_for() -> None:
    live = run(rounds(3))
    live.hold("1 clients answer, 3 must; asking all 5")
    assert "round 4 is held: 1 clients answer, 3 must; asking all 5" in drawn(live.state())
    assert checked(json.loads(live.to_json()))["held"]
    live.hold("")
    assert "held" not in drawn(live.state())
    live.hold("again")
    live.end("stalled", "")
    assert "held" not in drawn(live.state())
    assert "stalled" in drawn(live.state())


def test_incomplete_rounds_and_failed_attacks_are_shown() -> None:
    bad = (("mallory", "attack failed: RuntimeError: no labels"),)
    records = rounds(3)
    records[1] = replace(records[1], incomplete=True, rejected=bad)
    state = run(records).state()
    assert (state["incomplete"], state["incomplete_at"], state["attack_failed"]) == (1, 2, 1)
    assert "1 round had too few replies to use any, the last one round 2" in drawn(state)
    assert "1 reply of attackers missing because their attack failed" in drawn(state)
    assert "too few replies" not in drawn(run(rounds(3)).state())
    assert run(again(records)).state()["incomplete_at"] == 2
