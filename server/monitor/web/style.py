"""The page's style sheet: light and dark, one column on a phone; a row of a table becomes a card there."""

from server.monitor.report.templates import PALETTE

STYLE = (
    PALETTE
    + """
* { box-sizing: border-box; }
[hidden] { display: none !important; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 1340px; padding: 14px 24px 40px; background: var(--page); color: var(--ink);
  font: 14px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums; }
h1 { font-size: 1.25rem; line-height: 1.3; margin: 0; overflow-wrap: anywhere; }
h1 small { font-size: .9rem; font-weight: 400; color: var(--soft); }
h2 { font-size: 1.05rem; margin: 0; }
p { margin: 0; }
.soft, figcaption, caption { color: var(--soft); }
header { display: flex; flex-wrap: wrap; gap: 4px 20px; justify-content: space-between; align-items: baseline; }
#connection::before { content: ""; display: inline-block; width: .6em; height: .6em; margin-right: .5em;
  border-radius: 50%; background: var(--good); }
#connection.away { color: var(--bad); } #connection.away::before { background: var(--bad); }
#connection.over { color: var(--soft); } #connection.over::before { background: var(--soft); }
.banner { margin: 10px 0 0; padding: 7px 12px; border: 1px solid var(--line); border-left: 4px solid var(--c4);
  border-radius: 4px; background: var(--card); overflow-wrap: anywhere; }
.banner.bad { border-left-color: var(--bad); } .banner.good { border-left-color: var(--good); }
#progress { display: flex; flex-wrap: wrap; gap: 2px 14px; align-items: center; margin: 12px 0; }
progress { flex: 1 1 240px; height: 8px; appearance: none; border: 0; border-radius: 4px; overflow: hidden;
  background: var(--grid); }
progress::-webkit-progress-bar { background: var(--grid); }
progress::-webkit-progress-value { background: var(--c0); } progress::-moz-progress-bar { background: var(--c0); }
#tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(108px, 1fr)); gap: 8px; margin: 0 0 16px; }
#tiles div { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: 6px 10px;
  min-width: 0; }
#tiles dt { color: var(--soft); font-size: .8rem; }
#tiles dd { margin: 0; font-size: 1.1rem; font-weight: 600; white-space: nowrap; }
#tiles dd.more { font-size: .8rem; font-weight: 400; color: var(--soft); min-height: 1.45em; white-space: normal; }
#curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 320px), 1fr)); gap: 14px 20px;
  margin-bottom: 22px; }
figure { margin: 0; min-width: 0; } figcaption { font-size: .88rem; } figcaption b { color: var(--ink); }
figure svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { fill: var(--soft); font-size: 11.5px; } svg .grid { stroke: var(--grid); }
svg path { fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke: var(--c0); }
svg path.second { stroke: var(--c1); stroke-dasharray: 6 3; }
.head { display: flex; flex-wrap: wrap; gap: 2px 18px; align-items: baseline; margin: 0 0 6px; padding-bottom: 4px;
  border-bottom: 1px solid var(--line); }
.head label { margin-left: auto; }
select { font: inherit; color: var(--ink); background: var(--card); border: 1px solid var(--line); border-radius: 4px;
  padding: 2px 4px; }
table { border-collapse: collapse; width: 100%; font-size: .93rem; }
caption { text-align: left; padding: 2px 0 4px; font-size: .88rem; }
th, td { padding: 3px 12px 3px 0; text-align: left; vertical-align: top; border-top: 1px solid var(--grid);
  overflow-wrap: anywhere; }
thead th { border-top: 0; color: var(--soft); font-weight: 600; font-size: .85rem; overflow-wrap: normal; }
.number { text-align: right; white-space: nowrap; overflow-wrap: normal; }
th.number { white-space: normal; }
#latest td.number, #latest td.party { width: 1%; text-align: left; } #latest td.party { min-width: 16ch; }
#parties td.party { font-weight: 600; min-width: 11ch; } #parties td.state, #parties td.last { white-space: nowrap; }
#parties td.why { width: 34%; }
tr.absent td { color: var(--soft); } tr.absent td.state, .bad { color: var(--bad); } td.odd { font-weight: 600; }
.note { margin: 8px 0 22px; max-width: 90ch; font-size: .88rem; }
.two { display: grid; grid-template-columns: 2fr 1fr; gap: 0 36px; } .two table { align-self: start; }
footer { margin-top: 26px; font-size: .88rem; overflow-wrap: anywhere; }
@media (max-width: 900px) {
  body { padding: 10px 12px 32px; }
  .two { grid-template-columns: minmax(0, 1fr); gap: 12px; }
  #parties, #parties tbody { display: block; } #parties thead { display: none; }
  #parties tr { display: grid; grid-template-columns: repeat(6, minmax(0, 1fr)); gap: 3px 12px; padding: 8px 0;
    border-top: 1px solid var(--line); }
  #parties tbody td { display: block; border: 0; padding: 0; text-align: left; white-space: normal; min-width: 0;
    width: auto; order: 1; grid-column: span 2; }
  #parties td::before { content: attr(data-label); display: block; color: var(--soft); font-size: .8rem;
    font-weight: 400; }
  #parties td.party::before, #parties td.state::before { content: none; }
  #parties tbody td.party, #parties tbody td.state { grid-column: span 3; order: 0; }
  #parties tbody td.state { text-align: right; }
  #parties tbody td.last { white-space: normal; }
  #parties tbody td.why { grid-column: 1 / -1; width: auto; } #parties tbody td.none { display: none; }
  #latest td.party { min-width: 0; width: auto; }
  .head label { margin-left: 0; }
}
"""
)
"""No images, fonts or addresses from elsewhere."""
