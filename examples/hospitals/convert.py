"""Makes the hospitals' tables out of the files of the UCI repository: a header, and empty cells for missing values.

    python examples/hospitals/convert.py DOWNLOADED DATA

``DOWNLOADED`` has ``processed.cleveland.data`` and the three others, in which ``?`` is a missing value. This writes
``DATA/heart/cleveland/heart.csv`` and so on.
"""

import csv
import sys
from pathlib import Path

COLUMNS = (
    *("age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak", "slope", "ca", "thal"),
    "num",
)
HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")


def cell(text: str) -> str:
    """Return a cell of the table: "63" for "63.0", "" for "?".

    Raises:
        ValueError: it is no number.
    """
    text = text.strip()
    return "" if text == "?" else f"{float(text):g}"


def convert(source: Path, target: Path) -> int:
    """Convert one file; return the number of patients.

    Raises:
        ValueError: a line does not have 14 cells, or one is no number; with the line.
    """
    rows = []
    for number, line in enumerate(source.read_text(encoding="ascii").splitlines(), 1):
        cells = line.split(",")
        if not line.strip():
            continue
        if len(cells) != len(COLUMNS):
            raise ValueError(f"{source}, line {number}: has {len(cells)} cells, not {len(COLUMNS)}")
        try:
            rows.append([cell(each) for each in cells])
        except ValueError as error:
            raise ValueError(f"{source}, line {number}: {error}") from None
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    return len(rows)


def main() -> None:
    """Convert the files of all hospitals."""
    if len(sys.argv) != 3:
        sys.exit(f"usage: {sys.argv[0]} DOWNLOADED DATA")
    downloaded, data = map(Path, sys.argv[1:])
    for name in HOSPITALS:
        target = data / "heart" / name / "heart.csv"
        try:
            print(f"{target}: {convert(downloaded / f'processed.{name}.data', target)} patients")
        except (OSError, ValueError) as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()
