"""The page's document: a frame that the script fills in. Nothing that a client says is in it."""

from jinja2 import Environment, StrictUndefined

from server.monitor.curves import LABELS
from server.run_folder.record import MEASURES

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/page.css">
<script src="/page.js" defer></script>
<title>Breakwater</title>
</head>
<body>
<header>
<h1><span id="method">Breakwater</span> <small id="title"></small></h1>
<p id="connection" role="status">connecting</p>
</header>
<main>
<noscript><p class="banner bad">This page needs JavaScript: its own script, from this server alone.</p></noscript>
<p id="banner" class="banner" role="status" hidden></p>
<div id="progress"><progress id="bar" max="1" value="0" aria-label="rounds"></progress><span id="rounds"></span></div>
<dl id="tiles">
{% for id, label in tiles %}
<div id="tile-{{ id }}"><dt>{{ label }}</dt><dd></dd><dd class="more"></dd></div>
{% endfor %}
</dl>
<section aria-label="curves" id="curves">
{% for id, label, note in charts %}
<figure id="chart-{{ id }}" hidden>
<figcaption><b>{{ label }}</b> <span class="soft">{{ note }}</span></figcaption>
<svg viewBox="0 0 420 170" role="img" aria-label="{{ label }}"></svg>
</figure>
{% endfor %}
</section>
<section aria-labelledby="h-parties">
<div class="head"><h2 id="h-parties">Parties</h2><p id="census" class="soft"></p>
<label class="soft">sort by <select id="order">
{% for id, label in orders %}
<option value="{{ id }}">{{ label }}</option>
{% endfor %}
</select></label></div>
<table id="parties"><thead><tr></tr></thead><tbody></tbody></table>
<p class="soft note">Claimed: what a party says of the model on data of its own; nobody can check it. Score: how far a
party stands out over the last rounds, for a person to look into; it has no effect.</p>
</section>
<section aria-labelledby="h-rejections" id="rejected">
<div class="head"><h2 id="h-rejections">Rejections</h2>
<p class="soft">replies that did not count, missing ones too</p></div>
<div class="two"><table id="latest"><caption>The last ones</caption><tbody></tbody></table>
<table id="reasons"><caption>By kind, over the run</caption><tbody></tbody></table></div>
</section>
</main>
<footer class="soft" id="server"></footer>
</body>
</html>
"""

_TILES = (
    *((name, LABELS[name]) for name in MEASURES),
    ("speed", "rounds/s"),
    *(("up", "from clients"), ("down", "to clients"), ("connected", "connected")),
    *(("accepted", "accepted"), ("rejected", "rejected"), ("clipped", "clipped")),
)
_CHARTS = (
    *((name, LABELS[name], "against rounds") for name in MEASURES),
    ("traffic", "traffic", "bytes a second, since this page was opened"),
    ("pace", "rounds a second", "since this page was opened"),
)
_ORDERS = (
    ("worker", "seat"),
    ("name", "name"),
    ("score", "score"),
    ("rejected", "rejected"),
    ("quiet", "longest silence"),
    ("state", "absent first"),
)


def document() -> str:
    """Return the document."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_PAGE).render(tiles=_TILES, charts=_CHARTS, orders=_ORDERS)
