"""Two evaluations of one gradient: a module with batch norm and dropout, at two points of a difference."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from typing import Any

import numpy as np
import pytest

from client.worker import HonestWorker
from experiment.config import parse, resolve
from experiment.model_file import ModelForm
from experiment.opened import Experiment
from strategies.method import Ask, Vector, begin, full_gradients
from strategies.randomness import Role, stream
from tasks.contract import Setting, TaskError
from tasks.trial import generators_restored

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402  # after the skip: torch is an extra

from tasks.flat_module import FlatModule, drawing  # noqa: E402  # imports torch
from tasks.torch_model import TorchProblem, TorchTask  # noqa: E402  # imports torch

SETTING = Setting(clients=4, byzantine=1, seed=2, batch=32)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 5))


def data(samples: int = 300, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, 20, generator=generator) + 1, torch.randint(0, 5, (samples,), generator=generator)


def problem(model: Callable[[], nn.Module] = net, setting: Setting = SETTING, **options: Any) -> TorchProblem:
    values: dict[str, Any] = {"train": data(), "test": data(40, 1), "flip": lambda y: 4 - y}
    return TorchTask(model=model, **(values | options)).load(setting)


def evaluations(task: TorchProblem, worker: int = 0, round_: int = 1) -> Any:
    """Return the two kinds of gradients of a worker in a round, at any points."""
    oracle = task.oracle(worker)

    def minibatch(points: Sequence[Vector]) -> list[Vector]:
        begin(oracle, lambda: stream(2, Role.MODEL, worker, round_))
        return oracle.minibatch_gradients(points, 32, stream(2, Role.WORKER, worker, round_))

    def full(points: Sequence[Vector]) -> list[Vector]:
        begin(oracle, lambda: stream(2, Role.MODEL, worker, round_))
        return full_gradients(oracle, points)

    return {"minibatch": minibatch, "full": full}


KINDS = pytest.mark.parametrize("kind", ["minibatch", "full"])


@KINDS
def test_a_difference_at_one_point_is_zero_bit_for_bit(kind: str) -> None:
    task = problem()
    x = task.initial()
    one, other = evaluations(task)[kind]([x, x.copy()])
    assert one.tobytes() == other.tobytes()
    assert np.linalg.norm(one) > 0.1


@KINDS
def test_the_order_of_the_points_flips_the_sign_of_a_difference_exactly(kind: str) -> None:
    task = problem()
    x = task.initial()
    gradients = evaluations(task)[kind]
    new, old = gradients([x + np.float32(0.01), x])
    again_old, again_new = gradients([x, x + np.float32(0.01)])
    assert np.array_equal(new - old, -(again_old - again_new))
    assert not np.array_equal(new, old)


@KINDS
def test_buffers_generators_and_modes_are_as_before(kind: str) -> None:
    task = problem()
    module = task.model.module
    torch.manual_seed(5)
    before, state = {name: each.clone() for name, each in module.named_buffers()}, torch.get_rng_state()
    evaluations(task)[kind]([task.initial()])
    task.evaluate(task.initial())
    assert all(torch.equal(each, before[name]) for name, each in module.named_buffers())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(layer.training for layer in module.modules())


@KINDS
def test_a_difference_is_as_short_as_the_step(kind: str) -> None:
    task = problem(dtype="float64", train=(data()[0].double(), data()[1]), test=(data()[0].double(), data()[1]))
    x, way = task.initial(), np.random.default_rng(0).standard_normal(task.dim)
    way /= np.linalg.norm(way)
    ratios = []
    for step in (1e-3, 1e-4, 1e-5):
        new, old = evaluations(task)[kind]([x + step * way, x])
        ratios.append(np.linalg.norm(new - old) / step)
    assert max(ratios) < 3
    (fresh,) = evaluations(task, round_=2)[kind]([x])
    assert np.linalg.norm(fresh - old) > 0.1  # with other masks no step is short enough


def test_workers_and_rounds_and_calls_have_masks_of_their_own() -> None:
    task = problem(partition="replicated")
    x, oracle = task.initial(), task.oracle(0)
    found = []
    for worker, round_ in ((0, 1), (1, 1), (0, 2)):
        begin(oracle, partial(stream, 2, Role.MODEL, worker, round_))
        for _ in range(2):
            found += [oracle.minibatch_gradients([x], 32, np.random.default_rng(7))[0].tobytes()]  # the same rows
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("kind", ["full", "difference"])
def test_a_reply_that_is_repeated_after_a_restart_is_equal(kind: str) -> None:
    config = parse(
        """
[federation]
clients = 4
seed = 2
[task]
kind = "digits"
[strategy]
kind = "byz-vr-marina"
rounds = 3
gamma = 0.1
p = 0.5
batch = 32
"""
    )

    def reply(warm: bool) -> bytes:
        task = problem()
        opened = Experiment(config=resolve(config, task), problem=task)
        worker = HonestWorker(opened, 1)
        x = task.initial()
        vectors = {"x": x} if kind == "full" else {"x": x + np.float32(0.1), "x_prev": x, "g": x}
        for round_ in (1, 2, 3) if warm else ():
            worker.answer(Ask(round_, "full", {"x": x}))
        packet = worker.answer(Ask(4, kind, vectors))
        return packet.values.tobytes()

    assert reply(warm=False) == reply(warm=True)


# --- batch norm -------------------------------------------------------------------------------------------------------


def test_a_full_gradient_is_the_mean_of_gradients_of_batches_of_exactly_b_rows() -> None:
    plain = nn.Sequential(nn.Linear(20, 8), nn.BatchNorm1d(8), nn.Linear(8, 5))
    seen: list[int] = []
    plain.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    task = problem(lambda: plain)
    evaluations(task)["full"]([task.initial()])
    assert seen == [32, 32, 32]  # of 75 rows
    rows = task.chunks(task.parts[0], 9)
    assert set(np.concatenate(rows)) == set(task.parts[0])
    assert all(len(set(part)) == 32 for part in rows)


def test_the_running_statistics_are_the_mean_over_the_reference_batches() -> None:
    task = problem(lambda: nn.Sequential(nn.BatchNorm1d(20), nn.Linear(20, 5)))
    stats = task.norm_stats(task.initial())
    assert stats is not None
    assert stats.shape == (40,)
    inputs = data()[0][np.concatenate(task.parts[:3])].double()
    np.testing.assert_allclose(stats[:20], inputs.mean(dim=0), atol=0.05)
    np.testing.assert_allclose(stats[20:], inputs.var(dim=0), rtol=0.1)
    again = problem(task.task.model).norm_stats(task.initial())
    assert again is not None
    assert np.array_equal(stats, again)
    state: Any = task.norm_buffers(task.initial())
    assert list(state) == ["0.running_mean", "0.running_var"]
    assert np.array_equal(state["0.running_mean"], stats[:20].astype(np.float32))


def test_a_layer_that_is_used_twice_has_its_statistics_under_both_names() -> None:
    def twice() -> nn.Module:
        norm = nn.BatchNorm1d(20)
        return nn.Sequential(norm, nn.Linear(20, 20), norm, nn.Linear(20, 5))

    task = problem(twice)
    found: Any = task.norm_buffers(task.initial())
    assert list(found) == ["0.running_mean", "0.running_var", "2.running_mean", "2.running_var"]
    assert np.array_equal(found["0.running_mean"], found["2.running_mean"])
    twice().load_state_dict({name: torch.from_numpy(part) for name, part in found.items()}, strict=False)


def test_a_model_is_measured_with_statistics_that_were_set() -> None:
    task = problem(lambda: nn.Sequential(nn.BatchNorm1d(20), nn.Linear(20, 5)))
    x = task.initial()
    own = task.evaluate(x)
    stats = task.norm_stats(x)
    assert stats is not None
    task.set_norm_stats(stats + 1)
    assert task.evaluate(x).loss != own.loss
    task.set_norm_stats(None)
    assert task.evaluate(x) == own


def test_a_batch_norm_in_evaluation_mode_is_frozen() -> None:
    def frozen() -> nn.Module:
        module = nn.Sequential(nn.BatchNorm1d(20), nn.Linear(20, 5))
        module[0].eval()
        return module

    task = problem(frozen)
    assert task.norm_stats(task.initial()) is None
    (first,) = evaluations(task)["full"]([task.initial()])
    (again,) = evaluations(task, round_=2)["full"]([task.initial()])
    assert np.array_equal(first, again)  # no batch, so no order, matters


@pytest.mark.parametrize(("batch", "clients", "word"), [(1, 4, "strategy.batch = 1"), (8, 300, "one sample")])
def test_batches_of_one_value_a_channel_are_refused(batch: int, clients: int, word: str) -> None:
    with pytest.raises(TaskError, match=f"{word}.* needs more than one value"):
        problem(setting=Setting(clients=clients, batch=batch))


def test_batch_norm_over_images_takes_batches_of_one() -> None:
    def images() -> nn.Module:
        return nn.Sequential(nn.Unflatten(1, (1, 4, 5)), nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(20, 5))

    task = problem(images, setting=Setting(clients=4, batch=1))
    assert np.isfinite(task.evaluate(task.initial()).loss)


# --- half precision ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_parameters_are_trained_through_a_float32_vector(dtype: str) -> None:
    model = lambda: nn.Sequential(nn.Linear(20, 8), nn.Tanh(), nn.Linear(8, 5))  # noqa: E731  # one line
    half = getattr(torch, dtype)
    task = problem(
        model, train=(data()[0].to(half), data()[1]), test=(data(40, 1)[0].to(half), data(40, 1)[1]), dtype=dtype
    )
    exact = problem(model)
    x = task.initial()
    assert task.dtype == x.dtype == np.float32
    assert np.array_equal(x, exact.initial())
    assert all(parameter.dtype == half for parameter in task.model.module.parameters())
    ours, theirs = (each.oracle(0).full_gradient(x) for each in (task, exact))
    assert ours.dtype == np.float32
    assert 0 < np.linalg.norm(ours - theirs) < 0.05 * np.linalg.norm(theirs)
    tiny = x * np.float32(1 + 1e-4)  # beyond what a half type resolves, and kept
    assert np.array_equal(task.oracle(0).full_gradient(tiny), task.oracle(0).full_gradient(tiny))
    assert task.evaluate(x).loss == pytest.approx(exact.evaluate(x).loss, rel=0.02)


def test_draws_begin_at_the_seed_and_leave_torch_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with drawing(8) as drawn:
        assert not drawn()
        first = torch.rand(4)
        assert drawn()
    with drawing(8):
        assert torch.equal(torch.rand(4), first)
    assert torch.equal(torch.rand(2), expected)


def test_another_thread_waits_with_the_generators_until_they_are_restored() -> None:
    wanted = [torch.rand(2, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]

    def other() -> list[Tensor]:
        with generators_restored(), drawing(2):
            return [torch.rand(2), torch.from_numpy(problem().initial())]

    alone = other()
    with ThreadPoolExecutor(1) as pool:
        with drawing(1):
            running = pool.submit(other)
            assert not wait([running], timeout=0.05).done
            assert torch.equal(torch.rand(2), wanted[0])
        assert all(map(torch.equal, running.result(), alone))
    assert torch.equal(alone[0], wanted[1])


def test_a_model_that_draws_nothing_says_so() -> None:
    model = FlatModule(nn.Linear(20, 5), "float32")
    loss = lambda module, batch: nn.functional.cross_entropy(module(batch[0]), batch[1])  # noqa: E731  # one line
    assert not model.gradient(model.initial, [data()], loss, 300)[1]
    dropped = FlatModule(nn.Sequential(nn.Linear(20, 5), nn.Dropout(0.1)), "float32")
    assert dropped.gradient(dropped.initial, [data()], loss, 300)[1]


def test_local_statistics_are_those_of_a_workers_own_rows_and_the_server_has_none() -> None:
    def normed() -> nn.Module:
        return nn.Sequential(nn.BatchNorm1d(20), nn.Linear(20, 5))

    inputs, targets = data()
    inputs[:, 0] += 3 * targets  # rows of one label have their own mean
    task = problem(normed, train=(inputs, targets), partition="label", local_stats=True)
    x = task.initial()
    claims = [task.measure(worker, x) for worker in range(3)]
    assert claims[0].loss != claims[1].loss
    assert task.norm_stats(x) is None  # before and after
    assert [task.measure(worker, x) for worker in (2, 1, 0)] == claims[::-1]
    alone = problem(normed, train=(inputs[task.parts[0]], targets[task.parts[0]]), setting=Setting(clients=1, batch=32))
    alone.set_norm_stats(np.concatenate([np.zeros(20), np.ones(20)]))
    assert alone.measure(0, x).loss != claims[0].loss
    rows = inputs[task.parts[1]].double()
    stats = task._stats_on(task.parts[1], x, stream(2, Role.NORM_STATS, 1))
    np.testing.assert_allclose(stats[:20], rows.mean(dim=0), atol=0.1)
    assert task.norm_buffers(x) == {"0.running_mean": None, "0.running_var": None}
    saved, _ = ModelForm.of(task).arrays(x)
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"0.running_mean\", \"0.running_var\""):
        normed().load_state_dict({name: torch.from_numpy(np.array(part)) for name, part in saved.items()})
    assert any("the server lacks them" in remark for remark in task.remarks())
