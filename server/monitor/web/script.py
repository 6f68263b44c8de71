"""The page's script: takes states as server-sent events and shows them; it sends nothing but GET requests.

All text is set by ``textContent``, and the page's policy (Trusted Types) forbids every other way, so that names and
reasons that clients have chosen are text whatever they hold.
"""

SCRIPT = r"""
"use strict";
(() => {
const SVG = "http://www.w3.org/2000/svg", NONE = "\u2013", KEPT = 300, STILL_MS = 15000;
const ENDED = new Set(["finished", "diverged", "stalled"]);
const byId = id => document.getElementById(id);

// --- words ---

// Control characters, marks of direction and line ends of any kind cannot be seen, so they are shown as "?".
const plain = (text, most = 300) => String(text ?? "").slice(0, most).replace(/[\p{C}\p{Zl}\p{Zp}]/gu, "?");
const known = value => typeof value === "number" && Number.isFinite(value);
const share = (part, whole) => whole ? percent(part / whole) : NONE;
const percent = value => known(value) ? (100 * value).toFixed(1) + " %" : NONE;
const whole = value => known(value) ? Math.round(value).toLocaleString("en") : NONE;
const figure = value => {
  if (!known(value)) return NONE;
  const size = Math.abs(value);
  return (size && (size < 1e-3 || size >= 1e6) ? value.toExponential(2) : String(Number(value.toPrecision(4))))
    .replace("-", "\u2212");
};
const bytes = value => {
  if (!known(value)) return NONE;
  let unit = 0;
  while (value >= 1000 && unit < 4) { value /= 1000; unit++; }
  return (unit ? value.toFixed(1) : Math.round(value)) + " " + ["B", "kB", "MB", "GB", "TB"][unit];
};
const duration = seconds => {
  const s = Math.max(0, Math.round(seconds));
  if (s < 120) return s + " s";
  if (s < 7200) return Math.floor(s / 60) + " min";
  if (s < 172800) return Math.floor(s / 3600) + " h " + Math.floor(s % 3600 / 60) + " min";
  return Math.floor(s / 86400) + " days";
};

// --- elements ---

const put = (element, text) => { if (element.textContent !== text) element.textContent = text; };
const make = (name, attributes, text) => {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
};
const tile = (id, value, more = "") => {
  const box = byId("tile-" + id);
  box.hidden = value === null;
  if (value === null) return;
  put(box.children[1], value);
  put(box.children[2], more);
};
const banner = (text, kind = "") => {
  const box = byId("banner");
  box.hidden = !text;
  box.className = "banner " + kind;
  put(box, text);
};
// Give a table body as many rows as there are, each with as many cells, and keep those that are there.
const rows = (body, count, cells) => {
  while (body.rows.length > count) body.deleteRow(-1);
  while (body.rows.length < count) body.insertRow();
  for (const row of body.rows) {
    while (row.cells.length > cells) row.deleteCell(-1);
    while (row.cells.length < cells) row.insertCell().append(document.createElement("bdi"));
  }
  return body.rows;
};
const fill = (cell, text, kind, label) => {
  put(cell.firstChild, text);
  if (!text) kind += " none";
  if (cell.className !== kind) cell.className = kind;
  if (label && cell.dataset.label !== label) cell.dataset.label = label;
};

// --- curves ---

const LEFT = 52, RIGHT = 412, TOP = 10, BOTTOM = 146;
// lines: [{points: [[x, y], ...], name}]; y may be null.
const chart = (id, lines, {log = false, form = figure, formX = whole, least = null, most = null} = {}) => {
  const box = byId("chart-" + id), points = lines.flatMap(line => line.points);
  const usable = y => known(y) && (!log || y > 0);
  const xs = points.map(p => p[0]), ys = points.map(p => p[1]).filter(usable);
  box.hidden = xs.length < 2 || !ys.length;
  if (box.hidden) return;
  const scale = log ? Math.log10 : y => y;
  let low = scale(least ?? Math.min(...ys)), high = scale(most ?? Math.max(...ys));
  const room = 0.06 * (high - low) || Math.abs(high) * 0.05 || 0.5;
  if (least === null) low -= room;
  if (most === null) high += room;
  if (least === 0 && Math.max(...ys) <= 0) high = 1;
  const first = Math.min(...xs), last = Math.max(...xs);
  const px = x => LEFT + (RIGHT - LEFT) * (last > first ? (x - first) / (last - first) : 0);
  const py = y => BOTTOM - (BOTTOM - TOP) * (scale(y) - low) / (high - low || 1);
  const made = [];
  for (const t of ticks(low, high, log)) {
    const value = log ? 10 ** t : t, y = py(value).toFixed(1);
    made.push(make("line", {class: "grid", x1: LEFT, x2: RIGHT, y1: y, y2: y}));
    const words = form(value).replace(".00e", "e");
    made.push(make("text", {x: LEFT - 6, y: Number(y) + 4, "text-anchor": "end"}, words));
  }
  made.push(make("text", {x: LEFT, y: 164}, formX(first)));
  made.push(make("text", {x: RIGHT, y: 164, "text-anchor": "end"}, formX(last)));
  lines.forEach((line, index) => {
    let path = "", drawn = false;
    for (const [x, y] of line.points) {
      if (usable(y)) path += (drawn ? "L" : "M") + px(x).toFixed(1) + " " + py(y).toFixed(1);
      drawn = usable(y);
    }
    const kind = index ? "second" : "first";
    made.push(make("path", {d: path || "M0 0", class: kind}));
    if (!line.name) return;
    const x = 150 + 105 * index;
    made.push(make("path", {d: "M" + x + " 160h20", class: kind}), make("text", {x: x + 25, y: 164}, line.name));
  });
  box.querySelector("svg").replaceChildren(...made);
};
const ticks = (low, high, log) => {
  const span = high - low || 1;
  let step = 10 ** Math.floor(Math.log10(span / 3));
  step *= [1, 2, 5, 10].find(k => span / (k * step) <= 4.5) ?? 10;
  if (log && span > 1.5) step = Math.max(1, Math.round(step));
  const found = [];
  for (let t = Math.ceil(low / step) * step; t <= high + 1e-9 * span; t += step)
    found.push(Math.abs(t) < 1e-9 * step ? 0 : Number(t.toPrecision(12)));
  return found;
};
const wide = values => {
  const positive = values.filter(v => known(v));
  return positive.length > 1 && positive.every(v => v > 0) && Math.max(...positive) / Math.min(...positive) > 20;
};

// --- parties ---

const claimOf = (state, row) => state.claims?.clients?.[row.name] ?? {};
const stateOf = (row, now) => {
  if (row.connected === null || row.connected === undefined) return "";
  const time = known(row.since) && known(now) ? " " + duration(now - row.since) : "";
  if (row.connected) return "connected" + time;
  return row.worker === null ? "never came" : row.since === null ? "not back yet" : "away" + time;
};
const lastOf = (row, now) => {
  if (!known(row.answered)) return row.asked ? "never" : "";
  const round = "round " + whole(row.answered);
  return known(row.answered_at) && known(now) ? duration(now - row.answered_at) + " ago, " + round : round;
};
const COLUMNS = [
  ["party", "party", row => plain(row.name, 64)],
  ["number seat", "seat", row => known(row.worker) ? String(row.worker) : ""],
  ["state", "state", (row, s) => stateOf(row, s.now)],
  ["last", "last answer", (row, s) => lastOf(row, s.now)],
  ["number", "accepted", row => row.asked ? whole(row.accepted) + " of " + whole(row.asked) : ""],
  ["number", "clipped", row => row.accepted ? share(row.clipped, row.accepted) : ""],
  ["number claim", "claimed loss", (row, s) => known(claimOf(s, row).loss) ? figure(claimOf(s, row).loss) : ""],
  ["number claim", "claimed accuracy",
   (row, s) => known(claimOf(s, row).accuracy) ? percent(claimOf(s, row).accuracy) : ""],
  ["number score", "score", row => known(row.score) ? row.score.toFixed(1) : ""],
  ["number", "rejected", row => row.rejected ? whole(row.rejected) : ""],
  ["why", "last rejection, or why it stands out", (row, s) => {
    const silent = s.claims?.missing?.[row.name];
    const words = [row.reason ? "round " + whole(row.reason_round) + ": " + plain(row.reason, 160) : "",
      row.because ? "score: " + plain(row.because, 60) : "", silent ? "no claim: " + plain(silent, 160) : ""];
    return words.filter(Boolean).join("; ");
  }],
];
const ORDERS = {
  worker: row => row.worker ?? Infinity,
  name: row => String(row.name),
  score: row => -(row.score ?? -1),
  rejected: row => -row.rejected,
  quiet: row => row.answered_at ?? row.answered ?? -1,
  state: row => row.connected ? 2 : row.worker === null ? 0 : 1,
};
const showParties = state => {
  const parties = [...(state.parties ?? [])], key = ORDERS[byId("order").value];
  parties.sort((a, b) => { const [x, y] = [key(a), key(b)]; return x < y ? -1 : x > y ? 1 : 0; });
  const claims = parties.some(row => known(claimOf(state, row).loss));
  const columns = COLUMNS.filter(([kind]) => claims || !kind.includes("claim"));
  const head = byId("parties").tHead.rows[0];
  while (head.cells.length > columns.length) head.deleteCell(-1);
  while (head.cells.length < columns.length) {
    const cell = document.createElement("th");
    cell.scope = "col";
    head.append(cell);
  }
  columns.forEach(([kind, label], j) => { put(head.cells[j], label); head.cells[j].className = kind; });
  const body = rows(byId("parties").tBodies[0], parties.length, columns.length);
  parties.forEach((row, i) => {
    body[i].className = row.connected === false ? "absent" : "";
    columns.forEach(([kind, label, text], j) => {
      const odd = kind === "number score" && row.because;
      fill(body[i].cells[j], text(row, state), odd ? kind + " odd" : kind, label);
    });
  });
  const told = parties.filter(row => typeof row.connected === "boolean");
  const there = told.filter(row => row.connected);
  const away = told.filter(row => !row.connected && row.worker !== null);
  const seated = parties.filter(row => row.worker !== null).length, free = Math.max(0, state.clients - seated);
  const words = told.length ? [whole(there.length) + " connected", whole(away.length) + " away"] : [];
  if (free) words.push(whole(free) + " of " + whole(state.clients) + " seats never taken");
  put(byId("census"), words.join(", "));
};

// --- the whole page ---

const recent = [];
let last = null;
const show = state => {
  last = state;
  if (state.status === undefined) {
    banner(state.away ? plain(state.away) : "Waiting for the first state of the run.");
    return;
  }
  document.title = plain(state.run, 60) + ", round " + whole(state.round);
  put(byId("method"), plain(state.method, 60) + " / " + plain(state.rule, 60));
  const parts = [plain(state.task, 60),
    whole(state.clients) + " parties, up to " + whole(state.byzantine) + " Byzantine",
    state.attack ? "attack: " + plain(state.attack, 60) : ""];
  put(byId("title"), parts.filter(Boolean).join(" \u00b7 "));
  const ended = ENDED.has(state.status);
  if (state.away) banner("The server is away: " + plain(state.away) + "; looking for it.", "bad");
  else if (state.line || ended)
    banner(plain(state.line || state.status, 600), state.status === "finished" ? "good" : "bad");
  else if (state.held) banner("Round " + whole(state.round + 1) + " is held: " + plain(state.held), "bad");
  else if (state.status === "waiting") banner("Waiting for clients" +
    (known(state.connected) ? ": " + whole(state.connected) + " of " + whole(state.clients) + " are connected." : "."));
  else if (state.goodbye) banner(plain(state.goodbye));
  else banner("");

  byId("bar").max = Math.max(1, state.rounds);
  byId("bar").value = state.round;
  const left = known(state.left_s) && state.status === "running" ? ", " + duration(state.left_s) + " left" : "";
  put(byId("rounds"), "round " + whole(state.round) + " of " + whole(state.rounds) + left);

  const claimed = state.measured_by === "clients" ? state.claims : null;
  const at = (claimed ? "claimed, " : "") + "at round " + whole(state.measured);
  const spread = (found, form) =>
    known(found?.low) ? ", quartiles " + form(found.low) + " to " + form(found.high) : "";
  if (!state.history.loss.length) tile("loss", NONE, "not measured");
  else tile("loss", known(state.loss) ? figure(state.loss) : "not finite", at + spread(claimed?.loss, figure));
  tile("accuracy", known(state.accuracy) ? percent(state.accuracy) : null,
       at + spread(claimed?.accuracy, percent));
  tile("gap", known(state.gap) ? figure(state.gap) : null, at);
  tile("trigger", known(state.trigger) ? percent(state.trigger) : null, at);
  tile("speed", known(state.rounds_s) ? figure(Number(state.rounds_s.toPrecision(3))) : NONE,
       known(state.round_s) ? figure(1000 * Number(state.round_s.toPrecision(3))) + " ms a round" : "");
  tile("up", bytes(state.up), known(state.up_s) ? bytes(state.up_s) + "/s" : "");
  tile("down", bytes(state.down), known(state.down_s) ? bytes(state.down_s) + "/s" : "");
  tile("connected", known(state.connected) ? whole(state.connected) + " / " + whole(state.clients) : null, "now");
  const was = state.last, all = state.all;
  tile("accepted", whole(was.accepted) + " / " + whole(was.sampled), share(all.accepted, all.sampled) + " so far");
  tile("rejected", whole(was.rejected), share(all.rejected, all.sampled) + " so far");
  tile("clipped", whole(was.clipped), share(all.clipped, all.accepted) + " so far");

  const at_ = state.history_rounds ?? [];
  for (const name of ["loss", "accuracy", "gap", "trigger"]) {
    const values = state.history[name] ?? [], points = values.map((y, i) => [at_[i] ?? i, y]);
    const shares = name === "accuracy" || name === "trigger";
    chart(name, [{points}], shares ? {form: y => Math.round(1000 * y) / 10 + " %"} : {log: wide(values)});
  }
  if (known(state.now) && !state.away && recent.at(-1)?.now !== state.now) recent.push(state);
  while (recent.length > KEPT) recent.shift();
  const since = recent.map(s => [s.now - (recent.at(-1)?.now ?? 0), s]);
  const ago = x => x > -0.5 ? "now" : duration(-x) + " ago";
  const line = (key, name) => ({name, points: since.map(([x, s]) => [x, s[key]])});
  chart("traffic", [line("up_s", "from clients"), line("down_s", "to clients")], {form: bytes, formX: ago, least: 0});
  chart("pace", [line("rounds_s")], {formX: ago, least: 0});

  showParties(state);
  const latest = [...state.rejections].reverse(), kinds = Object.entries(state.reasons).sort((a, b) => b[1] - a[1]);
  byId("rejected").hidden = !latest.length && !kinds.length;
  const lines = rows(byId("latest").tBodies[0], latest.length, 3);
  latest.forEach((each, i) => [["number", "round " + whole(each.round)], ["party", plain(each.client, 64)],
    ["", plain(each.reason, 160)]].forEach(([kind, text], j) => fill(lines[i].cells[j], text, kind)));
  const counts = rows(byId("reasons").tBodies[0], kinds.length, 2);
  kinds.forEach(([kind, count], i) => {
    fill(counts[i].cells[0], plain(kind, 160), "");
    fill(counts[i].cells[1], whole(count), "number");
  });
  const places = [state.address && "server " + plain(state.address), state.run && "run folder " + plain(state.run)];
  put(byId("server"), places.filter(Boolean).join(" \u00b7 "));
};
byId("order").addEventListener("change", () => { if (last?.status) showParties(last); });

// --- the stream ---

let source = null, delay = 1, heard = 0;
const connection = (text, kind = "") => { put(byId("connection"), text); byId("connection").className = kind; };
const take = text => { heard = Date.now(); show(JSON.parse(text)); };
const over = () => ENDED.has(last?.status) || Boolean(last?.goodbye);
const connect = () => {
  heard = Date.now();
  source = new EventSource("/events");
  source.onmessage = event => { delay = 1; connection("live"); take(event.data); };
  source.addEventListener("bye", event => {
    source.close();
    take(event.data);
    if (over()) connection("the run is over; this page no longer changes", "over");
    else again("the server was stopped, and may be started again");
  });
  source.onerror = () => { source.close(); look(); };
};
// An event source does not say why it failed, but a plain request does.
const look = async () => {
  try {
    const answer = await fetch("/state");
    if (answer.ok) {
      take(await answer.text());
      again("too many pages are open for a live one: updated now and then", 5);
    } else if (answer.status === 401) {
      again("no access any more: open the address that the server printed when it started", 10);
    } else again("the server answers with an error (" + answer.status + ")");
  } catch { again("the server cannot be reached"); }
};
const again = (reason, least = 1) => {
  let left = Math.max(delay, least);
  delay = Math.min(2 * delay, 10);
  const tick = () => {
    if (left <= 0) return connect();
    connection(reason + "; trying again in " + left + " s", "away");
    left--;
    setTimeout(tick, 1000);
  };
  tick();
};
setInterval(() => {  // a connection may die without a word
  if (source?.readyState === EventSource.OPEN && Date.now() - heard > STILL_MS) { source.close(); look(); }
}, 1000);
connect();
})();
"""
