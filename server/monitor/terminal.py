"""What a run shows while it goes: a small live view on a terminal, plain lines elsewhere, nothing with ``--quiet``.

Both are made of a state of ``server.monitor.live``, so that `breakwater watch` shows the same on another terminal.
Names and reasons in it come from other parties: they are shown as plain text, never as markup.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from foundation.text import one_line
from foundation.units import clock, size
from server.monitor.live import LiveRun, sparkline
from strategies.strategy import RoundRecord

LINES = 12
"""About this many lines a run where the output is no terminal."""
REFRESHES = 4
"""How often the live view is drawn, a second: each time takes some 3 ms from the rounds."""

_LEAST_WIDTH, _MOST_WIDTH = 40, 120
_SPARK, _BAR = 24, 36
"""Characters of a curve, and of the bar."""


class Screen(Live):
    """Shows states on a terminal, the newest in place of the one before; use it as a context manager.

    Args:
        console: a terminal.
        state: returns the state to draw; called several times a second, by a thread of its own. None as long as there
            is nothing to show.
    """

    def __init__(self, console: Console, state: Callable[[], Mapping[str, Any] | None]) -> None:
        self._state = state
        draw = self._draw
        super().__init__(console=console, get_renderable=draw, refresh_per_second=REFRESHES, vertical_overflow="crop")

    def _draw(self) -> RenderableType:
        state = self._state()
        return Text("") if state is None else view(state, self.console.width)


class RunProgress(ExitStack):
    """Shows one run while it goes; use it as a context manager.

    Args:
        console: where to write.
        live: the run's state; rounds are added there before they are added here.
        quiet: show nothing.
    """

    def __init__(self, console: Console, live: LiveRun, *, quiet: bool = False) -> None:
        super().__init__()
        self._live = live
        moves = console.is_terminal and not console.is_dumb_terminal
        self._screen = Screen(console, live.state) if moves and not quiet else None
        self._lines = None if quiet or moves else PlainLines(console)

    def __enter__(self) -> Self:
        if self._screen is not None:
            self.enter_context(self._screen)
        return self

    def start(self) -> None:
        """Show the starting point."""
        if self._lines is not None:
            self._lines.add(self._live.state())

    def add(self, record: RoundRecord) -> None:
        """Show one finished round."""
        if self._lines is not None and self._lines.due(record.round):
            state = self._live.state()
            if record.headline is not None or state["measured_by"] == "none":
                self._lines.add(state)


class PlainLines:
    """Writes states as lines, about ``LINES`` a run."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next = 0
        self._rounds = 0

    def due(self, round_: int) -> bool:
        """Return whether a line is due after this round."""
        return round_ >= self._next or round_ == self._rounds

    def add(self, state: Mapping[str, Any]) -> None:
        """Write a state, and none before a twelfth of the run has passed."""
        self._rounds = state["rounds"]
        self._next = state["round"] + self._rounds // LINES if state["round"] else 0
        self._console.print(Text(plain(state)), soft_wrap=True)


def plain(state: Mapping[str, Any]) -> str:
    """Return a state as one line."""
    parts = [f"{state['method']}/{state['rule']}", f"round {state['round']}/{state['rounds']}", *_measured(state)]
    if state["round_s"] is not None:
        parts += [f"{1000 * state['round_s']:.1f} ms/round", f"{size(state['up'])} up", f"{size(state['down'])} down"]
    return one_line("  ".join(parts))


def last_line(summary: Mapping[str, Any], out: Path) -> str:
    """Return the last line that a user sees of a run.

    Args:
        summary: as the run folder has it.
        out: the run folder.
    """
    final = "".join(f"{each}  " for each in _measured(summary))
    failure = summary.get("attack_failure")
    failed = f"the attack failed in {failure['replies']} replies ({one_line(failure['reason'])})  " if failure else ""
    traffic = f"{size(summary['bytes_up'])} up  {size(summary['bytes_down'])} down"
    ended = f"{summary['status']} after {summary['rounds']} rounds in {summary['wall_s']:.1f} s"
    if summary.get("ended"):
        best = summary.get("best")
        ended += f" ({summary['ended']}{'' if best is None else '; best model: round ' + str(best['round'])})"
    return f"{ended}  {final}{failed}{traffic}  run folder {out}"


def _measured(found: Mapping[str, Any]) -> list[str]:
    measures = [f"{'f-f*' if name == 'gap' else name} {figure}" for name, figure in _figures(found).items()]
    return measures + ["(claimed)"] * (bool(measures) and found.get("measured_by") == "clients")


def _figures(found: Mapping[str, Any]) -> dict[str, str]:
    """Return measures for people; None is a loss that is not finite, and a gap or an accuracy that is not known.

    A state or summary without any measurement has none: who follows a run folder does not know of x^0, and perhaps
    nobody measures.
    """
    formats = {"gap": "{:.1e}", "accuracy": "{:.1%}", "trigger": "{:.1%}"}
    if not found["history"]["loss"] if "history" in found else found.get("measured_by") == "none":
        return {}
    loss = "not finite" if found["loss"] is None else f"{found['loss']:.4g}"
    known = {name: found[name] for name in formats if found.get(name) is not None}
    return {"loss": loss} | {name: formats[name].format(value).replace("%", " %") for name, value in known.items()}


# --- the live view ----------------------------------------------------------------------------------------------------


def view(state: Mapping[str, Any], width: int) -> RenderableType:
    """Return the live view of a state: some ten lines, none of them wider than the terminal.

    Args:
        state: see ``server.monitor.live``.
        width: of the terminal, in characters.

    Raises:
        KeyError, TypeError, ValueError: it is no state.
    """
    width = max(_LEAST_WIDTH, min(width, _MOST_WIDTH))
    # Single lines, no longer than they must be: a terminal that is made narrower then breaks few of them.
    rows = [Text.assemble((f"{name:<11}", "dim"), value) for name, value in _rows(state, width - 11)]
    return Group(*(_line(text, width) for text in (_headline(state), _bar(state, width), *rows)))


def _headline(state: Mapping[str, Any]) -> Text:
    attack = f"{state['byzantine']} of {state['clients']} attack by {state['attack']}" if state["attack"] else ""
    text = Text(one_line(f"{state['method']} / {state['rule']}"), style="bold")
    rest = [state["task"], attack]
    return text.append("".join(f"  {one_line(part)}" for part in rest if part), style="not bold dim")


def _bar(state: Mapping[str, Any], width: int) -> Text:
    """Return how far the run is, or what it waits for."""
    if state.get("away"):
        return Text(f"the server is away: {one_line(state['away'])}; looking for it", style="yellow")
    if state["held"]:
        return Text(f"round {state['round'] + 1} is held: {one_line(state['held'])}", style="yellow")
    if state["status"] == "waiting":
        there = "" if state["connected"] is None else f": {state['connected']} of {state['clients']} are connected"
        return Text(f"waiting for clients{there}", style="yellow")
    round_, rounds = state["round"], state["rounds"]
    share = f"{100 * round_ / rounds:3.0f} %" if rounds else ""
    if state["status"] != "running":
        end = one_line(state["status"])
    else:
        end = "" if state["left_s"] is None else f"{clock(state['left_s'])} left"
    begin, end = f"round {round_}/{rounds}", f"{share}  {end}"
    cells = max(8, min(_BAR, width - len(begin) - len(end) - 2))
    done = round(cells * min(1.0, round_ / max(1, rounds)))
    return Text.assemble(f"{begin} ", (done * "━", "cyan"), ((cells - done) * "━", "bright_black"), f" {end}")


def _rows(state: Mapping[str, Any], width: int) -> list[tuple[str, Text]]:
    history, spark = state["history"], min(_SPARK, width // 3)
    at = "  claimed" if state.get("measured_by") == "clients" else ""
    at += "" if state["measured"] == state["round"] else f"  at round {state['measured']}"
    rows = []
    for name, figure in _figures(state).items():
        curve = sparkline(history.get(name, []), spark, log=name not in ("accuracy", "trigger"))
        text = Text(f"{figure:<11}").append(curve, style="cyan").append(at, style="dim")
        rows.append(("f(x) - f*" if name == "gap" else name, text))
    if claims := state.get("claims"):
        rows.append(("claims", Text(_claims(claims), style="yellow" if claims["loss"] is None else "")))
    speeds = ((state["rounds_s"], 1, "rounds/s"), (state["round_s"], 1000, "ms a round"))
    if words := [f"{factor * value:.3g} {unit}" for value, factor, unit in speeds if value is not None]:
        rows.append(("speed", Text("  ".join(words))))
    last, whole = state["last"], state["all"]
    if state["up"] or state["down"]:
        rows.append(("traffic", Text("  ".join(_traffic(state, way) for way in ("up", "down")))))
    connected = "" if state["connected"] is None else f"connected {state['connected']}/{state['clients']}  "
    clients = Text(f"{connected}sampled {last['sampled']}  accepted {last['accepted']}  ")
    clients.append(f"rejected {last['rejected']}", style="yellow" if last["rejected"] else "")
    if state["round"]:
        rows.append(("clients", clients.append(f"  clipped {last['clipped']}")))
    if whole["sampled"]:
        words = [f"{_share(whole[name], whole['sampled'])} {name}" for name in ("accepted", "rejected")]
        rows.append(("so far", Text("  ".join([*words, f"{_share(whole['clipped'], whole['accepted'])} clipped"]))))
    if state["incomplete"]:
        few = f"{_many(state['incomplete'], 'round', 'rounds')} had too few replies to use any"
        rows.append(("incomplete", Text(f"{few}, the last one round {state['incomplete_at']}", style="yellow")))
    if state["attack_failed"]:
        replies = _many(state["attack_failed"], "reply", "replies")
        rows.append(("attack", Text(f"{replies} of attackers missing because their attack failed", style="yellow")))
    where = [state["address"], state["run"] and f"run folder {state['run']}"]
    rows.append(("server", Text("  ".join(one_line(part) for part in where if part), style="dim")))
    for i, entry in enumerate(reversed(state["rejections"])):
        line = f"round {entry['round']}  {one_line(entry['client'])}  {one_line(entry['reason'])}"
        rows.append(("" if i else "rejected", Text(line)))
    return rows


def _claims(claims: Mapping[str, Any]) -> str:
    """Return what clients claim about the model, over all of them."""
    if claims["loss"] is None:
        of = _many(claims["answers"], "usable answer", "usable answers")
        return f"no figure from {of}: {2 * claims['byzantine'] + 1} are needed where {claims['byzantine']} may lie"
    of = _many(claims["answers"], "client", "clients")
    words = []
    for name, form in (("loss", "{:.4g}"), ("accuracy", "{:.1%}")):
        if (found := claims[name]) is not None:
            low, high = found.get("low"), found.get("high")
            quartiles = "" if low is None or high is None else f" ({form.format(low)} to {form.format(high)})"
            words.append(f"{name} {form.format(found['median'])}{quartiles}")
    return f"{'  '.join(words)}  of {of}".replace("%", " %")


def _traffic(state: Mapping[str, Any], way: str) -> str:
    rate = state[f"{way}_s"]
    return f"{size(state[way])} {way}" + ("" if rate is None else f" ({size(rate)}/s)")


def _many(count: int, one: str, more: str) -> str:
    return f"{count} {one if count == 1 else more}"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "0.0 %"


def _line(text: Text, width: int) -> Text:
    """Return a text as one line of the terminal."""
    text.no_wrap, text.overflow = True, "ellipsis"
    text.truncate(width, overflow="ellipsis")
    return text
