"""Reports of run folders: what the page says of each kind of run, and that nothing in it can do harm."""

import fcntl
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.cli import main
from experiment.config import parse
from experiment.explain import ProblemConstants, sentences, title
from foundation.errors import ConfigError
from server import run
from server.monitor.report import REPORT, charts, several, write_comparison, write_report
from server.monitor.report.charts import Dots, Line, Scale
from server.monitor.report.reading import read, run_folders
from server.monitor.suspects import STATEMENT

TEXT = """
[federation]
clients = 6
byzantine = 2
seed = {seed}
[task]
kind = "digits"
model = "softmax"
[strategy]
kind = "byz-vr-marina-pp"
rounds = {rounds}
gamma = 0.3
p = 0.2
cohort = 4
batch = 16
alpha = {alpha}
[aggregator]
kind = "{rule}"
[attack]
kind = "{attack}"
"""
FACTS = ProblemConstants(650, np.dtype("float32"), 72, 2.5, None)
HOSTILE = "<script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)>\u202e\x1b[2J\n</table></main>"


def rounds_of(count: int, *, every: int = 2, names: bool = True) -> Iterator[dict[str, Any]]:
    """Rounds as ``metrics.jsonl`` has them: one in five is full, the two last clients stand out."""
    for k in range(1, count + 1):
        full = k % 5 == 1
        cohort = list(range(6)) if full else sorted({(k + i) % 6 for i in range(4)})
        told: dict[str, Any] = {
            "round": k,
            "kind": "full" if full else "difference",
            "cohort": cohort,
            "accepted": cohort,
            "rejected": [],
            "clipped": [i for i in cohort if i > 3 and not full],
            "lam": 0.1,
            "step_norm": 0.1,
            "bytes_up": 9000 if full else 3000,
            "bytes_down": 12000,
            "round_s": 0.02 if full else 0.01,
        }
        if names:
            told["distance"] = [9.0 if i > 3 else 1.0 for i in cohort]
            told["cosine"] = [-0.5 if i > 3 else 0.9 for i in cohort]
            if k == 1:
                told["names"] = {str(i): f"client-{i}" for i in cohort}
        if k % every == 0:
            told |= {"loss": 2.3 * 0.99**k, "accuracy": min(1.0, 0.1 + k / 100)}
        yield told


def folder(
    path: Path,
    rounds: Iterator[dict[str, Any]] | list[dict[str, Any]],
    status: str | None = "finished",
    *,
    seed: int = 1,
    planned: int = 20,
    alpha: float = 2.0,
    rule: str = "cm",
    attack: str = "bf",
) -> Path:
    """Write a run folder as a server leaves it; without a summary where ``status`` is None."""
    path.mkdir(parents=True)
    lines = list(rounds)
    (path / "config.toml").write_text(TEXT.format(seed=seed, rounds=planned, alpha=alpha, rule=rule, attack=attack))
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "logs").mkdir()
    (path / "logs" / "server.log").write_text("".join(f"line {i} of the log\n" for i in range(200)))
    if status is not None:
        last: dict[str, Any] = next((r for r in reversed(lines) if "loss" in r), {})
        summary = {
            "status": status,
            "rounds": len(lines),
            "loss": last.get("loss"),
            "accuracy": last.get("accuracy"),
            "start": {"loss": 2.3, "accuracy": 0.1},
            "wall_s": 75.25,
            "versions": {"python": "3.11.7", "flwr": "1.39.0"},
            "lives": 2,
            "task": FACTS.to_dict(),
        }
        (path / "summary.json").write_text(json.dumps(summary))
    return path


class Page(HTMLParser):
    """A page taken apart: its tags must be closed in order, and everything is collected that a test asks for."""

    VOID = ("meta", "link", "br", "input", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.attributes: set[str] = set()
        self.charts: list[dict[str, str | None]] = []
        self.headings: list[int] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    @property
    def text(self) -> str:
        """All that can be read, with single spaces."""
        return " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for key, value in attrs:
            self.attributes.add(key)
            if key == "id":
                self.ids.append(str(value))
            if key in ("href", "src", "xlink:href"):
                self.links.append(str(value))
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "svg" and ("role", "img") in attrs:
            self.charts.append(dict(attrs))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the drawing out, which is most of the time that a page takes."""
    monkeypatch.setattr(charts, "_svg", lambda *arguments, **_: f'<svg role="img" aria-label="{arguments[4]}"></svg>')


def page_of(path: Path) -> Page:
    return Page(write_report(path).read_text(encoding="utf-8"))


def test_the_page_tells_what_was_run_how_it_went_and_who_stands_out(tmp_path: Path) -> None:
    page = page_of(folder(tmp_path / "run", rounds_of(20)))
    for said in (
        "byz-vr-marina-pp on digits, 2 of 6 attack by bf",
        "Finished: all 20 rounds.",
        "time 75.2 s",
        "digits: d = 650 (float32), m = 72 samples a client, L = 2.5",
        "alpha = 2; theory: 2L = 5",
        "accuracy 30.0 %",
        "bytes up 84.0 kB",
        "difference 3.0 kB; full 9.0 kB",
        "No reply was rejected.",
        STATEMENT,
        "line 199 of the log",
        "flwr 1.39.0",
        "The server was started 2 times",
    ):
        assert said in page.text
    assert "line 149 of the log" not in page.text
    assert "line 198 of the log\nline 199 of the log" in "".join(page.words), "lines stay lines"
    assert page.text.index("client-4 ") < page.text.index("client-0 ")
    assert len(page.charts) == 9
    assert all(chart["aria-label"] for chart in page.charts)
    assert "loss against round: from 2.3 to 1.88" in {chart["aria-label"] for chart in page.charts}


def test_the_page_is_complete_in_itself_and_in_order(tmp_path: Path) -> None:
    page = page_of(folder(tmp_path / "run", rounds_of(20)))
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert len(set(page.ids)) == len(page.ids)
    assert page.headings[0] == 1
    assert page.headings.count(1) == 1
    assert all(b - a <= 1 for a, b in zip(page.headings, page.headings[1:], strict=False))
    assert not {"script", "iframe", "object", "img"} & set(page.tags)


def test_the_same_folder_gives_the_same_page(tmp_path: Path) -> None:
    path = folder(tmp_path / "run", rounds_of(20))
    assert write_report(path).read_bytes() == write_report(path, tmp_path / "again.html").read_bytes()


@pytest.mark.usefixtures("undrawn")
def test_the_words_are_those_of_the_check_command(tmp_path: Path) -> None:
    page = page_of(folder(tmp_path / "run", rounds_of(20)))
    config = parse((tmp_path / "run" / "config.toml").read_text())
    for word, sentence in sentences(config, FACTS):
        assert f"{word} {sentence}".strip() in page.text


def test_hostile_names_reasons_and_logs_do_no_harm(tmp_path: Path) -> None:
    rounds = list(rounds_of(20))
    rounds[0]["names"] = {
        "0": HOSTILE,
        "1": "\u202egnp.exe",
        "2": "x" * 10_000,
        "3": "&lt;b&gt;",
        "4": "",
        "5": "é 你好",
    }
    for told in rounds:
        told["rejected"] = [{"client": HOSTILE, "reason": f"{HOSTILE}: and more"}]
        told["note"] = told["kind"] = HOSTILE
    path = folder(tmp_path / "run", rounds)
    (path / "logs" / "server.log").write_text(f"{HOSTILE}\n{'y' * 100_000}\n", encoding="utf-8")
    plain = page_of(folder(tmp_path / "plain", rounds_of(20)))
    page = page_of(path)
    text = (path / REPORT).read_text(encoding="utf-8")
    assert set(page.tags) <= set(plain.tags) | {"h3"}
    assert page.attributes <= plain.attributes
    assert not set("\u202e\x1b") & set(text)
    assert "<script>alert(1)</script>" in page.text
    assert r"\u202e" in page.text
    assert "é 你好" in page.text
    assert "x" * 65 not in text
    assert "y" * 2001 not in text
    assert all(link.startswith(("#", "data:")) for link in page.links)


@pytest.mark.parametrize(
    ("status", "planned", "said"),
    [
        ("finished", 20, "Finished: all 20 rounds."),
        ("diverged", 50, "Diverged in round 20 of 50"),
        ("interrupted", 50, "Interrupted after round 20 of 50."),
        ("<b>odd</b>", 50, "<b>odd</b> after round 20 of 50."),
        (None, 50, "Terminated unexpectedly after round 20 of 50"),
    ],
)
@pytest.mark.usefixtures("undrawn")
def test_how_a_run_ended_is_told_in_words(tmp_path: Path, status: str | None, planned: int, said: str) -> None:
    assert said in page_of(folder(tmp_path / "run", rounds_of(20), status, planned=planned)).text


@pytest.mark.usefixtures("undrawn")
def test_a_run_that_is_going_is_told_from_one_that_was_killed(tmp_path: Path) -> None:
    path = folder(tmp_path / "run", rounds_of(20), None, planned=50)
    with open(path / "metrics.jsonl", "rb") as server:
        fcntl.flock(server, fcntl.LOCK_EX)
        assert "Still running: round 20 of 50" in page_of(path).text
    assert "Terminated unexpectedly" in page_of(path).text


@pytest.mark.usefixtures("undrawn")
def test_a_run_that_ends_worse_than_it_began_says_so(tmp_path: Path) -> None:
    rounds = [{**told, "loss": 1e22} if "loss" in told else told for told in rounds_of(20)]
    assert "But loss grew, from 2.3 to 1e+22." in page_of(folder(tmp_path / "run", rounds)).text
    assert "grew" not in page_of(folder(tmp_path / "good", rounds_of(20))).text


def test_a_diverged_run_is_drawn_up_to_its_last_finite_value(tmp_path: Path) -> None:
    rounds = list(rounds_of(20))
    rounds[-1] |= {"loss": None, "accuracy": None}
    page = page_of(folder(tmp_path / "run", rounds, "diverged", planned=50))
    assert "loss not finite" in page.text
    assert "A cross marks the last finite value" in page.text
    assert len(page.charts) == 9


@pytest.mark.usefixtures("undrawn")
def test_what_a_crash_cut_off_is_left_out(tmp_path: Path) -> None:
    path = folder(tmp_path / "run", rounds_of(20), None)
    with open(path / "metrics.jsonl", "a") as metrics:
        metrics.write('{"round": 21, "kind": "fu')
    (path / "summary.json").write_text('{"status": "fin')
    assert "after round 20 of 20" in page_of(path).text


def test_a_run_without_a_round_and_one_that_measured_nothing_have_a_page(tmp_path: Path) -> None:
    assert "No model was measured." in page_of(folder(tmp_path / "empty", [], None)).text
    one = page_of(folder(tmp_path / "one", rounds_of(1), None))
    assert "No model was measured." in one.text
    assert len(one.charts) == 3


@pytest.mark.usefixtures("undrawn")
def test_an_older_folder_has_fewer_columns(tmp_path: Path) -> None:
    new = page_of(folder(tmp_path / "new", rounds_of(20)))
    old = page_of(folder(tmp_path / "old", rounds_of(20, names=False)))
    assert "distance cosine" in new.text
    assert "distance cosine" not in old.text
    assert "worker 4" in old.text


@pytest.mark.usefixtures("undrawn")
def test_a_config_of_another_version_is_shown_as_it_is(tmp_path: Path) -> None:
    path = folder(tmp_path / "run", rounds_of(20))
    (path / "config.toml").write_text('[strategy]\nkind = "of-the-future"\n')
    page = page_of(path)
    assert "This version of Breakwater cannot read the config." in page.text
    assert 'kind = "of-the-future"' in page.text
    (path / "config.toml").unlink()
    assert "The run folder has no config.toml." in page_of(path).text


def test_many_rounds_and_many_clients_give_a_small_page(tmp_path: Path) -> None:
    def many() -> Iterator[dict[str, Any]]:
        for told in rounds_of(10_000):
            told["cohort"] = told["accepted"] = [told["round"] % 5000]
            yield {**told, "distance": [1.0], "cosine": [1.0], "clipped": []}

    page = write_report(folder(tmp_path / "run", many(), planned=10_000))
    assert page.stat().st_size < 600_000
    text = page.read_text()
    assert "4,900 more are in metrics.jsonl" in text
    assert "Lines are medians over stretches of rounds" in text


def test_thinning_keeps_the_extremes() -> None:
    x = np.arange(10_000.0)
    y = np.sin(x / 500)
    y[1234], y[5678], y[9000:9010] = 50.0, -50.0, np.nan
    thin_x, thin_y = charts.thinned(x, y, 300)
    assert thin_x.size <= 310
    assert (thin_x[0], thin_x[-1]) == (0.0, 9999.0)
    assert {1234.0, 5678.0} <= set(thin_x.tolist())
    assert np.array_equal(thin_y, y[thin_x.astype(int)], equal_nan=True)
    assert charts.thinned(x[:300], y[:300], 300)[0] is not None


def test_one_slow_round_does_not_flatten_the_others_and_rare_rounds_stay_in_sight() -> None:
    usual = np.full(1000, 0.01)
    usual[3] = 60.0
    rare = np.full(5, 0.08)
    (low, top), log = charts.robust_limits([usual, rare])
    assert 0.08 < top < 0.2
    assert (low, log) == (0.0, False)
    assert charts.robust_limits([usual, np.full(50, 4.0)])[1] is True
    assert charts.robust_limits([np.zeros(10)]) == ((0.0, 1.0), False)
    assert charts.robust_limits([]) == ((0.0, 1.0), False)


@pytest.mark.usefixtures("undrawn")
def test_rounds_beyond_the_axis_are_told(tmp_path: Path) -> None:
    rounds = list(rounds_of(20))
    rounds[7]["round_s"] = 30.0
    assert "Triangles are beyond the axis: up to 30 s, round 8" in page_of(folder(tmp_path / "run", rounds)).text


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (1e-12, 1.0, {"1e-9", "1e-3"}),
        (0.01, 10.0, {"0.1", "1"}),
        (1e-2, 1e22, {"1e5", "1e20"}),
        (0.5, 1.2, {"0.5", "1"}),
    ],
)
def test_a_log_axis_has_ticks_that_can_be_read(low: float, high: float, ticks: set[str]) -> None:
    line = Line(np.array([0.0, 1.0]), np.array([low, high]))
    page = Page(charts.curves([line], charts.rounds_scale(), Scale("gap", log=True), "c", "about"))
    words = {word.strip() for word in page.words}
    assert ticks <= words
    assert {"round", "gap"} <= words
    assert sum(bool(re.match(r"\d", word)) for word in words) <= 14


def test_a_band_with_a_diverged_seed_and_nothing_finite_can_be_drawn() -> None:
    x = np.arange(4.0)
    top = np.array([1.0, 2.0, np.inf, np.inf])
    for log in (True, False):
        for y in (top, np.full(4, np.inf), np.zeros(4), np.array([-1.0, 0.0, 1e-300, 1e300])):
            line = Line(x, y, 1, y / 2, top)
            Page(charts.curves([line, line], charts.rounds_scale(), Scale("loss", log=log), "c", "about"))
    Page(charts.per_round([Dots("k", x, np.zeros(4), 0)], charts.rounds_scale(), Scale("s", limits=(0, 1)), "c", "a"))


def test_colours_and_styles_of_lines_are_different() -> None:
    swatches = [charts.swatch(slot) for slot in range(charts.MOST_LINES)]
    assert len(set(swatches)) == len(swatches)


# --- several runs ----------------------------------------------------------------------------------------------------


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two attacks, two seeds each."""
    top = tmp_path / "sweep"
    for attack in ("bf", "alie"):
        for seed in (1, 2):
            factor = 1.0 + 0.1 * seed
            rounds = [{**r, "loss": r["loss"] * factor} if "loss" in r else r for r in rounds_of(20)]
            folder(top / attack / f"seed-{seed}", rounds, seed=seed, attack=attack)
    return top


def test_runs_that_differ_in_the_seed_alone_are_one_line(sweep: Path) -> None:
    groups = several.grouped([read(path) for path in run_folders([sweep])])
    assert [(group.label, [run.tree["federation"]["seed"] for run in group.runs]) for group in groups] == [
        ("alie", [1, 2]),
        ("bf", [1, 2]),
    ]


def labels(tmp_path: Path, *changes: dict[str, Any]) -> list[str]:
    runs = [read(folder(tmp_path / str(i), rounds_of(3), **change)) for i, change in enumerate(changes)]
    return [group.label for group in several.grouped(runs)]


def test_settings_that_differ_name_the_lines(tmp_path: Path) -> None:
    assert labels(tmp_path, {"alpha": 0.5}, {"alpha": 20.0, "rule": "rfa"}) == ["alpha 0.5, cm", "alpha 20, rfa"]
    assert labels(tmp_path / "b", {}, {"planned": 7}) == ["rounds 20", "rounds 7"]
    assert labels(tmp_path / "c", {}, {"seed": 5}) == ["all runs"]


def test_a_section_that_some_runs_lack_is_told(tmp_path: Path) -> None:
    with_, without = folder(tmp_path / "a", rounds_of(3)), folder(tmp_path / "b", rounds_of(3))
    text = (without / "config.toml").read_text()
    (without / "config.toml").write_text(text[: text.index("[attack]")])
    assert [group.label for group in several.grouped([read(with_), read(without)])] == ["bf", "no attack"]


def test_the_page_of_several_runs_has_medians_bands_and_links(sweep: Path) -> None:
    write_report(sweep / "bf" / "seed-1")
    out = write_comparison(run_folders([sweep]), sweep / REPORT)
    page = Page(out.read_text(encoding="utf-8"))
    assert "4 runs of 2 settings, some with several seeds." in page.text
    assert "alie 2 finished 20 30.0 % [30.0 %, 30.0 %] 2.163 [2.069, 2.257] 84.0 kB" in page.text
    assert 'kind = "digits"' in page.text
    assert [link for link in page.links if link.endswith(".html")] == ["bf/seed-1/report.html"]
    assert len(page.charts) == 6
    assert out.read_text().count("opacity: 0.18") == 12
    assert len(set(page.ids)) == len(page.ids)


@pytest.mark.usefixtures("undrawn")
def test_more_settings_than_can_be_told_apart_are_in_the_table_alone(tmp_path: Path) -> None:
    for i in range(charts.MOST_LINES + 2):
        folder(tmp_path / "runs" / f"{i:02}", rounds_of(4), alpha=1.0 + i)
    page = Page(write_comparison(run_folders([tmp_path / "runs"]), tmp_path / "all.html").read_text())
    assert "The first 24 of 26 settings are drawn; the tables have all." in page.text
    assert "alpha 26" in page.text


@pytest.mark.usefixtures("undrawn")
def test_a_diverged_seed_counts_as_the_worst(tmp_path: Path) -> None:
    rounds = list(rounds_of(20))
    rounds[-1] |= {"loss": None, "accuracy": 0.1}
    folder(tmp_path / "runs" / "a", rounds_of(20))
    folder(tmp_path / "runs" / "b", rounds, "diverged", seed=2)
    page = Page(write_comparison(run_folders([tmp_path / "runs"]), tmp_path / "all.html").read_text())
    assert "1 diverged, 1 finished" in page.text
    assert "not finite [1.881, not finite]" in page.text


@pytest.mark.usefixtures("undrawn")
def test_a_run_that_never_began_changes_nothing_of_the_others(tmp_path: Path) -> None:
    rounds = [{**told, "gap": told["loss"] - 0.1} if "loss" in told else told for told in rounds_of(20)]
    folder(tmp_path / "runs" / "a", rounds)
    folder(tmp_path / "runs" / "b", [], None, seed=2)
    page = Page(write_comparison(run_folders([tmp_path / "runs"]), tmp_path / "all.html").read_text())
    assert any("f(x) \N{MINUS SIGN} f* against round" in str(chart["aria-label"]) for chart in page.charts)
    assert "1 finished, 1 killed 20 30.0 %" in page.text
    assert "84.0 kB" in page.text


def test_a_median_ends_where_the_first_seed_ends_unless_that_was_cut_short(tmp_path: Path) -> None:
    ends = {}
    for name, counts in (("even", (18, 20)), ("cut", (4, 20))):
        for seed, count in enumerate(counts):
            folder(tmp_path / name / str(seed), rounds_of(count), "interrupted", seed=seed)
        group = several.grouped([read(path) for path in run_folders([tmp_path / name])])[0]
        ends[name] = several._band(group, "round", "loss").x[-1]
    assert ends == {"even": 18.0, "cut": 20.0}


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("undrawn")
def test_one_folder_gets_its_report_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder(tmp_path / "run", rounds_of(20), None)
    assert main(["report", str(path)]) == 0
    assert capsys.readouterr().out == f"{path / REPORT}\n"
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "x.html")]) == 0
    assert (tmp_path / "x.html").read_bytes() == (path / REPORT).read_bytes()


@pytest.mark.usefixtures("undrawn")
def test_several_folders_get_one_page_where_they_all_are(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(sweep)]) == 0
    assert main(["report", str(sweep / "bf"), str(sweep / "alie" / "seed-1")]) == 0
    assert main(["report", str(sweep / "bf" / "seed-1"), str(sweep / "bf" / "seed-1")]) == 0
    assert capsys.readouterr().out.split() == [
        str(sweep / REPORT),
        str(sweep / REPORT),
        str(sweep / "bf" / "seed-1" / REPORT),
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{}/none"], "no such folder; give a run folder, or one that holds run folders"),
        (["{}/empty"], "no run is there, nor in the folders below it (metrics.jsonl is missing)"),
        (["{}/broken"], "is not the metrics of a run"),
        (["{}/run", "--out", "{}/nowhere/x.html"], "does not exist"),
        (["{}/run", "--out", "{}/empty"], "is a folder; give the path of a file"),
        (["{}/run", "--out", "{}/pipe"], "is not a regular file; give the path of a file"),
    ],
)
@pytest.mark.usefixtures("undrawn")
def test_what_cannot_be_used_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    folder(tmp_path / "run", rounds_of(3))
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "broken" / "metrics.jsonl").write_text("[1, 2]\n")
    assert main(["report", *(argument.format(tmp_path) for argument in arguments)]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert len(told.err.splitlines()) == 1
    assert said in told.err


@pytest.mark.parametrize(
    "line",
    ['{"round": 1}', '{"round": 1, "cohort": 5}', "7", '{"round": 1, "cohort": [0], "accepted": [0], "rejected": [3]}'],
)
@pytest.mark.usefixtures("undrawn")
def test_metrics_of_something_else_are_refused(tmp_path: Path, line: str) -> None:
    path = folder(tmp_path / "run", [])
    (path / "metrics.jsonl").write_text(line + "\n")
    with pytest.raises(ConfigError, match="is not the metrics of a run"):
        write_report(path)


@pytest.mark.usefixtures("undrawn")
def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder(tmp_path / "run", rounds_of(3))
    before = write_report(path).read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", full)
        with pytest.raises(ConfigError, match=r"report.html: cannot be written: No space left on device"):
            write_report(path)
    assert (path / REPORT).read_bytes() == before
    assert not list(path.glob(".report*"))


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), ValueError("a flaw"), ConfigError("damaged")]
)
def test_a_report_that_fails_is_a_line_in_the_log_and_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def fail(_: Path) -> Path:
        raise error

    monkeypatch.setattr(run, "write_report", fail)
    monkeypatch.setattr(logging.getLogger("breakwater"), "propagate", True)
    run._report(tmp_path)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert f"{tmp_path / REPORT}: cannot be made" in caplog.text


def test_facts_of_a_task_survive_the_summary() -> None:
    for facts in (FACTS, ProblemConstants(3, np.dtype("float64"), 9, None, 0.25)):
        assert ProblemConstants.read(json.loads(json.dumps(facts.to_dict()))) == facts
    for damaged in (
        {},
        {**FACTS.to_dict(), "dim": 0},
        {**FACTS.to_dict(), "dtype": "int8"},
        {**FACTS.to_dict(), "dtype": "?!"},
    ):
        with pytest.raises((ValueError, KeyError, TypeError)):
            ProblemConstants.read(damaged)


def test_titles() -> None:
    text = TEXT.format(seed=1, rounds=2, alpha=2.0, rule="cm", attack="bf")
    assert title(parse(text)) == "byz-vr-marina-pp on digits, 2 of 6 attack by bf"
    assert title(parse(text, ["attack.kind=none"])) == "byz-vr-marina-pp on digits"


# --- runs that are not well ---


def test_a_report_warns_of_incomplete_rounds_and_of_an_attack_that_failed(tmp_path: Path) -> None:
    rounds = list(rounds_of(20))
    rounds[5] |= {"incomplete": True, "note": "no quorum: 2 usable replies of the 4 that a full round needs; g stays"}
    path = folder(tmp_path / "run", rounds)
    summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
    summary["attack_failure"] = {"replies": 7, "reason": HOSTILE}
    (path / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    write_report(path)
    page = (path / REPORT).read_text(encoding="utf-8")
    assert "<strong>The attack failed</strong> in 7 replies" in page
    assert "1 incomplete round: fewer replies than the quorum came, so that none was used (round 6)" in page
    assert "<script>" not in page


def test_a_report_says_why_a_run_stalled(tmp_path: Path) -> None:
    path = folder(tmp_path / "run", list(rounds_of(12)), "stalled")
    summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
    summary["stall"] = {"text": "stalled: nothing since round 10 counted", "model_of": 10, "since": 10}
    (path / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    write_report(path)
    page = (path / REPORT).read_text(encoding="utf-8")
    assert "Stalled after round 12 of 20. Nothing since round 10 counted. The model is that of round 10." in page
