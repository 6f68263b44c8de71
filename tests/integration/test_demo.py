"""`breakwater demo`, as a newcomer runs it."""

import re
from pathlib import Path

import pytest

from tests.integration.processes import ROOT, Processes, rounds_of, summary_of

pytestmark = pytest.mark.slow


def test_the_demo_shows_the_difference(processes: Processes, tmp_path: Path) -> None:
    assert "```sh\nmake demo\n```" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert "\ndemo: $(STAMP)\n\t$(BIN)/breakwater demo\n" in (ROOT / "Makefile").read_text(encoding="utf-8")
    out = tmp_path / "demo"
    demo = processes.breakwater("demo", "--out", out)
    demo.ends(0, 240)
    averaging, ours = summary_of(out / "averaging"), summary_of(out / "byz-vr-marina-pp")
    assert averaging["accuracy"] < 0.30
    assert ours["accuracy"] >= 0.93
    for name, summary in (("averaging", averaging), ("byz-vr-marina-pp", ours)):
        folder = out / name
        assert len(rounds_of(folder)) == summary["rounds"]
        assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")
        assert (folder / "model.safetensors").stat().st_size > 4 * 2410
        row = next(line for line in demo.out if re.search(rf"{name}\s+│", line))
        cells = [cell.strip() for cell in re.split("[│┃|]", row) if cell.strip()]
        accuracy, rounds, seconds = (
            f"{100 * summary['accuracy']:.1f} %",
            str(summary["rounds"]),
            f"{summary['wall_s']:.1f}",
        )
        assert cells[:3] == [name, accuracy, rounds]
        assert len(cells) == 6
        assert cells[5] == seconds
    stand_out = demo.line(r"who attacked\? these stand out most: (\S+) .*, (\S+) .*, (\S+) .*; the next one has \d")
    assert {stand_out[1], stand_out[2], stand_out[3]} == {"byzantine-0", "byzantine-1", "byzantine-2"}
    assert f"report:  {out / 'byz-vr-marina-pp' / 'report.html'}" in demo.out
    assert (out / "byz-vr-marina-pp" / "report.html").is_file()
    picture = out / "demo.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert f"picture: {picture}" in demo.out
    took_s = float(demo.line(r"the whole demo took (\d+) s")[1])
    print(f"the demo took {took_s:.0f} s")
