"""The four hospitals: the converter, the study, its script on a tiny setting, and the page that shows its results."""

from pathlib import Path

import pytest

import breakwater as bw
from examples.hospitals import convert, hospitals

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "hospitals" / "table.csv"
LINES = "63.0,1.0,1.0,145.0,233.0,1.0,2.0,150.0,0.0,2.3,3.0,0.0,6.0,0\n28,1,2,130,132,0,2,185,0,0,?,?,?,0\n"


def test_the_converter_gives_the_tables_that_the_study_reads(tmp_path: Path) -> None:
    source, target = tmp_path / "processed.va.data", tmp_path / "heart" / "va" / "heart.csv"
    source.write_text(LINES + "\n")
    assert convert.convert(source, target) == 2
    header = "age,sex,cp,trestbps,chol,fbs,restecg,thalach,exang,oldpeak,slope,ca,thal,num"
    expected = [header, "63,1,1,145,233,1,2,150,0,2.3,3,0,6,0", "28,1,2,130,132,0,2,185,0,0,,,,0"]
    assert target.read_text().splitlines() == expected


@pytest.mark.parametrize(
    ("line", "said"),
    [("63,1,1\n", "line 3: has 3 cells, not 14"), (LINES.replace("63.0", "old"), "line 3: could not convert string")],
)
def test_the_converter_names_the_line_that_is_wrong(tmp_path: Path, line: str, said: str) -> None:
    source = tmp_path / "processed.va.data"
    source.write_text(LINES + line)
    with pytest.raises(ValueError, match=said):
        convert.convert(source, tmp_path / "heart.csv")
    assert not (tmp_path / "heart.csv").exists()


def test_every_way_is_a_config_that_can_be_run() -> None:
    for way in hospitals.WAYS.values():
        config = bw.load_config(hospitals.STUDY, way.overrides)
        assert config.own_data
        assert (config.federation.clients, config.federation.byzantine) == (4, 1)


def test_the_script_measures_every_model_and_continues(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results.csv"
    command = ["run", str(out), "--data", str(data_dir), "--splits", "1", "--jobs", "1", "--rounds", "3"]
    hospitals.main([*command, "--ways", "mean-size"])
    first = hospitals.read(out)
    assert [row["setting"] for row in first] == ["alone"] * 4 + ["pooled"] * 5 + ["mean-size"]
    assert all(30 < float(row["accuracy"]) < 95 for row in first)
    kept = [76, 73, 31, 50]  # a quarter of each hospital
    for row in first:
        whole = sum(n * float(row[name]) for n, name in zip(kept, hospitals.NAMES, strict=True)) / sum(kept)
        assert float(row["accuracy"]) == pytest.approx(whole, abs=0.02)
    hospitals.main([*command, "--ways", "mean"])
    more = hospitals.read(out)
    assert more[: len(first)] == first
    assert len(more) == len(first) + 9
    attacked = {row["attacker"]: float(row["accuracy"]) for row in more if row["attack"] == "bf"}
    assert list(attacked) == list(hospitals.NAMES)
    assert len(set(attacked.values())) > 1
    capsys.readouterr()
    hospitals.main(["table", str(out)])
    assert "| pooled, without the attacker | " in capsys.readouterr().out
    hospitals.main(["figure", str(out), str(tmp_path / "figure.png")])
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_the_page_shows_what_the_results_say() -> None:
    page = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
    results = hospitals.Results(hospitals.read(RESULTS))
    for table in hospitals.tables(results):
        assert table in page
    assert all(len(results.of(way)) == 20 for way in results.ways())
