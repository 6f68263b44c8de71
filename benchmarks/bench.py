"""What every benchmark shares: a table for people and a JSON file for programs.

A result compares one number of ours with a peer's, measured in the same run.
"""

import json
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Result:
    """One measured number beside the peer's.

    Args:
        name: what was measured, with the parameters that matter.
        value: ours.
        unit: of both values.
        peer: whom we are compared with.
        peer_value: theirs.
        ratio: above 1 means that ours is better by that factor.
    """

    name: str
    value: float
    unit: str
    peer: str
    peer_value: float
    ratio: float


def arguments(description: str, *, rounds: int | None = None) -> ArgumentParser:
    """Return a parser with what benchmarks share: --json, --quick, and --rounds where there is a default."""
    parser = ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to FILE as well")
    parser.add_argument("--quick", action="store_true", help="measure less, in a fraction of the time")
    if rounds is not None:
        parser.add_argument("--rounds", type=int, default=rounds, help="rounds measured (default: %(default)s)")
    return parser


def publish(results: Sequence[Result], json_file: Path | None) -> None:
    """Print the results as an aligned table and write them to the JSON file, if one is named."""
    rows = [("name", "ours", "peer's", "unit", "ratio", "peer")]
    rows += [(r.name, f"{r.value:.4g}", f"{r.peer_value:.4g}", r.unit, f"{r.ratio:.2f}", r.peer) for r in results]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n")
