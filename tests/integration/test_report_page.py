"""Reports in a real headless browser: nothing is fetched, nothing overflows, and everything can be read."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from server.monitor.report import REPORT, write_comparison, write_report
from tests.browser import started
from tests.integration.processes import ATTACKED, DIGITS, Processes, rounds_of, sets, summary_of, until

pytestmark = pytest.mark.slow

DESKTOP, PHONE = (1280, 900), (390, 844)
HOSTILE = "<script>document.title='taken'</script><img src=http://evil.example/x>\u202e\"'>"
LEGIBLE_PX = 9.0
BUSY_S = 180.0
"""A bound for a run of seconds beside everything else that a machine may be doing."""

OVERFLOW = "[document.scrollingElement.scrollWidth, innerWidth]"
CHARTS = """() => [...document.querySelectorAll('svg[role=img]')].filter(s => s.checkVisibility()).map(s => {
  const box = s.getBoundingClientRect(), scale = box.width / s.viewBox.baseVal.width;
  const texts = [...s.querySelectorAll('text')].map(t => {
    const b = t.getBoundingClientRect();
    return {said: t.textContent, px: parseFloat(getComputedStyle(t).fontSize) * scale,
            box: [b.left, b.top, b.right, b.bottom]};
  });
  return {about: s.getAttribute('aria-label'), box: [box.left, box.top, box.right, box.bottom], texts,
          caption: s.closest('figure').querySelector('figcaption b').textContent};
})"""
CONTRAST = """() => {
  const rgba = c => { const p = c.match(/[\\d.]+/g).map(Number); return p.length < 4 ? [...p, 1] : p; };
  const light = c => { const [r, g, b] = c.slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126*r + 0.7152*g + 0.0722*b; };
  const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + .05) / (y + .05); };
  const behind = e => { for (; e; e = e.parentElement) { const c = rgba(getComputedStyle(e).backgroundColor);
    if (c[3] > 0.99) return c; } return [255, 255, 255, 1]; };
  const found = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || !e.checkVisibility()) continue;
    const style = getComputedStyle(e), ink = e.closest('svg') ? style.fill : style.color;
    found.push({said: walk.currentNode.data.trim().slice(0, 40), least: 4.5, ratio: ratio(rgba(ink), behind(e))});
  }
  for (const e of document.querySelectorAll('svg [style*="stroke: var(--c"]'))
    found.push({said: 'a line', least: 3, ratio: ratio(rgba(getComputedStyle(e).stroke), behind(e))});
  return found;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One browser for all tests here."""
    with started() as browser:
        yield browser


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of real processes: one attacked, the same as if with another seed, one that is interrupted."""
    top = tmp_path_factory.mktemp("runs")
    config = top / "digits.toml"
    config.write_text(DIGITS, encoding="utf-8")
    with Processes() as processes:
        changes = sets(*ATTACKED, "strategy.rounds=20", "evaluation.every=2")
        processes.breakwater("run", config, "--out", top / "seed-3", *changes).ends(0, BUSY_S)
        interrupted = processes.breakwater("run", config, "--out", top / "interrupted", *sets("evaluation.every=5"))
        until(lambda: len(rounds_of(top / "interrupted")) > 10, "rounds", BUSY_S)
        interrupted.ctrl_c()
        interrupted.ends(130, BUSY_S)
    other = top / "seed-4"
    shutil.copytree(top / "seed-3", other)
    text = (other / "config.toml").read_text()
    (other / "config.toml").write_text(text.replace("seed = 3", "seed = 4"))
    rounds = [{**told, "loss": 1.2 * told["loss"]} if "loss" in told else told for told in rounds_of(other)]
    (other / "metrics.jsonl").write_text("".join(json.dumps(told) + "\n" for told in rounds))
    return top


@contextmanager
def opened(browser: Any, path: Path, size: tuple[int, int], scheme: str = "light") -> Iterator[Any]:
    """Open a page; nothing but the file itself may be asked for, and nothing may go wrong."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, service_workers="block"
    )
    page = context.new_page()
    troubles: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: troubles.append(message.text))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("dialog", lambda dialog: troubles.append(dialog.message))
    page.on("request", lambda request: asked.append(request.url))
    context.route("**/*", lambda route: route.continue_() if route.request.url == path.as_uri() else route.abort())
    page.goto(path.as_uri())
    yield page
    assert troubles == []
    assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
    context.close()


def legible(page: Any, charts: int) -> None:
    """Check that no part of the page overflows, and that so many charts are seen and can be read."""
    whole, window = page.evaluate(OVERFLOW)
    assert whole <= window
    seen = page.evaluate(CHARTS)
    assert len(seen) == charts
    for chart in seen:
        left, top, right, bottom = chart["box"]
        assert left >= 0
        assert right <= window
        assert right - left > 250
        assert bottom - top > 150
        said = [text["said"] for text in chart["texts"]]
        assert chart["caption"] in said, "the vertical axis is not named"
        assert sum(bool(any(c.isalpha() for c in word)) for word in said) >= 2, "the horizontal axis is not named"
        for text in chart["texts"]:
            assert text["px"] >= LEGIBLE_PX, text
            assert text["box"][0] >= left - 1, text
            assert text["box"][2] <= right + 1, text
            assert text["box"][1] >= top - 1, text
            assert text["box"][3] <= bottom + 1, text
        for i, a in enumerate(chart["texts"]):
            for b in chart["texts"][:i]:
                assert not overlap(a["box"], b["box"]), (a["said"], b["said"], chart["about"])


def overlap(a: list[float], b: list[float]) -> bool:
    return min(a[2], b[2]) - max(a[0], b[0]) > 1 and min(a[3], b[3]) - max(a[1], b[1]) > 3


def test_a_desktop_shows_every_chart_side_by_side(browser: Any, runs: Path) -> None:
    with opened(browser, runs / "seed-3" / REPORT, DESKTOP) as page:
        assert page.title() == "Breakwater report: byz-vr-marina-pp on digits, 2 of 5 attack by alie"
        assert page.locator("html").get_attribute("lang") == "en"
        assert page.locator("h1").count() == 1
        legible(page, charts=9)
        assert len({chart["box"][0] for chart in page.evaluate(CHARTS)}) == 3
        assert not page.locator("fieldset").is_visible()
        assert "Finished: all 20 rounds." in page.locator("main").inner_text()
        summary = summary_of(runs / "seed-3")
        assert f"{100 * summary['accuracy']:.1f} %" in page.locator(".tiles").inner_text()
        assert page.locator("#clients tbody tr").count() == 5


def test_a_phone_shows_one_axis_at_a_time_and_tables_scroll_inside_their_boxes(browser: Any, runs: Path) -> None:
    with opened(browser, runs / "seed-3" / REPORT, PHONE) as page:
        legible(page, charts=5)
        for choice, label in (
            ("bytes up", "bytes up, all clients"),
            ("seconds", "time in rounds"),
            ("rounds", "round"),
        ):
            page.get_by_label(choice, exact=True).check()
            legible(page, charts=5)
            assert sum(f"against {label}" in chart["about"] for chart in page.evaluate(CHARTS)) == 2
        box = page.locator("#clients .box").first
        assert box.evaluate("e => e.scrollWidth > e.clientWidth && getComputedStyle(e).overflowX === 'auto'")
        page.locator("summary").click()
        legible(page, charts=5)
        page.set_viewport_size({"width": 360, "height": 780})
        legible(page, charts=5)


def test_the_choice_of_the_axis_works_from_the_keyboard(browser: Any, runs: Path) -> None:
    with opened(browser, runs / "seed-3" / REPORT, PHONE) as page:
        page.locator("#x-round").focus()
        page.keyboard.press("ArrowRight")
        assert page.locator("#x-bytes").is_checked()
        assert page.locator("figure.x-bytes").first.is_visible()
        assert not page.locator("figure.x-round").first.is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_lines_stand_out_from_what_is_behind_them(browser: Any, runs: Path, scheme: str) -> None:
    out = write_comparison([runs / "seed-3", runs / "interrupted"], runs / "contrast.html")
    for path in (runs / "seed-3" / REPORT, out):
        with opened(browser, path, DESKTOP, scheme) as page:
            found = page.evaluate(CONTRAST)
            assert len(found) > 100
            assert [each for each in found if each["ratio"] < each["least"]] == []


def test_an_interrupted_run_has_a_page_too(browser: Any, runs: Path) -> None:
    with opened(browser, runs / "interrupted" / REPORT, PHONE) as page:
        count = summary_of(runs / "interrupted")["rounds"]
        assert f"Interrupted after round {count:,} of 1,000,000." in page.locator("main").inner_text()
        legible(page, charts=5)


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_several_runs_stand_side_by_side(browser: Any, runs: Path, size: tuple[int, int]) -> None:
    out = write_comparison([runs / "seed-3", runs / "seed-4", runs / "interrupted"], runs / REPORT)
    with opened(browser, out, size) as page:
        legible(page, charts=6 if size is DESKTOP else 2)
        assert page.locator(".legend li").count() == 2
        assert page.locator("#runs tbody tr").count() == 3
        assert page.locator("#runs a").count() == 3


def test_hostile_names_stay_words(browser: Any, runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(runs / "seed-3", folder)
    rounds = rounds_of(folder)
    for told in rounds:
        told.pop("names", None)
        told["rejected"] = [{"client": HOSTILE, "reason": f"{HOSTILE * 20}: why"}]
        told["kind"] = told["note"] = HOSTILE
    rounds[0]["names"] = {str(i): HOSTILE * (1 if i else 200) for i in range(5)}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(told) + "\n" for told in rounds))
    (folder / "logs" / "server.log").write_text((HOSTILE + "\n") * 60 + "z" * 100_000, encoding="utf-8")
    for size in (DESKTOP, PHONE):
        with opened(browser, write_report(folder), size) as page:
            assert page.title() != "taken"
            assert page.locator("script, main img").count() == 0
            whole, window = page.evaluate(OVERFLOW)
            assert whole <= window
            widths = page.locator("#clients .name").evaluate_all("all => all.map(e => e.getBoundingClientRect().width)")
            assert len(widths) == 5
            assert max(widths) < 320


def test_a_run_that_was_killed_gets_its_page_from_the_command(browser: Any, tmp_path: Path, digits: Path) -> None:
    with Processes() as processes:
        run = processes.breakwater("run", digits, "--out", tmp_path / "run", *sets("evaluation.every=5"))
        until(lambda: len(rounds_of(tmp_path / "run")) > 10, "rounds", BUSY_S)
        assert "Still running: round" in write_report(tmp_path / "run").read_text()
        (tmp_path / "run" / REPORT).unlink()
        os.kill(processes.holding(tmp_path / "run" / "metrics.jsonl"), signal.SIGKILL)
        run.ends(1)
        assert "Terminated unexpectedly" in (tmp_path / "run" / REPORT).read_text(), "the launcher has left it"
        (tmp_path / "run" / REPORT).unlink()
        killed = processes.breakwater("report", tmp_path / "run")
        killed.ends(0)
        assert killed.out == [str(tmp_path / "run" / REPORT)]
    with opened(browser, tmp_path / "run" / REPORT, DESKTOP) as page:
        assert "Terminated unexpectedly after round" in page.locator("main").inner_text()
        legible(page, charts=9)
