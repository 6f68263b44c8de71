"""Batch norm over processes: a party with absurd data spoils neither the model nor the statistics that serve it."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import breakwater as bw
from experiment.config import load
from experiment.model_file import read_model
from tests.parties import points
from tests.unit.server.test_norm_stats import BUFFERS, ROOT_DATA, study


def test_statistics_of_parties_serve_as_well_as_the_servers_while_one_lies(tmp_path: Path) -> None:
    config = study(tmp_path)
    table = points(35, 3)
    table[:, :-1] *= 1e6  # its gradients and its statistics
    np.savetxt(tmp_path / "parties" / "p3" / "points.csv", table, delimiter=",")
    found = bw.run(
        config,
        out=tmp_path / "run",
        overrides={"evaluation.by": "server", "strategy.rounds": 12, "evaluation.every": 6},
        data=tmp_path / "parties",
        server_data=tmp_path / "server",
        quiet=True,
        pictures=False,
    )
    assert 'norm_stats = "aggregate"' in (tmp_path / "run" / "config.toml").read_text()
    read = load(config)
    (tmp_path / "points.py").write_text((tmp_path / "points.py").read_text() + ROOT_DATA)
    server = read.task.load(read.setting(tmp_path / "server", tmp_path, "server"))
    assert server.norm_source == "reference"  # type: ignore[attr-defined]  # a module
    best = server.evaluate(found.model)
    assert best.accuracy is not None
    assert found.accuracy is not None
    assert best.accuracy > 0.8
    assert found.accuracy == pytest.approx(best.accuracy, abs=0.06)
    assert found.loss == pytest.approx(best.loss, abs=0.1)
    saved = read_model(tmp_path / "run").tensors
    assert max(abs(saved[name]).max() for name in BUFFERS) < 100  # the liar's are above 10^4
