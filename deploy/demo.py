"""``breakwater demo``: the same federation under the same attack, once with plain averaging, once with ours."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from deploy.local import LocalOptions, run_local
from experiment.config import load
from foundation.units import size
from server.monitor.exporters import Monitoring
from server.monitor.suspects import tally
from server.run_folder import REPORT
from server.run_folder.reader import read_rounds, read_summary
from server.run_folder.record import measures_from
from strategies.strategy import RoundRecord

CONFIG = Path(__file__).parent / "configs" / "demo.toml"
AVERAGING, OURS = "averaging", "byz-vr-marina-pp"

RUNS = {AVERAGING: ("strategy.kind=robust-sgd", "aggregator.kind=mean"), OURS: ()}
"""Run folder -> what is changed in the config."""


def demo(out: Path, *, quiet: bool = False) -> int:
    """Run both federations, print the table, draw the picture; return the exit status.

    Args:
        out: folder that gets the two run folders and ``demo.png``.
        quiet: print only the table.
    """
    console = Console(soft_wrap=True, quiet=quiet)
    began = time.monotonic()
    config = load(CONFIG)
    n, f = config.federation.clients, config.federation.byzantine
    attack = "no attack" if config.attack is None else config.attack.kind
    console.print(
        f"{n} clients train one small neural network on handwritten digits; {f} of them are one coalition and attack "
        f"({attack}).\nServer, honest clients and the coalition are {n - f + 2} processes that talk over gRPC.\n",
        highlight=False,
    )
    for name, changes in RUNS.items():
        console.print(f"[bold]{name}[/bold]")
        changed, shown = load(CONFIG, changes), Monitoring(quiet=quiet)
        options = LocalOptions(config=changed, out=out / name, config_dir=CONFIG.parent, monitoring=shown)
        status = run_local(options, console.print, last=False)
        if status != 0:
            return status
        console.print()
    summaries = {name: read_summary(out / name) or {} for name in RUNS}
    rounds = {name: read_rounds(out / name) for name in RUNS}
    console.quiet = False
    console.print(_table(summaries))
    console.quiet = quiet
    from server.monitor.plot import draw  # matplotlib takes a second to import, which --help need not wait for

    picture = out / "demo.png"
    runs = {name: (measures_from(summaries[name].get("start")), rounds[name]) for name in RUNS}
    draw(runs, picture, title="The same attack on plain averaging and on Byz-VR-MARINA-PP")
    console.print(_who_attacked(rounds[OURS], f, out / OURS), highlight=False)
    console.print(f"report:  {out / OURS / REPORT}", highlight=False)
    console.print(f"picture: {picture}\nthe whole demo took {time.monotonic() - began:.0f} s", highlight=False)
    return 0


def _table(summaries: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table(title="Under attack", title_justify="left")
    table.add_column("method")
    for heading in ("accuracy", "rounds", "bytes up", "bytes down", "seconds"):
        table.add_column(heading, justify="right")
    for name, summary in summaries.items():
        accuracy = summary["accuracy"]
        cells = ["none" if accuracy is None else f"{100 * accuracy:.1f} %", str(summary["rounds"])]
        cells += [size(summary["bytes_up"]), size(summary["bytes_down"]), f"{summary['wall_s']:.1f}"]
        table.add_row(name, *cells)
    return table


def _who_attacked(rounds: list[RoundRecord], f: int, folder: Path) -> str:
    """Return a sentence that names the most suspicious clients."""
    *first, after = tally(rounds, f)[: f + 1]
    names = ", ".join(f"{suspect.name} ({suspect.score or 0:.0f})" for suspect in first)
    text = f"\nwho attacked? these stand out most: {names}; the next one has {after.score or 0:.0f}\n"
    return f"{text}         breakwater suspects {folder}"
