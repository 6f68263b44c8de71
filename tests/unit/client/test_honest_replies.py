"""A coalition in the process of the honest workers: the same bits as one that computes their replies again."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.honest_replies import HonestReplies, Replied
from deploy.inprocess import run_in_process
from deploy.local import LocalOptions
from experiment.config import parse
from server.monitor.exporters import Monitoring
from server.run_folder import MODEL
from server.run_folder.reader import read_rounds
from strategies.compressors import Identity
from strategies.method import STATELESS, Ask, WorkerState

TEXT = """
[federation]
clients = 6
byzantine = 2
seed = 4
[task]
kind = "digits"
model = "softmax"
[attack]
kind = "alie"
z = 1.0
view = "omniscient"
[evaluation]
every = 6
"""
RAND_K = "compressor.kind=rand-k compressor.ratio=0.3"
IPM = "attack.kind=ipm attack.view=omniscient"
RUNS = {
    "compressed": f"strategy.kind=byz-vr-marina-pp strategy.p=0.3 strategy.cohort=5 strategy.alpha=2 {RAND_K}",
    "momentum": f"strategy.kind=robust-momentum-sgd {IPM}",
    "estimates": f"strategy.kind=byz-dasha-page strategy.p=0.3 {IPM}",
    "cohorts": f"strategy.kind=robust-momentum-sgd strategy.cohort=5 {IPM}",
    "copies": "strategy.kind=robust-sgd attack.kind=mimic attack.view=omniscient",
}


def ran(out: Path, overrides: str) -> tuple[bytes, list[Any]]:
    config = parse(TEXT, [*overrides.split(), "strategy.rounds=6", "strategy.gamma=0.1", "strategy.batch=8"])
    quiet = Monitoring(quiet=True, silent=True, pictures=False)
    run_in_process(LocalOptions(config=config, out=out, monitoring=quiet))
    rounds = [(r.accepted, r.rejected, r.bytes_up, r.bytes_down, r.evidence) for r in read_rounds(out)]
    return (out / MODEL).read_bytes(), rounds


@pytest.mark.parametrize("case", RUNS)
def test_a_run_has_the_same_bits_whether_honest_replies_are_taken_or_computed_again(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    find = HonestReplies.find

    def noted(self: HonestReplies, worker: int, ask: Ask, before: WorkerState) -> Replied | None:
        replied = find(self, worker, ask, before)
        taken.extend([worker] if replied is not None else [])
        return replied

    monkeypatch.setattr(HonestReplies, "find", noted)
    first = ran(tmp_path / "taken", RUNS[case])
    assert len(taken) >= 6  # at least one a round
    monkeypatch.setattr(HonestReplies, "find", lambda *_: None)
    assert ran(tmp_path / "computed", RUNS[case]) == first


def test_only_a_reply_to_this_very_ask_from_this_very_state_is_taken() -> None:
    replies, ask, before = HonestReplies(), Ask(1, "gradient", {}), WorkerState(1)
    replied = WorkerState(2), Identity().compress(np.ones(3), np.random.default_rng(0))
    replies.add(3, ask, before, replied)
    assert replies.find(3, ask, before) is replied
    assert replies.find(2, ask, before) is None
    assert replies.find(3, ask, WorkerState(1)) is None
    assert replies.find(3, Ask(1, "gradient", {}), before) is None
    replies.add(2, Ask(2, "gradient", {}), STATELESS, replied)
    assert replies.find(3, ask, before) is None  # only the newest instruction counts
