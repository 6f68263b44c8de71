"""Where torch modules compute: options, environment and node config, and the path of a device that is not the CPU."""

import argparse
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from client.node_config import NodeConfig
from deploy.commands.options import add_compute, settle_compute
from experiment.config import parse
from experiment.opened import open_config
from foundation.errors import ConfigError
from tasks import compute
from tasks.compute import Compute, computing
from tasks.contract import Setting, TaskError

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402  # after the skip: torch is an extra

from tasks.placement import Placement  # noqa: E402  # imports torch
from tasks.torch_model import TorchProblem, TorchTask  # noqa: E402  # imports torch

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in compute.VARIABLES.values():
        monkeypatch.setenv(name, "")  # so that it is restored whatever a test sets


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))


def problem(on: Compute, dtype: str = "float32", **options: Any) -> TorchProblem:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 6, generator=generator).to(getattr(torch, dtype))
    data = inputs, torch.randint(0, 3, (60,), generator=generator)
    with computing(on):
        task = TorchTask(model=net, train=data, test=data, flip=lambda y: 2 - y, l2=0.1, dtype=dtype, **options)
        return task.load(Setting(clients=2, batch=8))


def results(task: TorchProblem) -> list[np.ndarray[Any, Any]]:
    """Return gradients of both kinds and measures, at x^0 and beside it."""
    oracle, x = task.oracle(0), task.initial()
    points = [x, x + x.dtype.type(0.01)]
    found = oracle.minibatch_gradients(points, 8, np.random.default_rng(0))
    measured = task.evaluate(points[1])
    return [*found, oracle.full_gradient(x), np.array([measured.loss, measured.accuracy])]


def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the CPU pass for another device."""
    begin = Placement.__init__

    def begin_elsewhere(self: Placement, on: Compute, kind: str) -> None:
        begin(self, on, kind)
        self.on_cpu = False

    monkeypatch.setattr(Placement, "__init__", begin_elsewhere)


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_compute(parser)
    return parser.parse_args(words)


def test_options_win_over_the_environment_and_are_there_for_processes_that_are_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BREAKWATER_PRECISION", "bf16")
    monkeypatch.setenv("BREAKWATER_DEVICE", "mps")
    settle_compute(options("--device", "auto", "--device-memory", "0.2"))
    assert compute.current() == Compute("auto", "bf16", 0.2)


@pytest.mark.parametrize("words", [("--device", "gpu"), ("--precision", "fp8"), ("--device-memory", "1.5")])
def test_an_option_that_cannot_be_used_is_refused(words: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options(*words)
    assert f"{words[0]}: '{words[1]}': must be " in capsys.readouterr().err


def test_a_variable_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BREAKWATER_DEVICE", "cuda:x")
    with pytest.raises(ConfigError, match="BREAKWATER_DEVICE: 'cuda:x': must be auto, cpu, cuda, cuda:N or mps"):
        compute.current()


def test_threads_that_leave_in_another_order_than_they_came_choose_each_for_itself() -> None:
    entered, left = threading.Event(), threading.Event()

    def first() -> Compute:
        with computing(Compute("cuda:1")):
            entered.set()
            assert left.wait(10)
            return compute.current()

    with ThreadPoolExecutor(1) as pool:
        with computing(Compute("cuda:0")):
            running = pool.submit(first)
            assert entered.wait(10)
            assert compute.current() == Compute("cuda:0")
        left.set()
        assert running.result() == Compute("cuda:1")
        assert compute.current() == pool.submit(compute.current).result() == compute.CPU


def test_a_node_config_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BREAKWATER_DEVICE", "mps")
    given = {"partition-id": 0, "device": "cuda:1", "device-memory": 0.5}
    assert NodeConfig.read(given).compute == Compute("cuda:1", "float32", 0.5)
    with pytest.raises(ConfigError, match="node config: precision: 'fp8': must be float32 or bf16"):
        NodeConfig.read({"precision": "fp8"})


def devices(monkeypatch: pytest.MonkeyPatch, cuda: int, mps: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(("cuda", "mps", "found"), [(2, True, "cuda:0"), (0, True, "mps"), (0, False, "cpu")])
def test_auto_takes_the_first_that_there_is(monkeypatch: pytest.MonkeyPatch, cuda: int, mps: bool, found: str) -> None:
    devices(monkeypatch, cuda, mps)
    assert str(Compute("auto").torch_device()) == found


@pytest.mark.parametrize(
    ("device", "cuda", "words"),
    [
        ("cuda", 0, "finds no CUDA devices here; use cpu or auto"),
        ("cuda:1", 1, "finds 1 CUDA device here; use cuda:0 to cuda:0"),
        ("mps", 0, "finds none here; use cpu or auto"),
    ],
)
def test_a_device_that_is_absent_is_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch, device: str, cuda: int, words: str
) -> None:
    devices(monkeypatch, cuda, False)
    with pytest.raises(ConfigError, match=words):
        settle_compute(options("--device", device))


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_staged_copies_give_the_bits_of_shared_memory(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    """The path of other devices, on the CPU: vectors are copied in and out, batches are moved."""
    expected = results(problem(Compute(), dtype))
    elsewhere(monkeypatch)
    found = results(problem(Compute(), dtype))
    assert [each.tobytes() for each in found] == [each.tobytes() for each in expected]


def test_a_device_that_the_users_code_cannot_use_is_refused_at_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        raise RuntimeError("Expected all tensors to be on the same device")

    elsewhere(monkeypatch)
    with pytest.raises(TaskError, match=r"a gradient on cpu fails .*same device.*; make tensors in forward"):
        problem(Compute(), loss=loss)


def test_bf16_computes_with_float32_parameters_and_near_their_gradient() -> None:
    exact, rounded = results(problem(Compute())), results(problem(Compute(precision="bf16")))
    assert rounded[0].dtype == np.float32
    assert not np.array_equal(exact[0], rounded[0])
    assert np.linalg.norm(exact[0] - rounded[0]) < 0.05 * np.linalg.norm(exact[0])
    again = results(problem(Compute(precision="bf16")))
    assert all(map(np.array_equal, rounded, again))


def test_bf16_is_refused_for_other_types() -> None:
    with pytest.raises(ConfigError, match="precision bf16: the model's parameters are float64; use dtype"):
        problem(Compute(precision="bf16"), "float64")


def test_a_task_without_torch_says_that_it_ignores_the_device(caplog: pytest.LogCaptureFixture) -> None:
    strategy = '[strategy]\nkind = "robust-sgd"\nrounds = 1\ngamma = 0.1\nbatch = 8\n'
    config = parse(f'[federation]\nclients = 4\n[task]\nkind = "digits"\n{strategy}')
    open_config(config)
    assert not caplog.records
    with computing(Compute("auto")):
        open_config(config)
    assert "device auto, precision float32: not used" in caplog.text


@CUDA
def test_cuda_is_near_the_cpu_and_equal_at_both_points() -> None:
    task, expected = problem(Compute("cuda")), results(problem(Compute()))
    oracle, x = task.oracle(0), task.initial()
    one, other = oracle.minibatch_gradients([x, x.copy()], 8, np.random.default_rng(0))
    assert one.tobytes() == other.tobytes()
    assert np.allclose(task.evaluate(x).loss, problem(Compute()).evaluate(x).loss, rtol=1e-4)
    assert all(np.isfinite(found).all() for found in results(task))
    assert len(expected[0]) == task.dim
