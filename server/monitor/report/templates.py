"""The templates of the pages, in Jinja2, and the environment that fills them in.

Clients choose their names, and the log quotes what they sent. So the environment makes every value safe that a template
shows: control characters and marks of direction become codes (``_visible``), and Jinja2
escapes HTML. The page itself forbids scripts and any address on the network (its Content-Security-Policy).

They are text in a module, not files beside it, because a Flower App Bundle takes no files of other kinds.
"""

from collections.abc import Mapping
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from foundation.text import escaped

PALETTE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --page: #ffffff; --card: #f6f8fa; --line: #d0d7de;
  --grid: #e4e7eb; --link: #0550ae; --bad: #a40e26; --good: #116329;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #b8578c; --c4: #b87400; --c5: #2b8cc4; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ed; --soft: #a3abb5; --page: #14171b; --card: #1d2126; --line: #3a4149; --grid: #2c3238;
    --link: #79b8ff; --bad: #ff8f97; --good: #6fdd8b;
    --c0: #56b4e9; --c1: #f08a3c; --c2: #35c79b; --c3: #dd9cc2; --c4: #e69f00; --c5: #f0e442; } }
"""
"""The colours of all pages, light and dark."""

STYLE = (
    PALETTE
    + """* { box-sizing: border-box; }
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
)
"""Light and dark, one column on a phone and three on a desktop; no script and nothing from elsewhere."""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<link rel="icon" href="data:,">
<title>Breakwater report: {{ heading | cut(200) }}</title>
<style>{{ style | safe }}</style>
</head>
<body>
<main>
<h1>{{ heading | cut }}</h1>
{% block main %}{% endblock %}
</main>
</body>
</html>
"""

_PIECES = """
{% macro section(id, heading) %}
<section id="{{ id }}" class="{{ id }}" aria-labelledby="h-{{ id }}">
<h2 id="h-{{ id }}">{{ heading }}</h2>
{{ caller() }}
</section>
{% endmacro %}

{% macro name(text) %}<bdi class="name" title="{{ text | cut(64) }}">{{ text | cut(64) }}</bdi>{% endmacro %}

{# heads: class and heading of each column; the class is "" for numbers. The rows are written by the caller. #}
{% macro table(caption, heads) %}
<div class="box" tabindex="0" role="region" aria-label="{{ caption }}"><table><caption>{{ caption }}</caption>
<thead><tr>
{%- for class, head in heads %}<th scope="col"{% if class %} class="{{ class }}"{% endif %}>{{ head }}</th>{% endfor -%}
</tr></thead>
<tbody>
{{ caller() }}
</tbody></table></div>
{% endmacro %}

{# What scrolls in its own box, and keeps its lines. #}
{% macro preformatted(lines, label) %}
<pre tabindex="0" role="region" aria-label="{{ label }}">
{%- for line in lines %}{{ line | cut(400) }}{{ "" if loop.last else "\\n" | safe }}{% endfor -%}
</pre>
{% endmacro %}

{# Narrow screens show one horizontal axis, which is chosen here; wide ones have all three side by side. #}
{% macro curves(figures) %}
<fieldset class="against"><legend>Curves against</legend><span>
{%- for key, text in [("round", "rounds"), ("bytes", "bytes up"), ("seconds", "seconds")] -%}
<label><input type="radio" name="x" id="x-{{ key }}"{% if loop.first %} checked{% endif %}>{{ text }}</label>
{%- endfor -%}
</span></fieldset>
<div class="grid">
{% for figure in figures %}
<figure class="x-{{ figure.against }}">
<figcaption><b>{{ figure.y }}</b> against {{ figure.x }}</figcaption>
{{ figure.svg | safe }}
</figure>
{% endfor %}
</div>
{% endmacro %}
"""

_SINGLE = """
{% extends "page" %}
{% import "pieces" as pieces %}
{% block main %}
<p><strong class="{{ run.status | cut(20) }}">{{ status }}</strong> <span class="soft">Run folder {{ folder | cut }}</span></p>
{% if failure %}
<p class="warning"><strong>The attack failed</strong> in {{ failure.replies | cut(20) }} replies: {{ failure.reason | cut(300) }}. These replies are missing, so this run does not show what the method withstands.</p>
{% endif %}
{% if incomplete %}
{% set s = "s" if incomplete | length > 1 else "" %}
<p class="warning">{{ incomplete | length | thousands }} incomplete round{{ s }}: fewer replies than the quorum came, so that none was used (round{{ s }} {% for r in incomplete[:20] %}{{ r | thousands }}{{ "" if loop.last else ", " }}{% endfor %}{{ ", ..." if incomplete | length > 20 else "" }}).</p>
{% endif %}
<dl class="tiles">{% for key, value in tiles %}<div><dt>{{ key }}</dt><dd>{{ value }}</dd></div>{% endfor %}</dl>

{% call pieces.section("config", "What was run") %}
{% if sentences is not none %}
<dl class="words">
{%- for word, sentence in sentences %}
{%- set class = ' class="warn"' | safe if word == "warning" else "" -%}
<dt{{ class }}>{{ word | cut }}</dt><dd{{ class }}>{{ sentence | cut }}</dd>
{%- endfor -%}
</dl>
{% elif run.text %}
<p>This version of Breakwater cannot read the config.</p>
{% endif %}
{% if run.text %}
<details><summary>The whole config, every value resolved</summary>
{{ pieces.preformatted(run.text.splitlines(), "config.toml") }}
</details>
{% else %}
<p>The run folder has no config.toml.</p>
{% endif %}
{% endcall %}

{% call pieces.section("curves", "How it went") %}
{% if curves %}
{{ pieces.curves(curves) }}
{% if claimed %}
<p>Claimed: loss and accuracy are medians of what clients report of their own data. The server has not measured them.</p>
{% endif %}
{% if run.status == "diverged" %}
<p>A cross marks the last finite value before the run diverged.</p>
{% endif %}
{% else %}
<p>No model was measured.</p>
{% endif %}
{% endcall %}

{% if claims is not none %}
{% call pieces.section("claims", "What clients claim") %}
{% if claims.shortage %}
<p class="warning">{{ claims.shortage[0] | upper }}{{ claims.shortage[1:] }}.</p>
{% endif %}
{% for measure, median, low, high in claims.figures %}
<p>Claimed {{ measure }}: median {{ median }}{% if low != none_ %}, quartiles {{ low }} and {{ high }}{% endif %}.</p>
{% endfor %}
{% set more = "; %s more are in metrics.jsonl" | format(claims.more | thousands) if claims.more else "" %}
{% call pieces.table("Claimed by each client about the model of round %s%s" | format(claims.round | thousands, more), [("text", "client"), ("", "claimed loss"), ("", "claimed accuracy"), ("", "claimed samples"), ("text", "no answer")]) %}
{% for name, loss, accuracy, samples, reason in claims.rows %}
<tr><td class="text">{{ pieces.name(name) }}</td><td>{{ loss }}</td><td>{{ accuracy }}</td><td>{{ none_ if samples is none else samples | thousands }}</td><td class="text">{{ (reason | cut(120)) or none_ }}</td></tr>
{% endfor %}
{% endcall %}
<p><small>Each client measures the model on its own data; nobody can check the result. The medians lie within what honest clients report, however the byzantine ones lie. Claims have no effect on the model.</small></p>
{% endcall %}
{% endif %}

{% if costs %}
{% call pieces.section("costs", "Bytes and seconds of a round") %}
<div class="grid">
{% for cost in costs %}
<figure>
<figcaption><b>{{ cost.label }}</b>, median: {{ cost.medians }}
{%- if cost.above %}. Triangles are beyond the axis: up to {{ cost.above[0] }}, round {{ cost.above[1] | thousands }}{% endif -%}
</figcaption>
{{ cost.svg | safe }}
</figure>
{% endfor %}
</div>
{% if stretched %}
<p><small>Lines are medians over stretches of rounds; shades reach from the lowest to the highest value.</small></p>
{% endif %}
{% endcall %}
{% endif %}

{% if clients %}
{% call pieces.section("clients", "Who attacked") %}
{% set more = run.suspects | length - clients | length %}
{% call pieces.table("Clients, the most suspicious first" ~ ("; %s more are in metrics.jsonl" | format(more | thousands) if more else ""), columns) %}
{% for client in clients %}
<tr>
{%- for class, head in columns -%}
<td{% if class %} class="{{ class }}"{% endif %}>
{%- if head == "client" %}{{ pieces.name(client.name) }}
{%- elif head == "score" %}<b>{{ client.score | digits(".1f") }}</b>
{%- elif head == "because" %}{{ client.because | cut(80) or none_ }}
{%- elif head == "rejected" %}
{%- for reason, times in (client.rejected | ranked)[:8] -%}
{% if not loop.first %}<br>{% endif %}{{ reason | cut(80) }}: {{ times | thousands }}
{%- else %}{{ none_ }}
{%- endfor %}
{%- elif head == "kept" %}{{ none_ if client.kept is none else "%.0f %%" | format(100 * client.kept) }}
{%- elif head in ("distance", "weight") %}{{ client[head] | digits(".3g") }}
{%- elif head == "cosine" %}{{ client.cosine | digits(".2f") }}
{%- else %}{{ client[head] | thousands }}
{%- endif -%}
</td>
{%- endfor -%}
</tr>
{% endfor %}
{% endcall %}
<p>{{ statement }}</p>
<p><small>Replied: rounds in which a reply arrived in time, good or bad. Distance: of a client&rsquo;s vector to the aggregate, in units of the round&rsquo;s median; the median over rounds. Cosine: its agreement with the aggregate; the median over rounds. Kept: the share of its length that clipping left, on average. Same: rounds in which it sent exactly what a few others sent. The score has no effect: nobody is banned.</small></p>
{% if run.rejected %}
<h3>Rejected, by reason</h3>
{% call pieces.table("Replies that did not count, all clients", [("text", "reason"), ("", "replies")]) %}
{% for reason, times in (run.rejected | ranked)[:40] %}
<tr><td class="text">{{ reason | cut(80) }}</td><td>{{ times | thousands }}</td></tr>
{% endfor %}
{% endcall %}
{% else %}
<p>No reply was rejected.</p>
{% endif %}
{% endcall %}
{% endif %}

{% call pieces.section("log", "End of the server\N{RIGHT SINGLE QUOTATION MARK}s log") %}
{% if log is none %}
<p>The run folder has no log of the server.</p>
{% elif log %}
<div class="tail">{{ pieces.preformatted(log, "the last %d lines of logs/server.log" | format(log | length)) }}</div>
{% else %}
<p>The log is empty: nothing out of the ordinary happened.</p>
{% endif %}
{% endcall %}

{% call pieces.section("versions", "Versions") %}
{% if versions %}
<p>{% for key, value in versions.items() %}{{ key | cut(40) }} {{ value | cut(40) }}{{ "" if loop.last else ", " }}{% endfor %}</p>
{% for name, code in other_code.items() %}
<p>{{ name | cut(64) }} runs other code: {{ code | cut(140) }}</p>
{% endfor %}
{% else %}
<p>Unknown: the run has not ended in order.</p>
{% endif %}
{% if starts > 1 %}
<p>The server was started {{ starts }} times for this run.</p>
{% endif %}
{% endcall %}
{% endblock %}
"""

_SEVERAL = """
{% extends "page" %}
{% import "pieces" as pieces %}
{% block main %}
{% set s = "s" if groups | length > 1 else "" %}
<p class="soft">{{ runs | length }} runs of {{ groups | length }} setting{{ s }}{{ ", some with several seeds" if runs | length != groups | length else "" }}.</p>

{% call pieces.section("curves", "How they went") %}
{% if curves %}
<ul class="legend">{% for group in drawn %}<li>{{ swatches[loop.index0] | safe }}{{ group.label | cut(200) }}</li>{% endfor %}</ul>
{% if several_seeds %}
<p><small>Lines are medians over the seeds, shades reach from the lowest to the highest. A line ends where the first seed ends; a seed that got less than half as far as the longest one is left out of this.</small></p>
{% endif %}
{% if groups | length > drawn | length %}
<p>The first {{ drawn | length }} of {{ groups | length }} settings are drawn; the tables have all.</p>
{% endif %}
{{ pieces.curves(curves) }}
{% if diverged %}
<p><small>A cross marks the last finite value of a line whose runs diverged.</small></p>
{% endif %}
{% else %}
<p>No model was measured.</p>
{% endif %}
{% endcall %}

{% call pieces.section("finals", "Where they ended") %}
{% call pieces.table("Medians over the seeds; in brackets the lowest and the highest" if several_seeds else "The last values", [("text", "settings"), ("", "seeds"), ("text", "ended"), ("", "rounds")] + labels + [("", "bytes up"), ("", "bytes down"), ("", "time in rounds"), ("", "rejected")]) %}
{% for final in finals %}
<tr><td class="text">{% if loop.index0 < swatches | length %}{{ swatches[loop.index0] | safe }}{% endif %}{{ final.label | cut(200) }}</td><td>{{ final.seeds }}</td><td class="text">{{ final.ended | cut(200) }}</td><td>{{ final.rounds }}</td>
{%- for middle, low, high in final.measures -%}
<td>{{ middle }}{% if low is not none %} <small>[{{ low }}, {{ high }}]</small>{% endif %}</td>
{%- endfor -%}
{%- for cost in final.costs %}<td>{{ cost }}</td>{% endfor -%}
</tr>
{% endfor %}
{% endcall %}
{% endcall %}

{% call pieces.section("runs", "Each run") %}
{% set more = rows | length - most_rows %}
{% call pieces.table("Run folders" ~ ("; %d more are left out" | format(more) if more > 0 else ""), [("text", "run folder"), ("text", "settings"), ("", "seed"), ("text", "ended"), ("", "rounds")] + labels) %}
{% for row in rows[:most_rows] %}
<tr><td class="text">{% if row.link %}<a href="{{ row.link }}">{{ row.folder | cut(200) }}</a>{% else %}{{ row.folder | cut(200) }}{% endif %}</td><td class="text">{{ row.label | cut(200) }}</td><td>{{ row.seed | cut(30) }}</td><td class="text">{{ row.ended | cut(40) }}</td><td>{{ row.rounds | thousands }}</td>
{%- for value in row.measures %}<td>{{ value }}</td>{% endfor -%}
</tr>
{% endfor %}
{% endcall %}
{% endcall %}

{% call pieces.section("config", "What they have in common") %}
{% if common is none %}
<p>Not every run folder has a config.toml that can be read.</p>
{% elif common %}
{{ pieces.preformatted(common.splitlines(), "settings of all runs") }}
{% else %}
<p>No setting.</p>
{% endif %}
{% endcall %}
{% endblock %}
"""

_COLOURS = (
    "--grid: rgba(128, 128, 128, .3); --c0: #1f83c4; --c1: #d9691a; --c2: #12a07a; --c3: #c06a9a; --c4: #c08410; "
    "--c5: #56a5d8"
)
"""Of a fragment, whose page is light or dark; nothing but the charts uses them."""

_FRAGMENT = """
{% macro charts(figures) %}
<div style="display: flex; flex-wrap: wrap; gap: 18px">
{% for figure in figures %}
<figure style="margin: 0; width: 420px; max-width: 100%">
<figcaption><b>{{ figure.y }}</b> against {{ figure.x }}</figcaption>
{{ figure.svg | safe }}
</figure>
{% endfor %}
</div>
{% endmacro %}
"""

_RUN_FRAGMENT = """
{% import "fragment" as fragment %}
<div class="breakwater" style="{{ colours }}">
<p><b>{{ heading | cut(200) }}</b><br>{{ status | cut(800) }}</p>
<table><thead><tr>{% for head, _ in tiles %}<th>{{ head }}</th>{% endfor %}</tr></thead>
<tbody><tr>{% for _, value in tiles %}<td>{{ value }}</td>{% endfor %}</tr></tbody></table>
{{ fragment.charts(figures) }}
<p><code>{{ folder | cut(300) }}</code></p>
</div>
"""

_RUNS_FRAGMENT = """
{% import "fragment" as fragment %}
<div class="breakwater" style="{{ colours }}">
<p>{% for swatch, label in legend %}<span style="white-space: nowrap; margin-right: 1.5em">{{ swatch | safe }} \
{{ label | cut(200) }}</span> {% endfor %}</p>
{{ fragment.charts(figures) }}
<table><thead><tr><th>settings</th><th>runs</th><th>ended</th><th>rounds</th>
{%- for label in labels %}<th>{{ label }}</th>{% endfor -%}
<th>bytes up</th><th>bytes down</th><th>time in rounds</th><th>rejected</th></tr></thead><tbody>
{% for row in finals %}
<tr><td>{{ row.label | cut(200) }}</td><td>{{ row.seeds }}</td><td>{{ row.ended | cut(80) }}</td><td>{{ row.rounds }}</td>
{%- for middle, low, high in row.measures %}<td>{{ middle }}{% if low is not none %} ({{ low }} to {{ high }}){% endif %}</td>
{%- endfor -%}
{%- for cost in row.costs %}<td>{{ cost }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table>
</div>
"""

NONE = "\N{EN DASH}"
"""Shown in place of a missing number."""


def page(template: str, **values: Any) -> str:
    """Return the page "single" or "several", or the fragment "run-fragment" or "runs-fragment", with these values."""
    return _environment.get_template(template).render(values, style=STYLE, colours=_COLOURS, none_=NONE)


def digits(value: float | None, form: str) -> str:
    """Return a number in this format, with a true minus sign; a dash for None."""
    return NONE if value is None else format(value, form).replace("-", "\N{MINUS SIGN}")


def _cut(text: object, most: int = 2000) -> str:
    """Return at most this many characters of a text, with a sign that more are missing."""
    shown = escaped(str(text)[: most + 1])
    return shown if len(shown) <= most else shown[:most] + "\N{HORIZONTAL ELLIPSIS}"


def _ranked(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return counts, the highest first."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _visible(value: object) -> object:
    """Return what a template shows, with codes in place of characters that are not printable."""
    return value if isinstance(value, Markup) else escaped(str(value))


_environment = Environment(
    loader=DictLoader(
        {"page": _PAGE, "pieces": _PIECES, "single": _SINGLE, "several": _SEVERAL, "fragment": _FRAGMENT}
        | {"run-fragment": _RUN_FRAGMENT, "runs-fragment": _RUNS_FRAGMENT}
    ),
    autoescape=True,
    finalize=_visible,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.filters |= {"cut": _cut, "digits": digits, "ranked": _ranked, "thousands": "{:,}".format}
