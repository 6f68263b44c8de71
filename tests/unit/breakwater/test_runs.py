"""A run folder as ``Run`` shows it: of a run that has ended, goes on, was killed, or is of an older version."""

import json
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import breakwater as bw
from foundation.files import lock
from server.run_folder import CURVE, METRICS, MODEL, REPORT, SUMMARY
from server.run_folder.reader import read_rounds
from tests.unit.deploy.test_readme import ROOT

CHANGES = {"strategy.rounds": 6, "evaluation.every": 3, "federation.seed": 1}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> bw.Run:
    out = tmp_path_factory.mktemp("run") / "first"
    return bw.run(ROOT / "deploy/configs/demo.toml", overrides=CHANGES, out=out, processes=False, quiet=True)


@pytest.fixture
def run(original: bw.Run, tmp_path: Path) -> bw.Run:
    """Return a copy of the run, to be damaged."""
    return bw.Run(shutil.copytree(original.folder, tmp_path / "copy"))


class Visible(HTMLParser):
    """Collects tags and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_a_run_prints_nothing_if_quiet(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path, options = ROOT / "deploy/configs/demo.toml", {"processes": False, "quiet": True}
    bw.run(path, overrides=["strategy.rounds=1"], out=tmp_path / "a", **options)  # type: ignore[arg-type]
    assert capfd.readouterr() == ("", "")
    assert (tmp_path / "a" / REPORT).exists()


def test_the_numbers_are_those_of_the_summary(original: bw.Run) -> None:
    found = json.loads((original.folder / SUMMARY).read_text(encoding="utf-8"))
    for name in ("status", "rounds", "loss", "accuracy", "bytes_up", "bytes_down", "wall_s"):
        assert getattr(original, name) == found[name], name
    assert original.summary == found
    assert original.gap is None
    assert original.config.federation.seed == 1
    assert original.config.strategy.rounds == 6


def test_metrics_are_columns_with_nan_where_nothing_was_measured(original: bw.Run) -> None:
    metrics, rounds = original.metrics, read_rounds(original.folder)
    assert {len(column) for column in metrics.values()} == {6}
    assert metrics["round"].tolist() == [1, 2, 3, 4, 5, 6]
    assert metrics["measured"].tolist() == [False, False, True, False, False, True]
    assert np.isnan(metrics["loss"]).tolist() == (~metrics["measured"]).tolist()
    assert metrics["accuracy"][-1] == original.accuracy
    assert np.isnan(metrics["gap"]).all()
    assert metrics["bytes_up"].sum() == original.bytes_up
    assert metrics["accepted"].tolist() == [len(record.accepted) for record in rounds]
    assert metrics["kind"].tolist() == [record.kind for record in rounds]
    with pytest.raises(ValueError, match="read-only"):
        metrics["loss"][0] = 0.0


def test_a_run_under_way_changes(run: bw.Run) -> None:
    (run.folder / SUMMARY).unlink()
    lines = (run.folder / METRICS).read_text(encoding="utf-8").splitlines(keepends=True)
    (run.folder / METRICS).write_text("".join(lines[:3]), encoding="utf-8")
    with (run.folder / METRICS).open("a", encoding="utf-8") as file:
        assert lock(file.fileno())
        assert (run.status, run.rounds, len(run.metrics["round"])) == ("going", 3, 3)
        file.write(lines[3] + lines[4][:20])
        file.flush()
        assert (run.status, run.rounds, len(run.metrics["round"])) == ("going", 4, 4)
        assert "Still running: round 4" in run._repr_html_()
    assert (run.status, run.summary) == ("killed", {})
    assert run.bytes_up == run.metrics["bytes_up"].sum()
    assert run.wall_s == pytest.approx(run.metrics["round_s"].sum())
    assert "Terminated unexpectedly" in run.report().read_text(encoding="utf-8")


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(bw.ConfigError, match=r"no run is there \(metrics.jsonl is missing\)"):
        bw.Run(tmp_path)
    with pytest.raises(bw.ConfigError, match="no run is there"):
        bw.compare([tmp_path])
    with pytest.raises(ValueError, match="no runs are given"):
        bw.compare([])
    with pytest.raises(ValueError, match="takes a list of runs"):
        bw.compare(str(tmp_path))


def demo_module() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.GroupNorm(2, 4))


@pytest.fixture
def torch_run(tmp_path: Path) -> bw.Run:
    (tmp_path / "own.py").write_text(
        """
import torch
from torch import nn

class Task:
    def model(self):
        return nn.Sequential(nn.Linear(3, 4), nn.GroupNorm(2, 4))
    def train_data(self):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(40, 3, generator=generator)
        return x, (x[:, 0] > 0).long()
""",
        encoding="utf-8",
    )
    config = bw.load_config(
        ROOT / "deploy/configs/robust-sgd.toml", {"task.kind": "custom", "task.path": "own.py:Task"}
    )
    small = {"federation.clients": 4, "federation.byzantine": 0, "attack.kind": "none", "strategy.rounds": 2,
             "strategy.gamma": 0.1, "aggregator.kind": "cm"}  # fmt: skip
    bw.load_config(config, small).write(tmp_path / "own.toml")
    return bw.run(tmp_path / "own.toml", out=tmp_path / "torch", processes=False, quiet=True)


def test_a_torch_model_is_loaded_into_a_module(torch_run: bw.Run) -> None:
    module = torch_run.load_into(demo_module())
    state = torch_run.state_dict()
    assert set(state) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert module.state_dict().keys() == state.keys()
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    trained = torch.cat([parameter.detach().reshape(-1) for parameter in module.parameters()])
    np.testing.assert_array_equal(trained.numpy(), torch_run.model)
    for other, message in (
        (nn.Linear(3, 4), "the module has bias, weight, which the model lacks"),
        (nn.Sequential(nn.Linear(3, 5), nn.GroupNorm(5, 5)), "the model has .* of shape .*, the module another shape"),
    ):
        with pytest.raises(bw.ConfigError, match=f"the model does not fit this module: {message}") as error:
            torch_run.load_into(other)
        assert "\n" not in str(error.value)


def test_a_model_without_names_is_a_vector(run: bw.Run) -> None:
    assert run.model.shape == (2410,)
    with pytest.raises(bw.ConfigError, match="the model is one vector without names, no torch module; use model"):
        run.state_dict()
    (run.folder / MODEL).unlink()
    with pytest.raises(bw.ConfigError, match=r"no model is there \(model.safetensors is missing\)"):
        run.model  # noqa: B018


def test_a_missing_library_names_the_command(torch_run: bw.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"^pandas is not installed: pip install pandas$"):
        torch_run.to_pandas()
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"^torch is not installed: pip install 'breakwater\[torch\]'$"):
        torch_run.state_dict()


def test_metrics_go_to_pandas_where_it_is_there(original: bw.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Frame(dict[str, object]):
        def set_index(self, name: str) -> tuple[str, "Frame"]:
            return name, self

    monkeypatch.setitem(sys.modules, "pandas", type("pandas", (), {"DataFrame": Frame}))
    index, frame = original.to_pandas()
    assert (index, list(frame)) == ("round", list(original.metrics))


def test_the_report_is_written_if_it_is_missing_or_old(run: bw.Run) -> None:
    page = run.report()
    assert page == run.folder / REPORT
    page.unlink()
    assert str(run.folder) in run.report().read_text(encoding="utf-8")
    page.write_text("as it was left", encoding="utf-8")
    assert run.report().read_text(encoding="utf-8") == "as it was left"


def test_a_run_and_a_comparison_show_themselves_in_a_notebook(original: bw.Run, run: bw.Run, tmp_path: Path) -> None:
    text = original._repr_html_()
    seen = Visible(text)
    assert seen.tags.count("svg") == 2
    assert "Finished: all 6 rounds." in text
    assert not {"script", "link", "img", "iframe"} & set(seen.tags)
    other = (run.folder / "config.toml").read_text(encoding="utf-8").replace("seed = 1", "seed = 2")
    (run.folder / "config.toml").write_text(other.replace("gamma = ", "gamma = 1"), encoding="utf-8")
    both = bw.compare([original, run])
    seen = Visible(both._repr_html_())
    assert seen.tags.count("svg") == 2 + 2  # two charts, and two swatches of the legend
    assert repr(both) == f"<Comparison of {original.folder}, {run.folder}>"
    page = both.report(tmp_path / "both.html")
    assert page.read_text(encoding="utf-8").count("<svg") > 4
    with pytest.raises(bw.ConfigError, match="is not a regular file; give the path of a page"):
        both.report(tmp_path)


def test_names_that_somebody_else_chose_are_escaped(run: bw.Run, tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)>\x1b[31m\u202e"
    summary = json.loads((run.folder / SUMMARY).read_text(encoding="utf-8"))
    (run.folder / SUMMARY).write_text(json.dumps({**summary, "status": evil}), encoding="utf-8")
    renamed = bw.Run(run.folder.rename(tmp_path / "<b>bold<"))
    (renamed.folder / "config.toml").write_text(evil, encoding="utf-8")
    for shown in (renamed._repr_html_(), bw.compare([renamed])._repr_html_()):
        seen = Visible(shown)
        assert "img" not in seen.tags
        assert "<img" not in shown
        assert not {"\x1b", "\u202e"} & set(shown)
        assert "<b>bold" not in shown
    assert "\x1b" not in repr(renamed)
    assert "\n" not in repr(renamed)


def test_the_plot_is_a_picture_in_a_notebook_and_a_figure_elsewhere(
    original: bw.Run, run: bw.Run, tmp_path: Path
) -> None:
    assert original.plot()._repr_png_().startswith(b"\x89PNG")
    figure = bw.compare([original, run]).plot()
    assert [line.get_label() for line in figure.axes[0].lines] == ["all runs (first)", "all runs (copy)"]
    figure.savefig(tmp_path / CURVE)


def test_a_run_is_one_line(original: bw.Run) -> None:
    assert repr(original) == (
        f"<Run {original.folder}: finished, 6 rounds, accuracy {100 * (original.accuracy or 0):.1f} %, "
        f"loss {original.loss:.4g}>"
    )
    assert original.suspects()[0].name.startswith(("byzantine", "client"))
