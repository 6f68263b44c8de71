"""The coordinator's page in a real headless browser, and served by real processes."""

import json
import os
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any

import pytest

from link.address import Address
from link.seats import Seat, node_id
from server.monitor.live import LiveRun, Title
from server.monitor.web import streams
from server.monitor.web.gate import new_token
from server.monitor.web.options import WebOptions
from server.monitor.web.page import TOKEN_FILE, WebPage
from strategies.claims import Claim, Claims
from strategies.evidence import Evidence
from strategies.method import Evaluation
from tests.browser import started
from tests.integration.processes import DIGITS, SOON_S, Process, Processes, free_address, sets, until
from tests.integration.test_report_page import CONTRAST, DESKTOP, HOSTILE, OVERFLOW, PHONE
from tests.rounds import RECORD, START
from tests.unit.server.monitor.web.pages import port_of

pytestmark = pytest.mark.slow

MS = 1000 * SOON_S
LEGIBLE_PX = 10.0
TEXTS = """() => [...document.querySelectorAll('main *, header *')].filter(e => e.checkVisibility() && [...e.childNodes]
  .some(n => n.nodeType === 3 && n.data.trim())).map(e => { const s = e.closest('svg');
  const scale = s ? s.getBoundingClientRect().width / s.viewBox.baseVal.width : 1;
  return parseFloat(getComputedStyle(e).fontSize) * scale; })"""
OVERLAPS = """() => [...document.querySelectorAll('#parties tbody td')].filter(e => e.checkVisibility() &&
  e.scrollWidth > e.clientWidth + 1).map(e => e.textContent)"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One browser for all tests here."""
    with started() as browser:
        yield browser


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "EVERY_S", 0.05)


def run_of(names: list[str], rounds: int = 60, *, run: str = "hospitals") -> LiveRun:
    """Return a run of which the first client attacks, the second is away, and two on the list never came."""
    n, began = len(names), time.time()
    title = Title(
        run=run,
        method="byz-vr-marina-pp",
        rule="nnm + cm",
        task="table",
        attack=None,
        clients=n + 2,
        byzantine=1,
        rounds=10 * rounds,
    )
    seats = {i: Seat(name, i, node_id(name), i != 1, began - 60 * i) for i, name in enumerate(names)}
    live = LiveRun(title, lambda: n - 1, "127.0.0.1:9090", lambda: seats, lambda: ["geneva", "lyon"])
    live.begin(START)
    everybody, others = list(range(n)), [i for i in range(n) if i != 1]
    evidence = Evidence(others, [9.0, *(n - 2) * [1.0]], (n - 1) * [0.5])
    for k in range(1, rounds + 1):
        record = replace(
            RECORD, round=k, cohort=everybody, names=names, accepted=others, clipped=[0], evidence=evidence
        )
        rejected = [(names[1], f"disconnected: {names[1]}")]
        measured = Evaluation(2.0 / k, 1 - 0.75 / k, 1.5 / k**2, 0.25 + k / 100) if k % 5 == 0 else None
        live.add(replace(record, rejected=rejected, evaluation=measured))
    return live


@contextmanager
def served(live: LiveRun, token: str = "", port: int = 0) -> Iterator[WebPage]:
    page = WebPage(WebOptions(address=Address("127.0.0.1", port)), live.to_json, token)
    try:
        yield page
    finally:
        page.stop()


@contextmanager
def opened(browser: Any, url: str, size: tuple[int, int] = DESKTOP, scheme: str = "light") -> Iterator[Any]:
    """Open a page; nothing of elsewhere may be asked for, and nothing may go wrong but the connection."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, service_workers="block"
    )
    tab, troubles, asked = context.new_page(), list[str](), list[str]()
    tab.on("console", lambda message: troubles.append(message.text))
    tab.on("pageerror", lambda error: troubles.append(str(error)))
    tab.on("dialog", lambda dialog: troubles.append(dialog.message))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(url)
    tab.wait_for_selector("#connection:text-is('live')", timeout=MS)
    yield tab
    assert [text for text in troubles if "ERR_CONNECTION" not in text and "ERR_INCOMPLETE" not in text] == []
    origin = url.partition("/enter")[0]
    assert [each for each in asked if not each.startswith((f"{origin}/", "data:"))] == []
    context.close()


def fits(tab: Any) -> None:
    """Check that nothing overflows and that everything can be read."""
    wide, window = tab.evaluate(OVERFLOW)
    assert wide <= window
    assert min(tab.evaluate(TEXTS)) >= LEGIBLE_PX
    assert tab.evaluate(OVERLAPS) == []
    assert [found for found in tab.evaluate(CONTRAST) if found["ratio"] < found["least"]] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_a_coordinator_sees_the_run_and_each_party(browser: Any, size: tuple[int, int], scheme: str) -> None:
    names = ["cleveland", "budapest", "zurich", "long-beach"]
    with served(run_of(names)) as page, opened(browser, page.url, size, scheme) as tab:
        fits(tab)
        assert tab.url == page.address + "/", "the token is not in the address bar"
        assert tab.title() == "hospitals, round 60"
        assert tab.inner_text("#rounds").startswith("round 60 of 600")
        assert tab.inner_text("#census") == "3 connected, 1 away, 2 of 6 seats never taken"
        rows = [row.inner_text() for row in tab.query_selector_all("#parties tbody tr")]
        assert [next(name for name in [*names, "geneva", "lyon"] if name in row) for row in rows] == [
            *names,
            "geneva",
            "lyon",
        ]
        assert "score: far away" in rows[0]
        assert "away" in rows[1]
        assert "round 60: disconnected: budapest" in rows[1]
        assert "connected 2 min" in rows[2]
        assert all("never came" in row for row in rows[4:])
        charts = [each.get_attribute("id") for each in tab.query_selector_all("figure") if each.is_visible()]
        assert {"chart-loss", "chart-accuracy", "chart-gap", "chart-trigger"} <= set(charts)
        assert tab.inner_text("#tile-trigger").split("\n") == ["trigger success", "85.0 %", "at round 60"]
        tab.select_option("#order", "state")
        assert tab.inner_text("#parties tbody tr >> nth=0").startswith("geneva")


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_claims_are_shown_as_claims(browser: Any, size: tuple[int, int]) -> None:
    names = [f"clinic-{i}" for i in range(6)]
    live = run_of(names)
    clients = {name: Claim(0.1 * i, 0.9 - 0.1 * i, 10) for i, name in enumerate(names[:5])}
    claims = Claims.of(clients, {"clinic-5": f"declined: {HOSTILE}"}, 1)
    live.add(replace(RECORD, round=61, cohort=[0], names=[names[0]], rejected=[], accepted=[0], claims=claims))
    with served(live) as page, opened(browser, page.url, size) as tab:
        fits(tab)
        assert tab.inner_text("#tile-loss").split("\n") == ["loss", "0.2", "claimed, at round 61, quartiles 0.1 to 0.3"]
        rows = [row.inner_text() for row in tab.query_selector_all("#parties tbody tr")]
        assert "0.3" in rows[3]
        assert "60.0 %" in rows[3]
        assert "no claim: declined: <script>" in rows[5]


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_two_hundred_parties_some_with_hostile_names(browser: Any, size: tuple[int, int]) -> None:
    names = [HOSTILE, f"{HOSTILE}{'W' * 200}", "x" * 64, "\x1b[2J\r\n\u202e", *(f"clinic-{i}" for i in range(196))]
    live = run_of(names, run=HOSTILE)
    with served(live) as page, opened(browser, page.url, size) as tab:
        assert tab.locator("#parties tbody tr").count() == 202
        fits(tab)
        shown = tab.locator("#parties tbody tr >> nth=0").inner_text()
        assert "<script>document.title='taken'</script><img src=http" in shown
        assert "\u202e" not in tab.inner_text("body")
        assert tab.title().startswith("<script>"), "as text"
        assert tab.evaluate("document.images.length + document.scripts.length") == 1
        live.hold(HOSTILE)
        tab.wait_for_selector("#banner:has-text('is held')", timeout=MS)
        assert "<img" in tab.inner_text("#banner")


def test_a_page_comes_back_by_itself_when_its_server_does_and_says_so(browser: Any) -> None:
    token = new_token()
    with served(run_of(["a", "b", "c"], 10), token) as page, opened(browser, page.url) as tab:
        port = port_of(page)
        page.stop()
        tab.wait_for_selector("#connection.away:has-text('trying again in')", timeout=MS)
        assert "round 10 of 100" in tab.inner_text("#rounds"), "what was known is still there"
        with served(run_of(["a", "b", "c"], 20), token, port) as again:
            tab.wait_for_selector("#connection:text-is('live')", timeout=MS)
            tab.wait_for_selector("#rounds:has-text('round 20 of 200')", timeout=MS)
            again.stop()


def test_a_page_whose_token_is_of_another_run_says_what_to_do(browser: Any) -> None:
    with served(run_of(["a", "b", "c"], 10)) as page:
        context = browser.new_context()
        tab, port = context.new_page(), port_of(page)
        tab.goto(page.url)
        tab.wait_for_selector("#connection:text-is('live')", timeout=MS)
        page.stop()
        with served(run_of(["a", "b", "c"], 20), port=port):
            tab.wait_for_selector("#connection:has-text('no access any more: open the address')", timeout=MS)
        context.close()


def test_a_page_says_that_the_run_is_over(browser: Any) -> None:
    live = run_of(["a", "b", "c"], 10)
    with served(live) as page, opened(browser, page.url) as tab:
        live.end("finished", "finished after 10 rounds")
        page.stop()
        tab.wait_for_selector("#connection.over:has-text('the run is over')", timeout=MS)
        assert tab.inner_text("#banner") == "finished after 10 rounds"


def test_a_page_without_a_stream_shows_states_now_and_then(browser: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(run_of(["a", "b", "c"], 10)) as page:
        context = browser.new_context()
        tab = context.new_page()
        monkeypatch.setattr(streams, "MAX_STREAMS", 0)
        tab.goto(page.url)
        tab.wait_for_selector("#connection:has-text('too many pages are open')", timeout=MS)
        assert "round 10 of 100" in tab.inner_text("#rounds")
        context.close()


# --- real processes ---


def visited(process: Process) -> tuple[str, Any]:
    """Return the address of a process' page, and what opens it with the cookie."""
    url = process.line(r"page: (http://127\.0\.0\.1:\d+/enter\?token=\S+)")[1]
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
    opener.open(url, timeout=SOON_S).close()
    return url.partition("/enter")[0], opener


def state_of(page: tuple[str, Any]) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(page[1].open(f"{page[0]}/state", timeout=SOON_S).read())
    return state


def test_servers_and_watchers_serve_the_page(tmp_path: Path) -> None:
    config, address, out = tmp_path / "digits.toml", free_address(), tmp_path / "run"
    config.write_text(DIGITS, encoding="utf-8")
    with Processes() as processes:
        options = ("--web", "127.0.0.1:0", "-q", *sets("federation.clients=2", "strategy.cohort=2"))
        server = processes.breakwater("server", config, "--listen", address, "--out", out, *options)
        page = visited(server)
        clients = [processes.breakwater("client", "--connect", address, "--name", name) for name in ("alice", "bob")]
        until(lambda: state_of(page).get("round", 0) > 3, "rounds")
        rows = {row["name"]: row for row in state_of(page)["parties"]}
        assert rows.keys() == {"alice", "bob"}
        assert all(row["connected"] and row["answered_at"] and row["accepted"] for row in rows.values())
        watcher = processes.breakwater("watch", address, "--json", "--web", "127.0.0.1:0")
        assert json.loads(watcher.line(r"(\{.*\})")[1])["run"] == "run"
        watched = visited(watcher)
        until(lambda: state_of(watched).get("round", 0) > 3, "the watcher's page")
        assert {row["name"] for row in state_of(watched)["parties"]} == {"alice", "bob"}

        token = (out / TOKEN_FILE).read_text().strip()
        server.ctrl_c()
        server.ends(130)
        assert os.stat(out / TOKEN_FILE).st_mode & 0o77 == 0
        assert "interrupted" in server.said()
        logged = (out / "logs" / "server.log").read_text()
        assert "the page is served on http://127.0.0.1:" in logged
        assert token not in logged
        again = processes.breakwater("server", "--resume", out, "--web", page[0].removeprefix("http://"))
        again.line("page: ")
        assert state_of(page)["run"] == "run", "the old cookie is good for the next server"
        for process in (*clients, watcher, again):
            process.ctrl_c()
            process.wait()
