"""The tasks' specs and their data: what is read, what is refused, and in which words."""

import gzip
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from tasks.cifar10 import Cifar10Task
from tasks.contract import Problem, Setting, TaskError, TaskSpec, mean_samples
from tasks.custom import CustomTask
from tasks.digits import DigitsTask, read_digits
from tasks.files import locate
from tasks.libsvm import read_libsvm
from tasks.logistic import LogisticTask
from tasks.mnist import FILES, MnistTask
from tasks.network import Network
from tests.toys import accuracy

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch")


def file_of(folder: Path, text: str, name: str = "set") -> Path:
    (folder / name).write_bytes(text.encode())
    return folder / name


# --- specs ---


@pytest.mark.parametrize(
    ("spec", "values", "word"),
    [
        (LogisticTask, {"l2": -1.0}, "l2 = -1.0: must be a finite number from 0 up"),
        (LogisticTask, {"l2": float("inf")}, "l2 = inf"),
        (LogisticTask, {"dtype": "float16"}, 'dtype = "float16"'),
        (LogisticTask, {"features": 0}, "features = 0: must be at least 1"),
        (LogisticTask, {"partition": "random"}, 'partition = "random"'),
        (DigitsTask, {"model": "cnn"}, 'model = "cnn": must be "softmax" or "mlp"'),
        (DigitsTask, {"hidden": 0}, "hidden = 0"),
        (DigitsTask, {"l2": float("nan")}, "l2 = nan"),
        (DigitsTask, {"dtype": "int"}, 'dtype = "int"'),
        (DigitsTask, {"test_share": 1.0}, "test_share = 1.0: must be from 0.01 to 0.9"),
        (DigitsTask, {"partition": "dirichlet(0)"}, "dirichlet"),
        (MnistTask, {"model": "softmax"}, 'model = "softmax"'),
        (MnistTask, {"hidden": -3}, "hidden = -3"),
        (MnistTask, {"l2": -0.1}, "l2 = -0.1"),
        (MnistTask, {"dtype": "bfloat16"}, 'dtype = "bfloat16"'),
        (MnistTask, {"norm": "layer"}, 'norm = "layer": must be "group" or "batch"'),
        (MnistTask, {"train_limit": 0}, "train_limit = 0"),
        (MnistTask, {"partition": ""}, 'partition = ""'),
        (CustomTask, {"path": "my_task.py"}, 'path = "my_task.py": must be "file.py:Class"'),
        (CustomTask, {"path": "my_task:Task"}, "file.py:Class"),
        (CustomTask, {"path": "my_task.py:Task", "partition": "x"}, 'partition = "x"'),
    ],
)
def test_a_bad_value_is_refused_with_value_and_bound(spec: type, values: dict[str, object], word: str) -> None:
    with pytest.raises(ValueError, match="must be") as error:
        spec(**values)
    assert word in str(error.value)


@pytest.mark.parametrize("spec", [LogisticTask, DigitsTask, MnistTask, Cifar10Task, CustomTask])
def test_pydantic_reads_the_specs_and_refuses_unknown_keys_and_types(spec: type[TaskSpec]) -> None:
    config: dict[str, object] = {"partition": "iid"}
    if spec is CustomTask:
        config |= {"path": "a.py:B", "options": {"i": 1, "x": 0.5, "s": "word", "b": True}}
    adapter: TypeAdapter[TaskSpec] = TypeAdapter(spec)
    read = adapter.validate_python(config)
    assert read == spec(**config)
    assert adapter.validate_python(adapter.dump_python(read)) == read
    with pytest.raises(ValidationError, match="l3"):
        adapter.validate_python(config | {"l3": 1})
    with pytest.raises(ValidationError, match="kind"):
        adapter.validate_python(config | {"kind": "other"})
    with pytest.raises(ValidationError, match='partition = "x"'):
        adapter.validate_python(config | {"partition": "x"})


def test_the_options_of_a_custom_task_keep_their_types() -> None:
    options = {"i": 1, "x": 0.5, "s": "word", "b": True}
    read = TypeAdapter(CustomTask).validate_python({"path": "a.py:B", "options": options})
    assert {name: type(value) for name, value in read.options.items()} == {"i": int, "x": float, "s": str, "b": bool}


@pytest.mark.parametrize("task", [LogisticTask(), DigitsTask()])
def test_the_modules_named_for_preloading_exist(task: TaskSpec) -> None:
    assert all(importlib.util.find_spec(module) for module in task.modules())


def test_reading_a_config_imports_nothing_heavy() -> None:
    code = (
        "import sys, tasks.cifar10, tasks.custom, tasks.digits, tasks.logistic, tasks.mnist;"
        "print({'torch', 'torchvision', 'sklearn', 'scipy', 'flwr'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[3], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


# --- files ---


def test_a_missing_folder_or_file_is_named_with_the_mend(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r'"libsvm/a9a.gz".*--data FOLDER.*BREAKWATER_DATA'):
        LogisticTask().load(Setting(clients=2))
    with pytest.raises(TaskError, match=rf'"nope.gz" is not in the folder {tmp_path}.*--data FOLDER'):
        LogisticTask(data="nope.gz").load(Setting(clients=2, data_dir=tmp_path))
    with pytest.raises(TaskError, match=r"MNIST: no data folder.*--data FOLDER"):
        MnistTask().load(Setting(clients=2))


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret", "a/../../secret", ".."])
def test_a_name_that_leads_out_of_the_data_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(TaskError, match="must be a path inside the data folder"):
        LogisticTask(data=name).load(Setting(clients=2, data_dir=tmp_path))


def test_a_name_may_wander_inside_the_data_folder(tmp_path: Path) -> None:
    assert locate(Setting(clients=1, data_dir=tmp_path), "a/../b/c") == tmp_path / "b" / "c"


@pytest.mark.parametrize("name", ["set.gz", "set.bz2"])
@pytest.mark.parametrize(
    "content", [b"+1 1:1\n", gzip.compress(b"+1 1:1\n" * 1000)[:-9], b""], ids=["text", "cut off", "empty"]
)
def test_a_broken_archive_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TaskError, match=r"cannot be read|no samples"):
        LogisticTask(data=name).load(Setting(clients=1, data_dir=tmp_path))


# --- LIBSVM ---


def test_libsvm_reads_labels_indices_and_values(tmp_path: Path) -> None:
    text = "+1 1:0.5 3:-2e1  # the first\r\n\n-1\n# nothing but words: 1:2\n1.0 2:1\t4:+7"
    samples = read_libsvm(file_of(tmp_path, text))
    assert samples.labels.tolist() == [1, -1, 1]
    assert samples.starts.tolist() == [0, 2, 2, 4]
    assert samples.columns.tolist() == [0, 2, 1, 3]
    assert samples.values.tolist() == [0.5, -20, 1, 7]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "no samples"),
        ("# only words\n", "no samples"),
        ("+1 1:1\n-1 2:x\n", 'line 2 is "-1 2:x"'),
        ("+1 1:1\n\n-1 2:1:3\n", "line 3"),
        ("+1 1:1 7\n", "line 1"),
        ("+1 qid:3 1:1\n", "line 1"),
        ("<html>\n", "line 1"),
        ("+1 1:1\n-1 \xe9:1\n", "line 2"),
        ("1:1 2:1\n+1 5\n", "line 1"),
        ("+1 0:1\n-1 1:1\n", 'sample 1 has the entry "0:1"'),
        ("1:2 3:4\n9 8\n", "line 1"),
        ("+1 2:3:4 5\n", "line 1"),
        ("+1 1:\n", "line 1"),
        ("+1 :1\n", "line 1"),
        ("nan 1:1\n", "line 1"),
        ("+1 1:1\n-1 1.5:1\n", 'sample 2 has the entry "1.5:1"'),
        ("+1 2:1 2:1\n", "ascending"),
        ("+1 3:1 2:1\n", "ascending"),
        ("+1 1:nan\n", "line 1"),
        ("+1 1:1\n-1 1:1e999\n", "beyond 1.8e308"),
        ("+1 9999999999:1\n", "indices"),
    ],
)
def test_libsvm_names_what_is_wrong(tmp_path: Path, text: str, word: str) -> None:
    with pytest.raises(TaskError) as error:
        read_libsvm(file_of(tmp_path, text))
    assert word in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("labels", [("-1", "+1"), ("0", "1"), ("1", "2"), ("2", "4")])
def test_two_labels_become_minus_and_plus_one(tmp_path: Path, labels: tuple[str, str]) -> None:
    file_of(tmp_path, f"{labels[1]} 1:3\n{labels[0]} 2:4\n{labels[1]}\n")
    problem = LogisticTask(data="set").load(Setting(clients=1, data_dir=tmp_path))
    assert problem.oracle(0).signs.tolist() == [1, -1, 1]
    assert problem.oracle(0, flipped=True).signs.tolist() == [-1, 1, -1]


@pytest.mark.parametrize(
    ("text", "options", "word"),
    [
        ("1 1:1\n1 1:2\n", {}, "1 different labels (1)"),
        ("1 1:1\n2 1:2\n3 1:1\n", {}, "3 different labels (1, 2, 3)"),
        ("1 1:1\n2 9:2\n", {"features": 8}, "features = 8"),
        ("1\n2\n", {}, "all samples are empty"),
        ("1 1:1\n2 1:2\n", {"partition": "iid"}, "2 samples for 3 workers"),
    ],
)
def test_data_that_do_not_fit_are_refused(tmp_path: Path, text: str, options: dict[str, object], word: str) -> None:
    file_of(tmp_path, text)
    with pytest.raises(TaskError) as error:
        LogisticTask(data="set", **options).load(Setting(clients=3, data_dir=tmp_path))  # type: ignore[arg-type]  # several types
    assert word in str(error.value)


def test_features_widens_the_model_and_rows_are_scaled(tmp_path: Path) -> None:
    file_of(tmp_path, "1 1:3 2:4\n-1 3:0\n-1 1:1e-200\n")
    problem = LogisticTask(data="set", features=5).load(Setting(clients=1, data_dir=tmp_path))
    assert problem.dim == 5
    columns = np.array([problem.oracle(0).matrix.times(e) for e in np.eye(5)])
    np.testing.assert_allclose(columns.T, [[0.6, 0.8, 0, 0, 0], [0.0] * 5, [1.0, 0, 0, 0, 0]], rtol=1e-15)


def test_values_beyond_the_range_of_the_dtype_are_refused(tmp_path: Path) -> None:
    file_of(tmp_path, "1 1:1\n-1 1:2 3:1e39\n")
    setting = Setting(clients=1, data_dir=tmp_path)
    with pytest.raises(TaskError, match=r"sample 2 has the entry 3:1e\+39, beyond the range of float32"):
        LogisticTask(data="set", dtype="float32", normalise=False).load(setting)
    LogisticTask(data="set", dtype="float32").load(setting)
    LogisticTask(data="set", normalise=False).load(setting)


# --- digits ---


def test_the_digits_are_scikit_learns_read_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, labels = read_digits()
    monkeypatch.setattr("tasks.digits.find_spec", lambda name: None)
    slow_pixels, slow_labels = read_digits()
    assert np.array_equal(pixels, slow_pixels)
    assert np.array_equal(labels, slow_labels)
    code = "import sys; from tasks.digits import read_digits; read_digits(); sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=False).returncode == 0


@pytest.mark.parametrize(("model", "dim"), [("softmax", 650), ("mlp", 2410)])
def test_digits_learn(model: str, dim: int) -> None:
    problem = DigitsTask(model=model).load(Setting(clients=10, byzantine=3, seed=1))  # type: ignore[arg-type]  # a Literal
    assert problem.dim == dim
    assert problem.dtype == np.float32
    assert problem.smoothness is None
    assert problem.optimum is None
    x, rng = problem.initial(), np.random.default_rng(0)
    before = problem.evaluate(x)
    for _ in range(200):
        gradients = [problem.oracle(worker).minibatch_gradients([x], 32, rng)[0] for worker in range(7)]
        x = x - np.float32(0.5) * np.mean(gradients, axis=0)
    after = problem.evaluate(x)
    assert x.dtype == np.float32
    assert accuracy(before) < 0.3
    assert accuracy(after) > 0.9
    assert after.loss < before.loss / 4


def test_the_split_of_the_digits_is_stratified_and_fixed_by_the_seed() -> None:
    problems = [DigitsTask().load(Setting(clients=4, seed=seed)) for seed in (1, 1, 2)]
    same, again, other = ([problem.oracle(worker) for worker in range(4)] for problem in problems)
    for a, b in zip(same, again, strict=True):
        assert np.array_equal(a.inputs, b.inputs)
        assert np.array_equal(a.labels, b.labels)
    assert not np.array_equal(same[0].labels, other[0].labels)
    counts = np.bincount(np.concatenate([oracle.labels for oracle in same]))
    assert counts.tolist() == [142, 146, 142, 146, 145, 146, 145, 143, 139, 144]  # 80 % of each digit's images
    assert np.array_equal(problems[0].initial(), problems[1].initial())
    assert not np.array_equal(problems[0].initial(), problems[2].initial())
    assert same[0].inputs.max() == 1


def test_digits_flip_to_nine_minus_the_label_and_oracles_are_shared() -> None:
    problem = DigitsTask(partition="replicated").load(Setting(clients=3))
    assert problem.oracle(0) is problem.oracle(2)
    assert np.array_equal(problem.oracle(1, flipped=True).labels, 9 - problem.oracle(1).labels)


def test_the_objective_of_the_digits_is_the_mean_of_the_honest_workers_losses() -> None:
    problem = DigitsTask(partition="label", l2=0.1).load(Setting(clients=5, byzantine=2))
    x = problem.initial()
    assert problem.evaluate(x).loss == pytest.approx(np.mean([problem.oracle(worker).value(x) for worker in range(3)]))


def test_more_workers_than_digits_are_refused() -> None:
    with pytest.raises(TaskError, match="1438 samples for 2000 workers"):
        DigitsTask().load(Setting(clients=2000))


@pytest.mark.parametrize("model", ["softmax", "mlp"])
def test_gradient_of_the_digits_agrees_with_finite_differences(model: str) -> None:
    task = DigitsTask(model=model, hidden=3, dtype="float64", l2=0.1)  # type: ignore[arg-type]  # a Literal
    problem = task.load(Setting(clients=20, seed=2))
    oracle, x = problem.oracle(1), 3 * problem.initial()
    gradient = oracle.full_gradient(x)
    for j in [*range(30, problem.dim, 17), problem.dim - 1]:
        e = np.zeros_like(x)
        e[j] = 1e-6
        slope = (oracle.value(x + e) - oracle.value(x - e)) / 2e-6
        assert gradient[j] == pytest.approx(slope, abs=1e-8)
    rows = [
        oracle.network.gradient(x, oracle.inputs[k : k + 1], oracle.labels[k : k + 1])
        for k in range(len(oracle.labels))
    ]
    np.testing.assert_allclose(gradient, np.mean(rows, axis=0) + 0.1 * x, rtol=1e-10, atol=1e-14)
    (everything,) = oracle.minibatch_gradients([x], 10**6, np.random.default_rng(0))
    assert np.array_equal(everything, gradient)


def test_a_tiny_network_by_hand() -> None:
    network = Network((1, 1, 2))
    x = np.array([2.0, -1.0, 1.0, -1.0, 0.0, 0.5])  # h = relu(2a - 1); scores (h, -h + 0.5)
    assert network.dim == 6
    assert network.scores(x, np.array([[3.0], [0.0]])).tolist() == [[5.0, -4.5], [0.0, 0.5]]
    # a = 0: h = 0 and its ReLU is shut, so only the last offsets move: softmax(0, 0.5) - (1, 0)
    share = 1 / (1 + np.exp(-0.5))
    gradient = network.gradient(x, np.array([[0.0]]), np.array([0]))
    np.testing.assert_allclose(gradient, [0, 0, 0, 0, -share, share], atol=1e-16)
    np.testing.assert_allclose(network.losses(x, np.array([[0.0]]), np.array([0])), [-np.log(1 - share)])


def test_a_destroyed_network_gives_no_numbers_and_no_warnings() -> None:
    problem = DigitsTask().load(Setting(clients=2))
    for value in (np.inf, np.nan, 3e38):
        x = np.full(problem.dim, value, dtype=np.float32)
        x[::2] *= -1
        evaluation = problem.evaluate(x)
        assert not np.isfinite(evaluation.loss)
        assert 0 <= accuracy(evaluation) < 0.2
        assert problem.oracle(0).full_gradient(x).shape == (problem.dim,)


# --- MNIST ---


def write_mnist(folder: Path, train: int = 30, test: int = 12, *, packed: bool = True) -> None:
    rng = np.random.default_rng(0)
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, shape, top in zip(
        FILES, ((train, 28, 28), (train,), (test, 28, 28), (test,)), (256, 10) * 2, strict=True
    ):
        header = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes()
        content = header + rng.integers(top, size=shape, dtype=np.uint8).tobytes()
        (raw / (name + ".gz" * packed)).write_bytes(gzip.compress(content) if packed else content)


@needs_torch
@pytest.mark.parametrize(("model", "dim"), [("mlp", 50890), ("cnn", 11830), ("resnet8", 75002)])
def test_mnist_gradients(tmp_path: Path, model: str, dim: int) -> None:
    write_mnist(tmp_path, packed=model == "mlp")
    setting = Setting(clients=3, byzantine=1, data_dir=tmp_path)
    problem = MnistTask(model=model, dtype="float64", l2=0.1).load(setting)  # type: ignore[arg-type]  # a Literal
    assert problem.dim == dim
    x = problem.initial()
    gradient = np.mean([problem.oracle(worker).full_gradient(x) for worker in range(2)], axis=0)
    direction = np.random.default_rng(1).normal(size=dim)
    e = 1e-7 * direction
    slope = (problem.evaluate(x + e).loss - problem.evaluate(x - e).loss) / 2e-7
    assert gradient @ direction == pytest.approx(slope, rel=1e-5)
    assert 0 <= accuracy(problem.evaluate(x)) <= 1
    flipped = problem.oracle(0, flipped=True).full_gradient(x)
    assert not np.array_equal(flipped, problem.oracle(0).full_gradient(x))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["MNIST"]  # nothing written


@needs_torch
def test_mnist_may_use_fewer_images(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    with pytest.raises(TaskError, match="5 samples for 6 workers"):
        MnistTask(train_limit=5).load(Setting(clients=6, data_dir=tmp_path))


@pytest.mark.parametrize(
    "content", [b"", b"\0\0\x08", b"\0\0\x08\x03\0\0", b"\0\0\x0d\x01\0\0\0\0", b"\0\0\x08\x01\0\0\0\x05abc"]
)
def test_a_broken_mnist_file_is_refused(tmp_path: Path, content: bytes) -> None:
    write_mnist(tmp_path, packed=False)
    (tmp_path / "MNIST" / "raw" / FILES[1]).write_bytes(content)
    with pytest.raises(TaskError, match=r"train-labels.*copy it again"):
        MnistTask().load(Setting(clients=2, data_dir=tmp_path))


def test_mnist_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path, packed=False)
    raw = tmp_path / "MNIST" / "raw"
    (raw / FILES[1]).write_bytes((raw / FILES[3]).read_bytes())
    with pytest.raises(TaskError, match=r"\(30, 28, 28\).*\(12,\)"):
        MnistTask().load(Setting(clients=2, data_dir=tmp_path))
    (raw / FILES[1]).write_bytes(b"\0\0\x08\x01\0\0\0\x1e" + bytes(29) + b"\x0a")
    with pytest.raises(TaskError, match=r"labels of shape .* up to 10; must be"):
        MnistTask().load(Setting(clients=2, data_dir=tmp_path))


def fake_torchvision(monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> None:
    """Stand in for torchvision, whose import takes seconds and whose download needs the internet."""

    def download(root: str, *, download: bool) -> None:
        assert download
        if error is not None:
            raise error
        write_mnist(Path(root), packed=False)

    datasets = ModuleType("torchvision.datasets")
    datasets.MNIST = download  # type: ignore[attr-defined]  # a stand-in
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)


@needs_torch
def test_mnist_is_downloaded_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_torchvision(monkeypatch, None)
    problem: Problem = MnistTask().load(Setting(clients=2, data_dir=tmp_path))
    assert problem.dim == 50890
    assert sorted(path.name for path in (tmp_path / "MNIST" / "raw").iterdir()) == sorted(FILES)
    assert [path.name for path in tmp_path.iterdir()] == ["MNIST"]  # and nothing left over


def test_a_failed_download_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_torchvision(monkeypatch, RuntimeError("Error downloading\nhere is more"))
    with pytest.raises(TaskError, match=r"download failed \(Error downloading\); .*--data FOLDER"):
        MnistTask().load(Setting(clients=2, data_dir=tmp_path))
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(TaskError, match=r"torchvision is missing.*make setup"):
        MnistTask().load(Setting(clients=2, data_dir=tmp_path))
    with pytest.raises(TaskError, match="cannot be written to"):
        MnistTask().load(Setting(clients=2, data_dir=tmp_path / "absent"))


@needs_torch
def test_real_mnist_is_read(data_dir: Path) -> None:
    problem = MnistTask(train_limit=2000, partition="dirichlet(5)").load(Setting(clients=10, data_dir=data_dir))
    x, rng = problem.initial(), np.random.default_rng(0)
    for _ in range(60):
        gradients = [problem.oracle(worker).minibatch_gradients([x], 32, rng)[0] for worker in range(10)]
        x = x - np.float32(0.1) * np.mean(gradients, axis=0)
    assert accuracy(problem.evaluate(x)) > 0.8


def test_the_samples_of_a_client_are_the_honest_mean() -> None:
    assert mean_samples([range(3), range(6), range(100)], 2) == 4  # 4.5 rounds to even
    assert mean_samples([range(0)], 1) == 1
    iid = DigitsTask(model="softmax", partition="iid").load(Setting(clients=7))
    replicated = DigitsTask(model="softmax", partition="replicated").load(Setting(clients=7))
    assert abs(7 * iid.samples - replicated.samples) <= 7
