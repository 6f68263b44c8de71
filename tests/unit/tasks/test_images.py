"""The image tasks: models with the published numbers of parameters, files of CIFAR-10, crops and mirror images."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks import images
from tasks.cifar10 import BATCHES, SUBSET, TEST, TRAIN, Cifar10Task, read_batch, read_cifar10
from tasks.contract import Setting, TaskError
from tasks.mnist import MnistTask
from tasks.torch_model import TorchProblem

pytest.importorskip("torch")


def some(images: int, seed: int = 0) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Random images of shape (m, 32, 32, 3) and labels."""
    rng = np.random.default_rng(seed)
    return rng.integers(256, size=(images, 32, 32, 3), dtype=np.uint8), rng.integers(10, size=images, dtype=np.uint8)


def write_subset(folder: Path, **changes: object) -> None:
    (x, y), (x_test, y_test) = some(40), some(10, seed=1)
    arrays: dict[str, Any] = {"x_train": x, "y_train": y, "x_test": x_test, "y_test": y_test} | changes
    np.savez(folder / SUBSET, **{name: array for name, array in arrays.items() if array is not None})


def pickled(pixels: object, labels: object) -> bytes:
    """A batch as Python 2 wrote the published ones, where NumPy's modules had their old names."""
    batch = {b"batch_label": b"training batch", b"labels": labels, b"data": pixels, b"filenames": [b"a.png"]}
    return pickle.dumps(batch, protocol=3).replace(b"numpy._core.", b"numpy.core.")


def write_batches(folder: Path) -> list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Write the six batches; return their images, channels first, and labels."""
    (folder / BATCHES).mkdir(parents=True)
    written = []
    for seed, name in enumerate((*TRAIN, TEST)):
        x, y = some(4, seed)
        x = np.moveaxis(x, -1, 1)
        (folder / BATCHES / name).write_bytes(pickled(x.reshape(4, -1), y.tolist()))
        written.append((x, y))
    return written


def problem_of(task: Cifar10Task | MnistTask, folder: Path, **setting: int) -> TorchProblem:
    problem = task.load(Setting(**{"clients": 4, "byzantine": 1} | setting, data_dir=folder))  # type: ignore[arg-type]
    assert isinstance(problem, TorchProblem)
    return problem


# --- models ---


@pytest.mark.parametrize(
    ("model", "norm", "published"),
    [("resnet8", "batch", 75_290), ("resnet20", "group", 269_722), ("resnet18", "batch", 11_173_962)],
)
def test_residual_networks_have_the_published_numbers_of_parameters(
    monkeypatch: pytest.MonkeyPatch, model: Any, norm: Any, published: int
) -> None:
    import torch

    from tasks.vision import resnet

    for name in ("kaiming_normal_", "kaiming_uniform_"):  # seconds for the largest
        monkeypatch.setattr(torch.nn.init, name, lambda weight, **_: weight)
    network = resnet(model, 3, norm)
    assert sum(parameter.numel() for parameter in network.parameters()) == published
    assert any(isinstance(layer, torch.nn.BatchNorm2d) for layer in network.modules()) == (norm == "batch")
    channels, size = (512, 1) if model == "resnet18" else (64, 2)
    assert network[:-3](torch.zeros(2, 3, 8, 8)).shape == (2, channels, size, size)
    assert network(torch.zeros(2, 3, 8, 8)).shape == (2, 10)


def test_a_shortcut_without_a_convolution_takes_every_second_pixel_and_fills_up_channels() -> None:
    import torch

    from tasks.vision import resnet

    block = resnet("resnet8", 3, "group")[4].eval()
    torch.nn.init.zeros_(block.get_parameter("second_norm.weight"))
    x = torch.rand(1, 16, 6, 6)
    out = block(x)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()


# --- gradients ---


@pytest.mark.parametrize("model", ["cnn", "resnet8"])
def test_gradients_are_those_of_the_loss(tmp_path: Path, model: Any) -> None:
    write_subset(tmp_path)
    task = Cifar10Task(model=model, dtype="float64", l2=0.1, augment=False, train_limit=8, partition="dirichlet(1)")
    problem = problem_of(task, tmp_path)
    x = problem.initial()
    gradient = np.mean([problem.oracle(worker).full_gradient(x) for worker in range(3)], axis=0)
    direction = np.random.default_rng(1).normal(size=problem.dim)
    e = 1e-7 * direction
    slope = (problem.evaluate(x + e).loss - problem.evaluate(x - e).loss) / 2e-7
    assert gradient @ direction == pytest.approx(slope, rel=1e-4)
    assert problem.oracle(0, flipped=True).full_gradient(x).tobytes() != problem.oracle(0).full_gradient(x).tobytes()


def test_images_are_augmented_alike_at_the_points_of_a_call_and_anew_in_the_next(tmp_path: Path) -> None:
    write_subset(tmp_path)
    problem, plain = (problem_of(Cifar10Task(model="cnn", augment=which), tmp_path) for which in (True, False))
    x, oracle = problem.initial(), problem.oracle(0)

    def gradients(round_: int) -> list[bytes]:
        oracle.begin(np.random.default_rng(round_))
        batches = [oracle.minibatch_gradients([x, x], 4, np.random.default_rng(0)) for _ in range(2)]
        whole = [*oracle.full_gradients([x, x]), oracle.full_gradient(x)]
        return [each.tobytes() for each in (*batches[0], *batches[1], *whole)]

    one, two, three, four, five, six, seven = gradients(1)
    assert (one, three, five) == (two, four, six)
    assert len({one, three, five, seven}) == 4
    assert gradients(1) == [one, two, three, four, five, six, seven]
    assert not set(gradients(2)) & {one, three, five, seven}
    # Measures are of the images as they are, so that they compare rounds.
    assert problem.evaluate(x) == plain.evaluate(x)
    assert oracle.value(x) == plain.oracle(0).value(x)
    assert list(problem.remarks()) == [
        "samples are augmented anew in each round, so full gradients are estimates: theorems on exact ones do not apply"
    ]
    assert list(plain.remarks()) == []


def test_crops_and_mirror_images() -> None:
    import torch

    from tasks.cifar10 import MARGIN, augmented

    image = torch.arange(1, 1 + 2 * 5 * 6, dtype=torch.uint8).reshape(1, 2, 5, 6)
    made = augmented(image.expand(400, -1, -1, -1), np.random.default_rng(0))
    assert made.shape == (400, 2, 5, 6)
    assert made.dtype == torch.uint8
    size = 2 * MARGIN + 1
    padded = torch.nn.functional.pad(image[0], (MARGIN,) * 4)
    crops = [padded[:, down : down + 5, right : right + 6] for down in range(size) for right in range(size)]
    allowed = {bytes(each.contiguous().numpy()) for crop in crops for each in (crop, crop.flip(2))}
    found = {bytes(each.numpy()) for each in made}
    assert found <= allowed
    assert len(found) > 100  # of 162
    mirrored = [bool((torch.diff(each.int()) == -1).any()) for each in made if (each > 0).sum() > 10]
    assert 0.3 < np.mean(mirrored) < 0.7


def test_batch_norm_trains_and_is_measured(tmp_path: Path) -> None:
    write_subset(tmp_path)
    problem = problem_of(Cifar10Task(model="resnet8", norm="batch", train_limit=8), tmp_path, batch=2)
    x = problem.initial()
    before = problem.evaluate(x).loss
    x = x - np.float32(0.1) * problem.oracle(0).full_gradient(x)
    assert np.isfinite(problem.evaluate(x).loss)
    assert problem.evaluate(x).loss != before


# --- files ---


def test_the_subset_is_read_with_channels_first(tmp_path: Path) -> None:
    write_subset(tmp_path)
    x, y, x_test, y_test = read_cifar10(tmp_path)
    assert x.flags.c_contiguous
    assert np.array_equal(x, np.moveaxis(some(40)[0], -1, 1))
    assert np.array_equal(y, some(40)[1])
    assert (x_test.shape, y_test.shape) == ((10, 3, 32, 32), (10,))


def test_the_batches_are_read_in_order_and_come_before_the_subset(tmp_path: Path) -> None:
    write_subset(tmp_path)
    *train, test = write_batches(tmp_path)
    x, y, x_test, y_test = read_cifar10(tmp_path)
    assert np.array_equal(x, np.concatenate([part[0] for part in train]))
    assert np.array_equal(y, np.concatenate([part[1] for part in train]))
    assert np.array_equal(x_test, test[0])
    assert np.array_equal(y_test, test[1])
    (tmp_path / BATCHES / TEST).unlink()
    assert len(read_cifar10(tmp_path)[0]) == 40


class _Bomb:
    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (Path("ran"),)


GOOD = np.zeros((2, 3072), np.uint8)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "not a batch of CIFAR-10, or cut off"),
        (pickled(GOOD, [0, 1])[:-50], "cut off"),
        (pickled(_Bomb(), [0, 1]), "it names"),
        (pickled(GOOD, _Bomb()), "it names"),
        (pickled(GOOD, [0]), "labels of shape (1,)"),
        (pickled(GOOD, [0, 10]), "labels 0 to 9"),
        (pickled(GOOD, [0, -1]), "labels 0 to 9"),
        (pickled(GOOD, [0, "a"]), "must be"),
        (pickled(GOOD.astype(np.float32), [0, 1]), "no bytes"),
        (pickled(GOOD[:, :10], [0, 1]), "not a batch"),
        (pickled([1, 2], [0, 1]), "not a batch"),
        (pickle.dumps([1, 2]), "not a batch"),
    ],
)
def test_a_batch_that_is_none_is_refused_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, word: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / TRAIN[0]
    path.write_bytes(content)
    with pytest.raises(TaskError) as error:
        read_batch(path)
    assert str(error.value).startswith(f"data file {path}: ")
    assert word in str(error.value)
    assert str(error.value).endswith("copy it again")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"x_test": None}, "x_test"),
        ({"x_train": some(40)[0].astype(np.float32)}, "(float32)"),
        ({"x_train": some(39)[0]}, "images of shape (39, 3, 32, 32)"),
        ({"x_train": some(40)[0][:, :28]}, "(40, 3, 28, 32)"),
        ({"y_train": some(40)[1] + 1}, "labels 0 to 9"),
        ({"y_train": np.array([None] * 40)}, "not an archive"),
        ({"x_train": some(0)[0], "y_train": some(0)[1]}, "(0, 3, 32, 32)"),
    ],
)
def test_a_broken_subset_is_refused(tmp_path: Path, changes: dict[str, object], word: str) -> None:
    write_subset(tmp_path, **changes)
    with pytest.raises(TaskError) as error:
        Cifar10Task().load(Setting(clients=2, data_dir=tmp_path))
    assert word in str(error.value)
    (tmp_path / SUBSET).write_bytes(b"PK\3\4 no archive")
    with pytest.raises(TaskError, match="not an archive of x_train"):
        Cifar10Task().load(Setting(clients=2, data_dir=tmp_path))


def test_missing_batches_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(root: str, *, download: bool) -> None:
        assert download
        write_batches(Path(root))
        (Path(root) / BATCHES / "batches.meta").write_bytes(b"names")
        (Path(root) / "cifar-10-python.tar.gz").write_bytes(b"packed")

    datasets = type("datasets", (), {"CIFAR10": staticmethod(fetch)})
    monkeypatch.setattr(images, "import_module", lambda _: datasets)
    assert len(read_cifar10(tmp_path)[0]) == 20
    assert [path.name for path in tmp_path.iterdir()] == [BATCHES]
    with pytest.raises(TaskError, match=r"CIFAR-10: no data folder.*--data FOLDER"):
        Cifar10Task().load(Setting(clients=2))


@pytest.mark.parametrize(
    ("values", "word"),
    [({"model": "mlp"}, 'model = "mlp"'), ({"norm": "layer"}, 'norm = "layer": must be "group" or "batch"')],
)
def test_a_bad_value_is_refused(values: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match="must be") as error:
        Cifar10Task(**values)
    assert word in str(error.value)
