"""``breakwater predict MODEL FILE``: apply the trained model of a table task to a table."""

import argparse
import sys
from pathlib import Path

from deploy.commands.options import Subparsers, add_path
from foundation.errors import ConfigError


def add(commands: Subparsers) -> None:
    meaning = "apply the trained model of a table task to a table"
    more = (
        "Writes a prediction for each row, with the probability of each class. If the table has the target column, "
        "shows accuracy, or RMSE and MAE of a regression. The model's file has all that is needed: no config."
    )
    parser = commands.add_parser("predict", help=meaning, description=more)
    add_path(parser, "model", "model.safetensors, as a server or client wrote it, or a run folder", metavar="MODEL")
    add_path(parser, "table", "CSV or Parquet file", metavar="FILE")
    meaning = "file to write the predictions to (default: print them)"
    add_path(parser, "--out", meaning, metavar="PREDICTIONS.csv")
    parser.set_defaults(command=_predict, prints=True)


def _predict(options: argparse.Namespace) -> int:
    from experiment.model_file import load_model

    out: Path | None = options.out
    if out is not None:
        if not out.absolute().parent.is_dir():
            raise ConfigError(f"--out {out}: the folder {out.absolute().parent} does not exist")
        if out.exists() and not out.is_file():
            kind = "a folder" if out.is_dir() else "not a regular file"
            raise ConfigError(f"--out {out}: is {kind}; give the path of a file")
        if any(out.exists() and path.exists() and out.samefile(path) for path in (options.model, options.table)):
            raise ConfigError(f"--out {out}: is the model or the table itself; give another path")
    found = load_model(options.model).predict(options.table)
    if out is None:
        print(found.to_csv(), end="")
        print(found.summary(), file=sys.stderr)
    else:
        found.write(out)
        print(f"{out}: {found.summary()}")
    return 0
