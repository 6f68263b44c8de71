import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from deploy.cli import main
from deploy.inprocess import run_in_process
from deploy.local import LocalOptions
from experiment.config import load
from server.monitor.suspects import HIGHEST, STATEMENT, Suspect, table, tally
from server.run_folder.reader import read_rounds
from server.run_folder.record import from_line

DEMO = Path(__file__).resolve().parents[4] / "deploy" / "configs" / "demo.toml"

NAMES = {str(i): f"client-{i}" for i in range(6)}


def line(number: int, **told: Any) -> dict[str, Any]:
    """Return a round in which all six clients answer and look alike, but for what is told."""
    draw = np.random.default_rng(number)
    everybody = list(range(6))
    plain = {
        "round": number,
        "cohort": everybody,
        "accepted": everybody,
        "rejected": [],
        "clipped": [],
        "bytes_up": 6,
        "bytes_down": 6,
        "round_s": 0.1,
        "distance": (1.0 + 0.1 * draw.normal(size=6)).tolist(),
        "cosine": (0.8 + 0.05 * draw.normal(size=6)).tolist(),
        "names": NAMES if number == 1 else {},
    }
    return plain | told


def tallied(lines: list[dict[str, Any]], byzantine: int | None = None) -> list[Suspect]:
    names: dict[int, str] = {}
    return tally([from_line(json.dumps(each), names) for each in lines], byzantine)


def rounds(count: int = 40, **told: Any) -> list[dict[str, Any]]:
    return [line(number, **told) for number in range(1, count + 1)]


def of(suspects: list[Suspect], worker: int) -> Suspect:
    return next(suspect for suspect in suspects if suspect.worker == worker)


def test_clients_that_look_alike_have_low_scores() -> None:
    suspects = tallied(rounds())
    assert len(suspects) == 6
    scores = [suspect.score or 0.0 for suspect in suspects]
    assert 0 < min(scores) < max(scores) < 4
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    ("kind", "value", "because"),
    [
        ("distance", 5.0, "far away"),
        ("distance", 0.2, "very near"),
        ("cosine", -0.5, "points away"),
    ],
)
def test_who_lies_apart_stands_out_and_the_reason_is_told(kind: str, value: float, because: str) -> None:
    run = rounds()
    for told in run:
        told[kind][4] = value
    first = tallied(run)[0]
    assert (first.worker, first.name, first.because) == (4, "client-4", because)
    assert first.score is not None
    assert first.score > 10
    assert getattr(first, kind) == pytest.approx(value)


def test_a_single_wild_round_does_not_make_a_suspect() -> None:
    run = rounds()
    run[3]["distance"][2] = 1e6
    score = of(tallied(run), 2).score
    assert score is not None
    assert score < 4


def test_few_rounds_count_for_less() -> None:
    def score(count: int) -> float:
        run = rounds(count)
        for told in run:
            told["distance"] = [1.0, 1.01, 0.99, 1.0, 1.0, 3.0]
        found = of(tallied(run), 5).score
        assert found is not None
        return found

    assert score(1) < score(5) < score(50) <= HIGHEST


def test_rejected_replies_count_silence_does_not() -> None:
    run = rounds()
    for told in run:
        told["accepted"] = [0, 1, 2, 3]
        told["distance"] = told["distance"][:4]
        told["cosine"] = told["cosine"][:4]
        told["rejected"] = [
            {"client": "client-4", "reason": "not finite: 3 values"},
            {"client": "client-5", "reason": "silent: no reply within 5 s"},
        ]
    suspects = tallied(run)
    bad, silent = of(suspects, 4), of(suspects, 5)
    assert suspects[0] is bad
    assert bad.because == "rejected"
    assert (bad.sampled, bad.replied, bad.accepted, bad.rejected) == (40, 40, 0, {"not finite": 40})
    assert (silent.sampled, silent.replied, silent.accepted, silent.rejected) == (40, 0, 0, {"silent": 40})
    assert silent.score is None


def test_good_replies_of_a_round_without_a_quorum_are_replies_and_no_evidence() -> None:
    run = rounds()
    for told in run[10:30]:
        told |= {"accepted": [], "distance": [], "cosine": []}
        told["rejected"] = [{"client": f"client-{i}", "reason": "no quorum: 6 of 7"} for i in range(6)]
    first = of(tallied(run), 0)
    assert (first.sampled, first.replied, first.accepted, first.rejected) == (40, 40, 20, {"no quorum": 20})
    assert all(suspect.because != "rejected" for suspect in tallied(run))


def test_the_same_vector_shows_something_only_in_a_group_that_could_be_byzantine() -> None:
    run = rounds(same=[[4, 5]])
    suspects = tallied(run, byzantine=2)
    assert {suspect.worker for suspect in suspects[:2]} == {4, 5}
    assert suspects[0].because == "equal vectors"
    assert suspects[0].same == 40
    assert all(suspect.same == 0 for suspect in tallied(rounds(same=[[3, 4, 5]]), byzantine=2))


def test_counts_of_late_clipped_kept_and_weight() -> None:
    run = rounds(clipped=[3], kept=[1.0, 1.0, 1.0, 0.25, 1.0, 1.0], weight=[0.2, 0.2, 0.2, 0.0, 0.2, 0.2])
    run[7]["late"] = ["client-1", "client-1", "somebody else"]
    suspects = tallied(run)
    assert (of(suspects, 3).clipped, of(suspects, 3).kept, of(suspects, 3).weight) == (40, 0.25, 0.0)
    assert of(suspects, 3).because == "often clipped"
    assert [of(suspects, i).late for i in range(6)] == [0, 2, 0, 0, 0, 0]


def test_a_seat_keeps_its_statistics_under_a_new_name() -> None:
    run = rounds()
    run[20]["names"] = {"2": "client-2b"}
    run[21]["rejected"] = [{"client": "client-2b", "reason": "oversize: 9"}]
    renamed = of(tallied(run), 2)
    assert (renamed.name, renamed.sampled, renamed.rejected) == ("client-2b", 40, {"oversize": 1})


@pytest.mark.parametrize("missing", [("distance", "cosine", "names"), ("distance",), ("names",)])
def test_runs_without_evidence_are_told_as_far_as_they_go(missing: tuple[str, ...]) -> None:
    run = [{key: value for key, value in told.items() if key not in missing} for told in rounds()]
    suspects = tallied(run)
    assert [suspect.sampled for suspect in suspects] == [40] * 6


def test_nothing_and_a_client_alone_give_no_scores() -> None:
    assert tallied([]) == []
    alone = line(1, cohort=[0], accepted=[0], distance=[1.0], cosine=[None])
    assert [suspect.score for suspect in tallied([alone])] == [None]


# --- on a run, and at the command line ---


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's federation under its attack, 150 rounds."""
    out = tmp_path_factory.mktemp("suspects") / "run"
    config = load(DEMO, ["strategy.rounds=150", "evaluation.every=150"])
    run_in_process(LocalOptions(config=config, out=out, config_dir=DEMO.parent))
    return out


def test_the_attackers_of_the_demo_are_ranked_first(folder: Path) -> None:
    suspects = tally(read_rounds(folder), 3)
    assert {suspect.worker for suspect in suspects[:3]} == {7, 8, 9}
    lowest, highest = suspects[2].score, suspects[3].score
    assert lowest is not None
    assert highest is not None
    assert lowest > 2 * highest


def test_the_command_prints_the_ranking_and_that_it_is_no_verdict(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["suspects", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert STATEMENT in " ".join(shown.split())
    order = [name for name in shown.split() if re.fullmatch(r"(client|byzantine)-\d", name)]
    assert [name.partition("-")[0] for name in order] == ["byzantine"] * 3 + ["client"] * 7


def test_the_same_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["suspects", str(folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in told] == [suspect.name for suspect in tally(read_rounds(folder), 3)]
    assert told[0]["because"]
    assert [entry["answered"] for entry in told] == [entry["replied"] for entry in told], "its former name"


def test_a_folder_without_a_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["suspects", str(tmp_path)]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"breakwater: error: {tmp_path}: not a run folder: metrics.jsonl or config.toml is missing"
    ]


def test_names_and_reasons_are_shown_and_do_nothing() -> None:
    run = rounds(2)
    run[0]["names"] = {"0": "[red]\x1b[2J\n" + "long " * 100}
    text = io.StringIO()
    Console(file=text, width=200, force_terminal=True, color_system=None).print(table(tallied(run)))
    assert "[red]?[2J?long" in text.getvalue()
    assert "weight" not in text.getvalue()  # of which nothing is known here
    assert "\x1b[2J" not in text.getvalue()
