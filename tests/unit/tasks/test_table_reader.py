"""Tables as arrays: what is read, and what is refused in one line with file, row and column."""

import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks import table_reader
from tasks.contract import TaskError
from tasks.table_reader import Table, check_name, inside, read_table
from tests.unit.tasks.tables import HEADER, parquet, task, write

needs_pyarrow = pytest.mark.skipif(find_spec("pyarrow") is None, reason="needs pyarrow (the extra table)")
GOOD = ["50,20.5,f,no", "61,,m,yes", ",30,,no"]


def read(path: Any, *, needs_target: bool = True, **changes: Any) -> Table:
    return read_table(path, task(**changes).wanted(needs_target=needs_target))


def refusal(path: Any, *, needs_target: bool = True, **changes: Any) -> str:
    with pytest.raises(TaskError) as error:
        read(path, needs_target=needs_target, **changes)
    line = str(error.value)
    assert "\n" not in line
    assert len(line) < 700
    return line


def check_good(table: Table) -> None:
    np.testing.assert_array_equal(table.numbers, [[50, 20.5], [61, np.nan], [np.nan, 30]])
    np.testing.assert_array_equal(table.codes, [[0], [1], [-1]])
    assert table.targets is not None
    np.testing.assert_array_equal(table.targets, [0, 1, 0])


@pytest.mark.parametrize(
    "text",
    [
        f"{HEADER}\n50,20.5,f,no\n61,,m,yes\n,30,,no\n",
        f"\ufeff{HEADER}\r\n50,20.5,f,no\r\n61,,m,yes\r\n,30,,no",
        f"{HEADER}\n\n50,20.5,f,no\n61,,m,yes\n\n,30,,no\n\n",
        ' "age", bmi,sex,outcome\n 50 ,2.05e1,"f",no\n61.0,  , m ,yes\n"",30,"",no\n',
        'other,outcome,sex,bmi,age\n"a\nb",no,f,20.5,50\n,yes,m,,61\nx,no,,30,\n',
    ],
    ids=["plain", "windows", "blank lines", "spaces and quotes", "another order, more columns, lines in cells"],
)
def test_csv_is_read(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(text.encode())
    check_good(read(path))


def test_other_delimiters_are_read_where_the_config_names_them(tmp_path: Path) -> None:
    path = write(tmp_path, [line.replace(",", ";") for line in GOOD], header=HEADER.replace(",", ";"))
    check_good(read(path, delimiter=";"))
    assert 'column "age" is missing; it has age;bmi;sex;outcome' in refusal(path)


def test_columns_in_memory_are_read() -> None:
    columns: dict[str, Any] = {"age": [50, 61, None], "bmi": np.array([20.5, np.nan, 30]), "sex": ["f", "m", None]}
    check_good(read(columns | {"outcome": ["no", "yes", "no"]}))
    assert refusal(columns | {"outcome": ["no"]}).startswith("table: the columns have different lengths")
    line = refusal(columns | {"outcome": ["no", "yes", "maybe"]})
    assert line == 'table, row 3, column "outcome": "maybe" is no class of the config ("no", "yes")'


@pytest.mark.parametrize("dictionary", [False, True])
def test_parquet_is_read(tmp_path: Path, dictionary: bool) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow (the extra table)")
    sex = pyarrow.array(["f", "m", None])
    columns = {
        "age": [50, 61, None],
        "bmi": pyarrow.array([20.5, None, 30], pyarrow.float32()),
        "sex": sex.dictionary_encode() if dictionary else sex,
        "outcome": ["no", "yes", "no"],
        "more": [[1], [2], [3]],
    }
    check_good(read(parquet(tmp_path / "t.parquet", columns)))


def test_categories_and_classes_may_be_numbers_and_booleans_in_parquet(tmp_path: Path) -> None:
    columns = {"age": [1, 2], "bmi": [1, 2], "sex": [0.0, None], "outcome": [True, False]}
    path = parquet(tmp_path / "t.parquet", columns)
    table = read(path, classes=("false", "true"), categorical={"sex": ("0", "1")})
    assert table.targets is not None
    assert (table.targets.tolist(), table.codes.tolist()) == ([1, 0], [[0], [-1]])


def test_a_class_may_be_several_values(tmp_path: Path) -> None:
    path = write(tmp_path, ["1,1,f,0", "1,1,f,3", "1,1,f,1.0"])
    table = read(path, classes={"healthy": ("0",), "ill": ("1", "2", "3")})
    assert table.targets is not None
    assert table.targets.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["x,1,f,no"], 'line 2, column "age": "x" is no number'),
        (["1,2,f,no", "1,1_0,f,no"], 'line 3, column "bmi": "1_0" is no number'),
        (["1,2,f,no", "1,nan,f,no"], 'line 3, column "bmi": "nan" is no finite number'),
        (["1,-inf,f,no"], 'line 2, column "bmi": "-inf" is no finite number up to 1e+12'),
        (["1,1e13,f,no"], "no finite number"),
        (["", "1,2,d,no"], 'line 3, column "sex": "d" is no category of the config ("f", "m")'),
        (["1,2,f,No"], 'line 2, column "outcome": "No" is no class of the config ("no", "yes")'),
        (["1,2,f,"], 'line 2, column "outcome": the class is missing'),
        (["1,2,f"], "line 2: has 3 cells, and the header 4"),
        (['"1\n",2,f,no', "1,2,f,no,9"], "line 4: has 5 cells, and the header 4"),
        (['1,"2"2,f,no'], "line 2: is no CSV: ',' expected after '\"'"),
        (['1,"2,f,no', "1,2,f,no"], "is no CSV: unexpected end of data"),
        ([f'1,"{"9" * 200_000}",f,no'], "line 2: is no CSV: field larger than field limit"),
        ([], "has no rows"),
        (["\x1b[2J,2,f,no"], '"?[2J" is no number'),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, lines: list[str], words: str) -> None:
    path = write(tmp_path, lines)
    line = refusal(path)
    assert line.startswith(str(path))
    assert words in line


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("", "is empty; its first line must name the columns"),
        ("age,bmi,sex", 'column "outcome" is missing; it has age, bmi, sex'),
        ("Age,bmi,sex,outcome", 'column "age" is missing; did you mean "Age"?'),
        ("age,bmi,sex,age,outcome", 'column "age" is there 2 times'),
    ],
)
def test_a_wrong_header_is_named(tmp_path: Path, header: str, words: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(header, encoding="utf-8")
    assert words in refusal(path)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ((HEADER + "\n1,2,f,n\xf6\n").encode("latin-1"), "line 2: is not UTF-8 (byte 0xf6); save it as UTF-8"),
        (HEADER.encode("utf-16"), "is text in UTF-16; save it as UTF-8"),
        (b"PK\3\4\0\0\0", "NUL bytes"),
        (HEADER.encode() + b"\n" + b"1" * (5 << 20), "line 2: is longer than 4 MiB: is it a table?"),
        (b"a\rb\r", "is no CSV: new-line character seen"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, raw: bytes, words: str) -> None:
    (tmp_path / "t.csv").write_bytes(raw)
    assert words in refusal(tmp_path / "t.csv")


def test_missing_values_are_refused_where_the_config_says_so(tmp_path: Path) -> None:
    assert 'line 3, column "bmi": the value is missing' in refusal(write(tmp_path, GOOD[:2]), missing="refuse")
    line = refusal(write(tmp_path, ["1,2,,no"]), missing="refuse")
    assert 'line 2, column "sex": the category is missing' in line


def test_a_target_may_be_missing_only_where_it_is_to_be_predicted(tmp_path: Path) -> None:
    table = read(write(tmp_path, ["1,2,f,", "1,2,f,yes"]), needs_target=False)
    assert table.known.tolist() == [False, True]
    without = read(write(tmp_path, ["1,2,f"], header="age,bmi,sex"), needs_target=False)
    assert without.targets is None
    assert without.known.tolist() == [False]
    assert "is no class" in refusal(write(tmp_path, ["1,2,f,x"]), needs_target=False)
    numbers = read(write(tmp_path, ["1,2,f,", "1,2,f,7"]), needs_target=False, classes=None, loss="squared")
    assert numbers.known.tolist() == [False, True]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"age": [1, float("nan")]}, 'row 2, column "age": the value is no finite number'),
        ({"age": ["1", "old"]}, 'row 2, column "age": "old" is no number'),
        ({"age": [[1], [2]]}, 'column "age": is of the type list<'),
        ({"sex": ["f", "x"]}, 'row 2, column "sex": "x" is no category'),
        ({"outcome": [None, "no"]}, 'row 1, column "outcome": the class is missing'),
    ],
)
def test_a_wrong_value_in_parquet_is_named(tmp_path: Path, values: dict[str, Any], words: str) -> None:
    columns = {"age": [1, 2], "bmi": [1, 2], "sex": ["f", "f"], "outcome": ["no", "no"]} | values
    assert words in refusal(parquet(tmp_path / "t.parquet", columns))


@needs_pyarrow
@pytest.mark.parametrize("raw", [b"", b"PAR1", b"PAR1" + b"\0" * 40 + b"PAR1", HEADER.encode()])
def test_what_is_no_parquet_is_refused(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "t.parquet").write_bytes(raw)
    assert "is no Parquet file that can be read" in refusal(tmp_path / "t.parquet")


def test_a_damaged_parquet_file_never_ends_in_another_error(tmp_path: Path) -> None:
    columns = {"age": [1.5] * 50, "bmi": [2.5] * 50, "sex": ["f", "m"] * 25, "outcome": ["no", "yes"] * 25}
    whole = parquet(tmp_path / "t.parquet", columns).read_bytes()
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(60):
        raw = bytearray(whole)
        for place in rng.integers(0, len(raw), 3):
            raw[place] = rng.integers(256)
        (tmp_path / "t.parquet").write_bytes(raw)
        try:
            read(tmp_path / "t.parquet")
        except TaskError as error:
            refused += 1
            assert "\n" not in str(error)  # noqa: PT017  # most are refused, some changes do no harm
    assert refused > 5


def test_a_parquet_file_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = {"age": [1] * 9, "bmi": [2] * 9, "sex": ["f"] * 9, "outcome": ["no"] * 9}
    path = parquet(tmp_path / "t.parquet", columns)
    monkeypatch.setattr(table_reader, "MOST_ROWS", 8)
    assert "has 9 rows; at most 8" in refusal(path)
    monkeypatch.setattr(table_reader, "MOST_BYTES", path.stat().st_size)
    columns |= {"sex": ["f" * (1 << 20)] * 9}
    assert re.search(r"unpacks to|is longer than", refusal(parquet(path, columns)))


def test_sizes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, GOOD)
    monkeypatch.setattr(table_reader, "MOST_CELLS", 8)
    assert "has more than 2 rows, the most for 4 inputs; split it" in refusal(path)
    monkeypatch.setattr(table_reader, "MOST_COLUMNS", 3)
    assert "has 4 columns; at most 3" in refusal(path)
    monkeypatch.setattr(table_reader, "MOST_BYTES", 5)
    assert "is longer than" in refusal(path)


def test_without_pyarrow_the_line_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "t.parquet").write_bytes(b"")
    assert "pip install 'breakwater[table]', or save the table as CSV" in refusal(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    "name", ["", "a/t.csv", "/t.csv", "..", "../t.csv", "a\\t.csv", "t.txt", ".csv", "c:t.csv", "t.csv\0"]
)
def test_only_a_plain_name_is_taken(name: str) -> None:
    with pytest.raises(ValueError, match=r"must be a plain name that ends in \.csv or \.parquet"):
        check_name(name)


def test_a_link_leads_only_to_files_in_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    secret = write(tmp_path, GOOD, "secret.csv")
    kept = write(folder, GOOD, "kept.csv")
    (folder / "t.csv").symlink_to(secret)
    (folder / "same.csv").symlink_to(kept)
    (folder / "round.csv").symlink_to(folder / "round.csv")
    with pytest.raises(TaskError, match=r"mine/t\.csv: is a link out of the folder"):
        inside(folder, "t.csv")
    check_good(read(inside(folder, "same.csv")))
    with pytest.raises(TaskError, match=r'table "round\.csv": '):
        inside(folder, "round.csv")
    with pytest.raises(TaskError, match=r'table "no\.csv": is not in the folder .*--data FOLDER'):
        inside(folder, "no.csv")
    with pytest.raises(TaskError, match="no data folder is known"):
        inside(None, "t.csv")


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "t.csv")
    assert "is no regular file" in refusal(tmp_path / "t.csv")
    (tmp_path / "d.csv").mkdir()
    assert "cannot be read: Is a directory" in refusal(tmp_path / "d.csv")
    assert "no table; its name must end in" in refusal(Path("/dev/zero"))
    assert "cannot be read: No such file" in refusal(tmp_path / "absent.csv")
