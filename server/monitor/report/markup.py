"""Pieces of a page: text made safe, tables, figures, and the page around them with its style.

Names of clients are whatever the clients chose, and the log quotes what they sent. So every text goes through ``safe``,
and the page itself forbids scripts and any address on the network (its Content-Security-Policy).
"""

from collections.abc import Iterable, Sequence
from html import escape

from foundation.text import escaped

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --page: #ffffff; --card: #f6f8fa; --line: #d0d7de;
  --grid: #e4e7eb; --link: #0550ae; --bad: #a40e26; --good: #116329;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #b8578c; --c4: #b87400; --c5: #2b8cc4; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ed; --soft: #a3abb5; --page: #14171b; --card: #1d2126; --line: #3a4149; --grid: #2c3238;
    --link: #79b8ff; --bad: #ff8f97; --good: #6fdd8b;
    --c0: #56b4e9; --c1: #f08a3c; --c2: #35c79b; --c3: #dd9cc2; --c4: #e69f00; --c5: #f0e442; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1340px; padding: 16px 24px 48px; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.55rem; line-height: 1.25; margin: .4em 0 .2em; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2em 0 .5em; padding-bottom: .2em; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4em 0 .4em; }
p { margin: .4em 0; max-width: 76ch; overflow-wrap: anywhere; }
a { color: var(--link); }
small, .soft, figcaption { color: var(--soft); }
.finished { color: var(--good); } .diverged, .killed { color: var(--bad); }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)); gap: 10px; margin: 14px 0; }
.tiles div { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 8px 12px; }
.tiles dt { color: var(--soft); font-size: .82rem; } .tiles dd { margin: 0; font-size: 1.15rem; font-weight: 600; }
.words { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 4px 16px; margin: .6em 0;
  max-width: 110ch; }
.words dt { color: var(--soft); } .words dd { margin: 0; overflow-wrap: anywhere; }
.warning, .words .warn { color: var(--bad); }
details { margin: .6em 0; } summary { cursor: pointer; color: var(--link); }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 10px 12px; margin: .5em 0;
  overflow-x: auto; font: 13px/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.tail { display: flex; flex-direction: column-reverse; max-height: 26rem; overflow-y: auto; }
.grid { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 18px 20px; align-items: end; }
figure { margin: 0; min-width: 0; } figure > svg { display: block; width: 100%; height: auto; overflow: visible; }
figure svg * { stroke-linejoin: round; }
figcaption { font-size: .88rem; margin: 0 0 2px; } figcaption b { color: var(--ink); }
.against { border: 0; padding: 0; margin: 0 0 12px; display: none; gap: 0; }
.against legend { padding: 0; margin-bottom: 4px; font-size: .88rem; color: var(--soft); }
.against span { display: inline-flex; border: 1px solid var(--line); border-radius: 8px; overflow: hidden; }
.against label { position: relative; padding: 8px 16px; cursor: pointer; }
.against label + label { border-left: 1px solid var(--line); }
.against input { position: absolute; inset: 0; opacity: 0; margin: 0; cursor: pointer; }
.against label:has(:checked) { background: var(--link); color: var(--page); }
.against label:has(:focus-visible) { outline: 3px solid var(--c1); outline-offset: -3px; }
.box { overflow-x: auto; margin: .6em 0; border: 1px solid var(--line); border-radius: 8px; }
.box:focus-visible { outline: 3px solid var(--c1); }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: 6px 10px; color: var(--soft); font-size: .88rem; }
th, td { padding: 5px 10px; text-align: right; white-space: nowrap; border-top: 1px solid var(--line); }
thead th { border-top: 0; background: var(--card); vertical-align: bottom; font-weight: 600; }
th.text, td.text { text-align: left; } td.wrap { white-space: normal; min-width: 16ch; }
tbody tr:hover { background: var(--card); }
.name { display: inline-block; max-width: 24ch; overflow: hidden; text-overflow: ellipsis; white-space: nowrap;
  vertical-align: bottom; contain: paint; }
.swatch { vertical-align: middle; margin-right: 8px; fill: none; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 22px; margin: .4em 0 1em; padding: 0; }
.legend li { min-width: 0; overflow-wrap: anywhere; }
@media (max-width: 1023px) {
  body { padding: 10px 12px 40px; }
  .grid { grid-template-columns: minmax(0, 1fr); gap: 20px; } .against { display: block; }
  .curves:has(#x-round:checked) figure:not(.x-round), .curves:has(#x-bytes:checked) figure:not(.x-bytes),
  .curves:has(#x-seconds:checked) figure:not(.x-seconds) { display: none; }
  .words { grid-template-columns: minmax(0, 1fr); gap: 0; } .words dd { margin-bottom: 8px; }
}
@media (max-width: 639px) { pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 12px; padding: 8px; } }
@media (min-width: 640px) and (max-width: 1023px) { .grid { grid-template-columns: repeat(2, minmax(0, 1fr)); } }
@media print { .against { display: none; } .curves .grid figure { display: block !important; } }
"""
"""Light and dark, one column on a phone and three on a desktop; no script and nothing from elsewhere."""

_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<link rel="icon" href="data:,">
"""


def safe(text: object, most: int = 2000) -> str:
    """Return a text for HTML: escaped, without control characters or marks of direction, cut off where it is long."""
    said = escaped(str(text)[: most + 1])
    return escape(said if len(said) <= most else said[:most] + "\N{HORIZONTAL ELLIPSIS}")


def name(text: str) -> str:
    """Return a client's name: one short piece that cannot reach beyond itself, whatever it holds."""
    return f'<bdi class="name" title="{safe(text, 64)}">{safe(text, 64)}</bdi>'


def page(title: str, body: Iterable[str]) -> str:
    """Return the whole document."""
    return "\n".join(
        (
            f"{_HEAD}<title>{safe(title, 200)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>",
            *body,
            "</main>\n</body>\n</html>\n",
        )
    )


def section(id_: str, heading: str, *content: str) -> str:
    """Return a section with its heading; "" where there is nothing in it."""
    inside = "\n".join(filter(None, content))
    if not inside:
        return ""
    head = f'<section id="{id_}" class="{id_}" aria-labelledby="h-{id_}">\n<h2 id="h-{id_}">{heading}</h2>'
    return f"{head}\n{inside}\n</section>"


def tiles(pairs: Iterable[tuple[str, str]]) -> str:
    """Return the figures that matter most, (name, value as HTML)."""
    return '<dl class="tiles">' + "".join(f"<div><dt>{k}</dt><dd>{v}</dd></div>" for k, v in pairs) + "</dl>"


def words(pairs: Iterable[tuple[str, str]]) -> str:
    """Return (word, sentence) as a list; both are made safe here."""
    items = []
    for word, sentence in pairs:
        mark = ' class="warn"' if word == "warning" else ""
        items.append(f"<dt{mark}>{safe(word)}</dt><dd{mark}>{safe(sentence)}</dd>")
    return f'<dl class="words">{"".join(items)}</dl>'


def table(caption: str, heads: Sequence[tuple[str, str]], rows: Iterable[Sequence[str]]) -> str:
    """Return a table that scrolls inside its own box.

    Args:
        caption: what it tells; also the name of the box.
        heads: of each column (class, heading), the class "" for numbers, "text" or "text wrap".
        rows: the cells as HTML.
    """

    def cells(kind: str, texts: Iterable[str]) -> str:
        scope = ' scope="col"' if kind == "th" else ""
        marks = (f' class="{mark}"' if mark else "" for mark, _ in heads)
        return "".join(f"<{kind}{scope}{mark}>{text}</{kind}>" for mark, text in zip(marks, texts, strict=True))

    head = cells("th", (text for _, text in heads))
    body = "\n".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    box = f'<div class="box" tabindex="0" role="region" aria-label="{escape(caption)}">'
    return (
        f"{box}<table><caption>{escape(caption)}</caption>"
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def figure(svg: str, caption: str, kind: str = "") -> str:
    """Return a chart with its caption."""
    mark = f' class="{kind}"' if kind else ""
    return f"<figure{mark}>\n<figcaption>{caption}</figcaption>\n{svg}\n</figure>"


def against() -> str:
    """Return the choice of the horizontal axis, which narrow screens show; wide ones have all three side by side."""
    labels = "".join(
        f'<label><input type="radio" name="x" id="x-{key}"{" checked" if key == "round" else ""}>{text}</label>'
        for key, text in (("round", "rounds"), ("bytes", "bytes up"), ("seconds", "seconds"))
    )
    return f'<fieldset class="against"><legend>Curves against</legend><span>{labels}</span></fieldset>'


def preformatted(text: str, label: str) -> str:
    """Return text that keeps its lines; it is made safe here, line by line."""
    lines = "\n".join(safe(line, 400) for line in text.splitlines())
    return f'<pre tabindex="0" role="region" aria-label="{escape(label)}">{lines}</pre>'


def details(summary: str, content: str) -> str:
    """Return what opens on a click."""
    return f"<details><summary>{summary}</summary>\n{content}\n</details>"
