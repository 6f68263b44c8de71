"""The model's file: what a user loads, what becomes of x, and what older versions wrote."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from safetensors.torch import load_file
from torch import Tensor, nn

from experiment.model_file import ModelForm
from foundation.errors import ConfigError
from server.run_folder import MODEL
from server.run_folder.reader import read_model
from server.run_folder.writer import RunFolder
from strategies.method import Evaluation, Vector
from tasks.contract import Setting
from tasks.own_problem import OwnProblem
from tasks.torch_model import TorchProblem, TorchTask


class Everything(nn.Module):
    """Tied, frozen and scalar parameters, buffers of several types, and names that look like ours."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Linear(3, 4, bias=False)
        self.again = self.x
        self.body = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        self.body[0].weight.requires_grad_(False)
        self.parameters_ = nn.ParameterDict({"frozen": nn.Parameter(torch.tensor(2.0))})
        self.head = nn.Linear(4, 4)
        self.tail = nn.Linear(4, 4)
        self.tail.weight = self.head.weight
        self.steps: Tensor
        self.register_buffer("steps", torch.tensor(7))
        self.register_buffer("mask", torch.tensor([True, False, True, True]))
        self.register_buffer("third", torch.ones(4, dtype=torch.bfloat16) / 3)
        self.register_buffer("scratch", torch.zeros(9), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.body(self.x(inputs)) * self.parameters_["frozen"] + self.third
        return self.tail(torch.tanh(self.head(hidden))) * self.mask  # type: ignore[no-any-return]  # as torch types it


class Bare(nn.Module):
    """Its only parameter is called as our vector."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.ones(3, 4))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.x


INPUTS, LABELS = torch.randn(12, 3, generator=torch.Generator().manual_seed(1)), torch.arange(12) % 4


def problem(model: Callable[[], nn.Module]) -> TorchProblem:
    task = TorchTask(model=model, train=(INPUTS, LABELS), test=(INPUTS, LABELS), flip=lambda labels: 3 - labels)
    return task.load(Setting(clients=2, seed=5))


def save(folder: Path, form: ModelForm, x: Vector) -> bytes:
    with RunFolder(folder) as run:
        run.form = form
        run.save(x)
    return (folder / MODEL).read_bytes()


@pytest.mark.parametrize("model", [Everything, Bare])
def test_a_torch_model_is_a_state_dict(model: Callable[[], nn.Module], tmp_path: Path) -> None:
    task = problem(model)
    x = task.initial() + np.float32(0.25)
    save(tmp_path / "run", ModelForm.of(task), x)
    module = model()
    module.load_state_dict(load_file(tmp_path / "run" / MODEL))  # strict
    with task.model.evaluating(x, None) as ours:
        assert torch.equal(module(INPUTS), ours(INPUTS))
    read = read_model(tmp_path / "run")
    assert read.x is not None
    assert read.x.tobytes() == x.tobytes()
    state = model().state_dict()
    assert read.tensors.keys() == state.keys()
    assert {name: array.shape for name, array in read.tensors.items()} == {n: tuple(t.shape) for n, t in state.items()}


def test_tied_parameters_and_buffers_have_their_values_and_types(tmp_path: Path) -> None:
    task = problem(Everything)
    save(tmp_path / "run", ModelForm.of(task), task.initial())
    tensors = read_model(tmp_path / "run").tensors
    assert np.array_equal(tensors["tail.weight"], tensors["head.weight"])
    assert np.array_equal(tensors["again.weight"], tensors["x.weight"])
    steps = tensors["steps"]
    assert (steps.shape, str(steps.dtype), int(steps)) == ((), "int64", 7)
    assert tensors["mask"].dtype == np.bool_
    assert "scratch" not in tensors


def test_equal_models_give_equal_files_with_nothing_else_in_them(tmp_path: Path) -> None:
    files = {save(tmp_path / str(k), ModelForm.of(task := problem(Everything)), task.initial()) for k in range(3)}
    assert len(files) == 1
    with safe_open(tmp_path / "0" / MODEL, "numpy") as file:
        assert list(file.metadata()) == ["parameters"], "several keys would be written in any order"


class Own:
    """A problem of the user's own, with what it may have beside the contract."""

    dim, dtype, smoothness, optimum, samples = 6, np.dtype(np.float64), None, None, 1

    def __init__(self, **optional: Any) -> None:
        for name, value in optional.items():
            setattr(self, name, lambda value=value: value)

    def initial(self) -> Vector:
        return np.arange(6.0)

    def oracle(self, worker: int, *, flipped: bool = False) -> Any:
        raise NotImplementedError

    def evaluate(self, x: Vector) -> Evaluation:
        raise NotImplementedError


LAYOUT = json.dumps([["w", [2, 2]], ["b", [2]]])


@pytest.mark.parametrize(
    ("optional", "names"),
    [
        ({}, {"x"}),
        ({"layout": LAYOUT}, {"w", "b"}),
        ({"layout": LAYOUT, "tied": {"v": "w"}, "frozen": {"scale": 2.0}}, {"w", "b", "v", "scale"}),
        ({"frozen": {"scale": [1.0, 2.0]}}, {"x", "frozen.scale"}),
        ({"layout": "two matrices"}, {"x"}),
        ({"layout": "[1, 2]"}, {"x"}),
        ({"layout": json.dumps([["w", [5]]])}, {"x"}),
        ({"layout": json.dumps([["w", [-2, -3]]])}, {"x"}),
        ({"layout": json.dumps([["w", [3]], ["w", [3]]])}, {"x"}),
        ({"layout": LAYOUT, "frozen": {"w": 1.0}}, {"x", "frozen.w"}),
        ({"layout": LAYOUT, "tied": {"v": "u"}}, {"x"}),
    ],
)
def test_a_task_of_the_users_own(optional: dict[str, Any], names: set[str], tmp_path: Path) -> None:
    save(tmp_path / "run", ModelForm.of(OwnProblem(Own(**optional))), np.arange(6.0))
    with safe_open(tmp_path / "run" / MODEL, "numpy") as file:
        assert set(file.keys()) == names
    read = read_model(tmp_path / "run")
    assert read.x is not None
    assert read.x.tolist() == [0, 1, 2, 3, 4, 5]
    assert set(read.tensors) == (names if "x" not in names else set())


def test_folders_of_older_versions_are_read(tmp_path: Path) -> None:
    arrays = {"x": np.arange(6.0), "frozen.mean": np.ones(3)}
    save_file(arrays, tmp_path / MODEL, {"layout": LAYOUT})
    read = read_model(tmp_path)
    assert read.x is not None
    assert read.x.tolist() == [0, 1, 2, 3, 4, 5]
    assert {name: array.tolist() for name, array in read.tensors.items()} == {
        "w": [[0, 1], [2, 3]],
        "b": [4, 5],
        "mean": [1, 1, 1],
    }
    save_file({"x": np.arange(6.0)}, tmp_path / MODEL)
    assert not read_model(tmp_path).tensors


def test_a_file_that_something_else_has_written_has_tensors_without_an_order(tmp_path: Path) -> None:
    save_file({"x": np.ones((2, 2)), "b": np.ones(2)}, tmp_path / MODEL)
    read = read_model(tmp_path)
    assert read.x is None
    assert set(read.tensors) == {"x", "b"}


def test_what_is_no_model_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no model is there \(model.safetensors is missing\)"):
        read_model(tmp_path)
    (tmp_path / MODEL).write_bytes(b"\x00" * 30)
    with pytest.raises(ConfigError, match=r"is not the model of a run: [^\n]*$"):
        read_model(tmp_path)
    for parameters in ("[", '["gone"]', "7", "[[]]"):
        save_file({"w": np.ones(2)}, tmp_path / MODEL, {"parameters": parameters})
        with pytest.raises(ConfigError, match="is not the model of a run: "):
            read_model(tmp_path)
