"""The documentation site builds without network access, its reference is complete, and a browser shows it correctly."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from deploy.cli import _parser
from docs.make import code_pages, commands_page, config_page
from docs.make.__main__ import build
from docs.make.pages import ASSETS, sources
from experiment.config import Config
from experiment.problems import keys_of, kinds_of
from tests.browser import started
from tests.docs.blocks import ROOT

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}
SHOWN = ("index", "tutorial", "machines", "catalogue", "reference/config", "reference/strategies", "contributing")


def test_every_key_of_every_section_is_in_the_reference() -> None:
    text = config_page.text()
    parts = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    for name, field in Config.model_fields.items():
        part = parts[f"[{name}]"]
        kinds = kinds_of(field.rebuild_annotation())
        for kind, member in kinds.items() if kinds else [(name, field.annotation)]:
            section = part.partition(f'kind = "{kind}"\n')[2].partition("\n### ")[0] if kinds else part
            for key in set(keys_of(member)) - {"kind"}:
                row = re.search(rf"^\| `{key}` \| (.+?) \| (.*?) \| (.{{4,}}) \|$", section, re.MULTILINE)
                assert row, f"[{name}] {kind}: {key} is missing or has no description"


def test_the_reference_of_the_config_knows_defaults_and_bounds() -> None:
    text = config_page.text()
    assert "| `byzantine` | whole number, from 0 | `0` | f: how many" in text
    assert "| `clients` | whole number, from 1, at most 100,000 |  | n: how many" in text
    assert '| `values` | `"full"` or `"float16"` or `"bfloat16"` | `"full"` |' in text
    assert "| `p` | number, above 0, at most 1 | unset | Probability of a full round" in text


def test_every_option_of_every_command_is_in_the_reference() -> None:
    text = commands_page.text()
    commands = [("", "", _parser()), *commands_page.commands(_parser())]
    assert {"run", "server", "client", "certs", "check", "demo"} <= {name for name, _, _ in commands}
    for name, _, parser in commands:
        section = text.partition(f"## `breakwater {name}".rstrip() + "`\n")[2].partition("\n## ")[0]
        for action in parser._actions:
            for flag in action.option_strings:
                assert flag in section or flag in ("-h", "--help"), f"breakwater {name} {flag}"


def test_every_page_is_in_the_menu() -> None:
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    for _, name in sources():
        assert f": {name}\n" in menu, name
    for name, text in code_pages.texts(ROOT):
        assert f": reference/{name}\n" in menu, name
        assert "::: " in text


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built without network access: the proxy does not exist."""
    folder = tmp_path_factory.mktemp("docs")
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in nowhere.items():
            patch.setenv(name, value)
        assert build(folder / "pages", folder / "site") == 0
    return folder / "site"


@pytest.mark.slow
def test_the_site_fetches_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?https?:[^>]*", text), page
        assert not re.findall(r"<link\b[^>]*\bhref=\"?https?:[^>]*", text), page
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?https?:|@import", style.read_text(encoding="utf-8")), style
    for name in ASSETS:
        assert (site / name).exists()


@pytest.mark.slow
def test_the_code_reference_is_there_and_was_read_without_being_run(site: Path) -> None:
    text = (site / "reference" / "strategies.html").read_text(encoding="utf-8")
    assert 'id="strategies.byz_vr_marina_pp.ByzVRMarinaPP"' in text
    assert "::</p>" not in text
    assert 'id="tasks.torch_model.TorchTask"' in (site / "reference" / "tasks.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """One browser for all tests here."""
    with started() as browser:
        yield browser


@pytest.fixture(params=list(WIDTHS.values()), ids=list(WIDTHS))
def page(request: pytest.FixtureRequest, browser: "Browser") -> Iterator["Page"]:
    """A tab that may only load files; the test fails on any other request, and on any error of the page."""
    width, height = request.param
    page = browser.new_page(viewport={"width": width, "height": height})
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda asked: None if asked.url.startswith("file:") else complaints.append(asked.url))
    yield page
    page.close()
    assert complaints == []


@pytest.mark.slow
def test_pages_fit_their_window_and_tables_scroll_inside_it(site: Path, page: "Page") -> None:
    for name in SHOWN:
        page.goto((site / f"{name}.html").as_uri())
        assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth"), name
        assert page.locator("article h1").is_visible()
        sizes: list[Any] = page.evaluate(
            "[...document.querySelectorAll('article p, article td, article li')].slice(0, 50)"
            ".map(node => parseFloat(getComputedStyle(node).fontSize))"
        )
        assert min(sizes) >= 11, name


@pytest.mark.slow
@pytest.mark.parametrize("page", [WIDTHS["desktop"]], indirect=True, ids=["desktop"])
def test_the_search_finds_a_key_of_the_config_from_the_disk(site: Path, page: "Page") -> None:
    page.goto((site / "index.html").as_uri())
    page.locator(".md-search__input").focus()
    page.keyboard.type("heartbeat_s")
    page.locator(".md-search-result__link", has_text="The config, key by key").first.wait_for()
