"""The boosted backdoor: what is planted where, what is sent, and how its success is measured."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attacks.backdoor import Replace
from client.coalition import Coalition, CoalitionMember
from client.worker import HonestWorker
from deploy.inprocess import run_in_process
from deploy.local import LocalOptions
from experiment.config import parse
from experiment.opened import Experiment, open_experiment
from foundation.errors import ConfigError
from server.monitor.exporters import Monitoring
from server.run_folder.reader import read_rounds
from strategies.method import Ask, Packet, Vector
from strategies.vectors import norm
from tasks.backdoor import PoisonedOracle, Trigger
from tasks.contract import Setting

TEXT = """
[federation]
clients = 5
byzantine = 2
seed = 4
[task]
kind = "digits"
model = "softmax"
dtype = "float64"
[strategy]
kind = "robust-sgd"
rounds = 60
gamma = 0.5
batch = 32
[aggregator]
kind = "mean"
[attack]
kind = "replace"
boost = 4.0
target = 3
"""


def opened(*overrides: str) -> Experiment:
    return open_experiment(parse(TEXT, overrides).to_toml(), None, None)


def sent(experiment: Experiment, worker: int, round_: int = 1, sampled: int = 5) -> Vector:
    return all_sent(experiment, (worker,), round_, sampled)[0]


def all_sent(
    experiment: Experiment, workers: Sequence[int] = (3, 4), round_: int = 1, sampled: int = 5
) -> list[Vector]:
    """Return what members of one coalition send in a round, asked in this order."""
    assert experiment.config.attack is not None
    brain = Coalition(experiment, experiment.config.attack)
    members = {i: CoalitionMember(brain, i) for i in (3, 4)}
    ask = Ask(round_, "gradient", {"x": experiment.problem.initial()}, cohort=tuple(range(5 - sampled, 5)))
    packets = [members[worker].answer(ask) for worker in workers]
    return [packet.values for packet in packets if isinstance(packet, Packet)]


@pytest.mark.parametrize(
    ("quarter", "corner"),
    [
        (None, [[1, 1, 1], [1, 1, 1], [1, 1, 1]]),
        (0, [[1, 1, 0], [1, 1, 0], [0, 0, 0]]),
        (1, [[0, 0, 1], [0, 0, 1], [0, 0, 0]]),
        (2, [[0, 0, 0], [0, 0, 0], [1, 1, 0]]),
        (3, [[0, 0, 0], [0, 0, 0], [0, 0, 1]]),
    ],
)
def test_the_patch_lies_in_the_last_corner_and_its_quarters_make_it_up(
    quarter: int | None, corner: list[list[int]]
) -> None:
    images = np.zeros((2, 5, 5))
    images[0, 0, 0] = 7.0
    stamped = Trigger(3, 0, 0.5, quarter=quarter).stamp(images)
    assert (stamped[:, 2:, 2:] == 7.0 * np.array(corner)).all()
    assert not images[:, 2:, 2:].any()
    assert stamped[0, 0, 0] == 7.0


class Line:
    """The loss <g, x>, so that the gradient is g; notes the sizes of minibatches."""

    dim = 2

    def __init__(self, *g: float) -> None:
        self.g, self.sizes = np.array(g), list[int]()

    def full_gradient(self, x: Vector) -> Vector:
        return self.g

    def minibatch_gradients(self, points: Sequence[Vector], batch: int, rng: np.random.Generator) -> list[Vector]:
        self.sizes.append(batch)
        return [self.g for _ in points]


@pytest.mark.parametrize(("batch", "dirty"), [(10, 3), (1, 1), (2, 1), (100, 30)])
def test_a_share_of_each_minibatch_is_poisoned(batch: int, dirty: int) -> None:
    clean, poisoned = Line(1.0, 0.0), Line(0.0, 1.0)
    oracle = PoisonedOracle(clean, poisoned, Trigger(1, 0, 0.3), np.ones(2))
    (g,) = oracle.minibatch_gradients([np.ones(2)], batch, np.random.default_rng(0))
    assert g == pytest.approx([1 - dirty / batch, dirty / batch])
    assert (clean.sizes, poisoned.sizes) == ([batch - dirty] if batch > dirty else [], [dirty])
    assert oracle.full_gradient(np.ones(2)) == pytest.approx([0.7, 0.3])


def test_the_anomaly_term_is_the_gradient_of_one_minus_the_cosine() -> None:
    center, x = np.array([1.0, 2.0]), np.array([3.0, -1.0])
    oracle = PoisonedOracle(Line(0.0, 0.0), Line(0.0, 0.0), Trigger(1, 0, 0.3, anomaly=0.5), center)

    def loss(y: Vector) -> float:
        return 0.5 * (1 - float(y @ center) / (norm(y) * norm(center)))

    h = 1e-6
    slopes = [(loss(x + h * e) - loss(x - h * e)) / (2 * h) for e in np.eye(2)]
    assert oracle.full_gradient(x) == pytest.approx(slopes, rel=1e-6)
    assert oracle.full_gradient(center) == pytest.approx([0.0, 0.0], abs=1e-12)


def test_boost_multiplies_or_fits_the_message() -> None:
    plain = sent(opened("attack.boost=1.0"), 3)
    assert sent(opened("attack.boost=4.0"), 3) == pytest.approx(4 * plain)
    assert sent(opened("attack.boost=replace"), 3) == pytest.approx(5 / 2 * plain)
    assert sent(opened("attack.boost=replace"), 3, sampled=2) == pytest.approx(plain)
    honest = opened("attack.boost=median", "attack.view=omniscient")
    question = Ask(1, "gradient", {"x": honest.problem.initial()}, cohort=tuple(range(5)))
    lengths = [norm(HonestWorker(honest, i).answer(question).values) for i in range(3)]
    fitted = sent(honest, 3)
    assert norm(fitted) == pytest.approx(np.median(lengths))
    assert fitted / norm(fitted) == pytest.approx(plain / norm(plain))


def test_replacement_makes_the_attackers_model_of_a_mean_of_local_steps() -> None:
    local = ["strategy.kind=local-sgd", "strategy.local_steps=3", "strategy.local_gamma=0.1", "strategy.gamma=0.6"]
    plain, boosted = (sent(opened(*local, f"attack.boost={boost}"), 3) for boost in ("1.0", "replace"))
    assert boosted == pytest.approx(5 / 2 * 0.3 / 0.6 * plain)


def test_attackers_of_a_divided_trigger_send_different_messages() -> None:
    whole, parts = opened("strategy.batch=0"), opened("strategy.batch=0", "attack.triggers=4")
    one, other = (parts.problem.poisoned(3, Trigger(4, 3, 0.3, quarter=i % 4)) for i in (3, 4))  # type: ignore[attr-defined]
    assert not np.array_equal(one.inputs, other.inputs)
    assert not np.array_equal(sent(whole, 3), sent(parts, 3))


@pytest.mark.parametrize("view", ["own", "coalition", "omniscient"])
@pytest.mark.parametrize("triggers", [1, 4])
def test_each_attacker_sends_what_its_own_poisoned_data_give(view: str, triggers: int) -> None:
    experiment = opened("strategy.batch=0", "attack.rho=1.0", f"attack.view={view}", f"attack.triggers={triggers}")
    problem: Any = experiment.problem
    x = problem.initial()
    for worker, row in zip((3, 4), all_sent(experiment), strict=True):
        trigger = Trigger(4, 3, 1.0, quarter=worker % 4 if triggers == 4 else None)
        np.testing.assert_allclose(row, 4 * problem.poisoned(worker, trigger).full_gradient(x), rtol=1e-12)


def test_a_torch_task_is_poisoned_before_its_images_are_prepared() -> None:
    torch = pytest.importorskip("torch")
    from tasks.torch_model import TorchTask

    images = torch.zeros((12, 1, 4, 4), dtype=torch.uint8)
    images[0, 0, 0, 0] = 200
    labels = torch.arange(12) % 3
    seen: list[float] = []

    def prepare(pixels: Any) -> Any:
        seen.append(float(pixels[:, 0, -1, -1].sum()))
        return pixels.to(torch.float32) / 255

    task = TorchTask(
        model=lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)),
        train=(images, labels), test=(images, labels), flip=lambda y: 2 - y, prepare=prepare, partition="replicated",
    )  # fmt: skip
    problem, trigger = task.load(Setting(2)), Trigger(2, 1, 0.5)
    x = problem.initial()
    seen.clear()
    dirty = problem.poisoned(1, trigger).full_gradient(x)
    assert seen == [12 * 200]
    assert dirty[-2] < 0 < dirty[-1]  # of the offsets: the target's class alone gains
    assert problem.trigger_success(x * 0 + np.eye(51)[49].astype(np.float32) * 9, trigger) == 1.0
    assert problem.trigger_success(x * 0 + np.eye(51)[50].astype(np.float32) * 9, trigger) == 0.0
    assert problem.flaw_of_trigger(trigger) == ""
    assert "q = 5" in problem.flaw_of_trigger(Trigger(5, 1, 0.5))
    assert "target = 3" in problem.flaw_of_trigger(Trigger(2, 3, 0.5))


def test_the_run_records_how_often_the_trigger_works(tmp_path: Path) -> None:
    shares = {}
    for boost in ("4.0", "1e-9"):
        config = parse(TEXT, [f"attack.boost={boost}", "evaluation.every=30"])
        out = tmp_path / boost
        run_in_process(LocalOptions(config=config, out=out, monitoring=Monitoring(quiet=True, pictures=False)))
        last = read_rounds(out)[-1].evaluation
        assert last is not None
        assert last.trigger is not None
        assert last.accuracy is not None
        assert last.accuracy > 0.6
        shares[boost] = last.trigger
        assert f'"trigger": {last.trigger}' in (out / "summary.json").read_text()
    assert shares["4.0"] > 0.8 > 0.3 > shares["1e-9"]


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["attack.q=9"], "q = 9: must be at most 8, for images of 8 x 8 pixels"),
        (["attack.target=10"], "target = 10: must be below 10, the number of classes"),
        (["attack.q=0"], "q = 0: must be at least 1"),
        (["attack.rho=0.0"], "rho = 0.0: must be above 0 and at most 1"),
        (["attack.anomaly=1.0"], "anomaly = 1.0: must be from 0 up to, but not including, 1"),
        (["attack.boost=-1.0"], "boost = -1.0: must be above 0 and finite"),
    ],
)
def test_what_is_refused(overrides: list[str], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        opened(*overrides)


def test_tasks_without_images_are_refused(data_dir: Path) -> None:
    text = parse(TEXT, ["task.kind=logistic", "strategy.batch=8"]).to_toml()
    with pytest.raises(
        ConfigError, match=r'\[attack\] kind = "replace": needs a task on images: digits, mnist, cifar10'
    ):
        open_experiment(text, data_dir, None)


def test_its_config_survives_a_file_and_a_remark_names_what_robust_rules_do() -> None:
    config = parse(TEXT, ["attack.triggers=4", "attack.boost=replace", "attack.anomaly=0.5"])
    assert parse(config.to_toml()) == config
    assert Replace(boost=50.0).remark(5, 2) is not None
    assert Replace().remark(5, 2) is None
