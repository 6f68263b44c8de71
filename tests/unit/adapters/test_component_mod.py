"""The mod on its own: what it lets through, what it makes of an app's model, and what it says to an app that errs."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any, get_args

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from adapters import orders
from adapters.federated_averaging import DeltaCodec
from adapters.mods import robust_deltas_mod
from adapters.named_arrays import ArrayLayout
from experiment.config import CompressorUnion
from foundation.errors import ConfigError, WireError
from link import codec
from strategies.compressors import QSGD, Identity, Masked, Natural, PermK, RandK, TopK
from strategies.method import Ask, Compressor, Packet, Vector
from tests.component_grid import AppGrid

X = np.array([1.0, -2.0, 3.0, 4.0], np.float32)
NODE = 7

Train = Callable[[Message, Context], Message]


def model(x: Vector) -> ArrayRecord:
    return ArrayRecord({"b": Array(x[:2]), "w": Array(x[2:].reshape(1, 2))})


def vector(arrays: ArrayRecord) -> Vector:
    return np.concatenate([array.ravel() for array in arrays.to_numpy_ndarrays()])


DENSE = Identity()
LAYOUT = ArrayLayout.of(model(X))


def half(message: Message, context: Context) -> Message:
    """An ordinary app, which halves the model."""
    y = vector(message.content.array_records["arrays"]) / 2
    metrics = MetricRecord({"loss": 0.5, "num-examples": 3})
    return Message(RecordDict({"arrays": model(y), "metrics": metrics}), reply_to=message)


def app(train: Train = half, mods: Sequence[Any] = (robust_deltas_mod,)) -> ClientApp:
    made = ClientApp(mods=list(mods))
    made.train()(train)
    return made


def instruction(form: Compressor = DENSE, seed: int | None = None, **order: Any) -> RecordDict:
    content = DeltaCodec(LAYOUT, "", form, "arrays").write_ask(Ask(5, "gradient", {"x": X}, seed=seed))
    content["ask"] = ConfigRecord({**content.config_records["ask"], "worker": 1, "draw": 2**64 - 1, **order})
    content["config"] = ConfigRecord({"server-round": 5})
    return content


def tell(client: ClientApp, content: RecordDict, kind: str = "train") -> Message:
    grid = AppGrid({NODE: client})
    (name,) = grid.push_messages([Message(content, NODE, kind)])
    (reply,) = grid.pull_messages([name])
    return reply


def read(reply: Message, form: Compressor = DENSE) -> Packet:
    packet = codec.read_reply(reply, Ask(5, "gradient", {}), form, X)
    assert isinstance(packet, Packet), packet
    return packet


def test_the_reply_is_what_was_sent_minus_what_the_app_returned() -> None:
    assert read(tell(app(), instruction())).values.tolist() == [0.5, -1.0, 1.5, 2.0]


def test_it_works_on_a_function_too() -> None:
    client = ClientApp()
    client.train(mods=[robust_deltas_mod])(half)
    assert read(tell(client, instruction())).values.tolist() == [0.5, -1.0, 1.5, 2.0]


@pytest.mark.parametrize(
    ("form", "seed"),
    [(RandK(k=2), None), (QSGD(levels=3), None), (Natural(), None), (Masked(k=2), 9), (PermK(parts=3), 9)],
)
def test_it_compresses_as_the_instruction_says(form: Compressor, seed: int | None) -> None:
    got = read(tell(app(), instruction(form, seed)), form.of_round(seed, 1))
    expected = form.of_round(seed, 1).compress(X / 2, np.random.default_rng(2**64 - 1))
    assert got.values.tobytes() == expected.values.tobytes()
    assert (got.seed, got.scale) == (expected.seed, expected.scale)


def test_the_app_sees_the_instruction_of_fedavg() -> None:
    seen: list[RecordDict] = []

    def look(message: Message, context: Context) -> Message:
        seen.append(message.content)
        return half(message, context)

    tell(app(look), instruction())
    assert set(seen[0]) == {"arrays", "config"}
    assert dict(seen[0].config_records["config"]) == {"server-round": 5}
    assert [array.shape for array in seen[0].array_records["arrays"].to_numpy_ndarrays()] == [(2,), (1, 2)]
    assert list(seen[0].array_records["arrays"]) == ["b", "w"]


def test_an_app_may_consume_what_it_is_sent_and_name_its_reply_as_it_likes() -> None:
    def consume(message: Message, context: Context) -> Message:
        arrays = message.content.array_records["arrays"]
        b, w = arrays.to_numpy_ndarrays(keep_input=False)
        return Message(RecordDict({"mine": model(np.concatenate([b, w.ravel()]) / 2)}), reply_to=message)

    assert read(tell(app(consume), instruction())).values.tolist() == [0.5, -1.0, 1.5, 2.0]


def test_other_mods_work_on_the_apps_own_messages() -> None:
    def clip(message: Message, context: Context, call_next: Train) -> Message:
        reply = call_next(message, context)
        y = np.maximum(vector(reply.content.array_records["arrays"]), 0)
        reply.content["arrays"] = model(y)
        return reply

    values = read(tell(app(mods=[robust_deltas_mod, clip]), instruction())).values
    assert values.tolist() == [0.5, -2.0, 1.5, 2.0]


@pytest.mark.parametrize("kind", ["train", "train.other", "evaluate", "query"])
def test_other_instructions_pass_through(kind: str) -> None:
    client = ClientApp(mods=[robust_deltas_mod])
    for register in (client.train(), client.train("other"), client.evaluate(), client.query()):
        register(half)
    reply = tell(client, RecordDict({"arrays": model(X), "ask": ConfigRecord({"kind": "mine"})}), kind)
    assert vector(reply.content.array_records["arrays"]).tolist() == (X / 2).tolist()


def content(**records: Any) -> Train:
    return lambda message, context: Message(RecordDict(records), reply_to=message)


@pytest.mark.parametrize(
    ("train", "reason"),
    [
        (content(), "the ClientApp's reply holds 0 array records, expected one, named 'arrays'"),
        (content(a=model(X), b=model(X)), "the ClientApp's reply holds 2 array records"),
        (content(arrays=ArrayRecord({"b": Array(X[:2])})), "the model lacks 'w'"),
        (content(arrays=ArrayRecord({"b": Array(X[:2]), "w": Array(X[2:])})), "array 'w' has shape (2,), expected"),
        (content(arrays=model(X * np.float32(np.nan))), "array 'b' is not finite"),
        (content(arrays=model(np.array([-3e38] * 4, np.float32))), "out of the range of float32"),
    ],
)
def test_an_app_that_errs_is_told_so(train: Train, reason: str) -> None:
    x = np.full(4, 3e38, np.float32) if "range" in reason else X
    told = {**instruction(), "arrays": model(x)}
    reply = tell(app(train), RecordDict(told))
    assert reply.has_error()
    assert str(reply.error.reason).startswith("robust_deltas_mod: what the ClientApp returned cannot be used: ")
    assert reason in str(reply.error.reason)


def test_an_error_of_the_app_stays_its_own() -> None:
    def fail(message: Message, context: Context) -> Message:
        raise ConfigError("no data")

    assert tell(app(fail), instruction()).error.reason == f"{ConfigError}:<ConfigError('no data')>"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"worker": -1}, "no integer from 0"),
        ({"draw": True}, "no integer from 0"),
        ({"round": "5"}, "no integer from 0"),
        ({"seed": 2.0}, "no integer from 0"),
        ({"arrays": 3}, "names no compressor"),
        ({"compressor": 3}, "names no compressor"),
        ({"compressor": "{"}, "no compressor: JSONDecodeError"),
        ({"compressor": '{"kind": "os.system"}'}, "no compressor: KeyError: 'os.system'"),
        ({"compressor": '{"kind": "rand-k", "j": 3}'}, "no compressor: TypeError"),
        ({"compressor": '{"kind": "rand-k"}'}, "no compressor: ValueError: k = None"),
        ({"compressor": '"rand-k"'}, "no compressor: TypeError"),
        ({"compressor": "[" * 100_000}, "no compressor: RecursionError"),
    ],
)
def test_an_instruction_that_cannot_be_read(change: dict[str, Any], reason: str) -> None:
    reply = tell(app(), instruction(**change))
    assert str(reply.error.reason).startswith("robust_deltas_mod: instruction: undecodable: ")
    assert reason in str(reply.error.reason)


def test_an_instruction_without_its_model() -> None:
    told = instruction()
    del told["arrays"]
    assert "the instruction holds 0 array records" in str(tell(app(), told).error.reason)


def test_a_compressor_that_does_not_fit_the_model() -> None:
    assert "k = 5: must be at most d = 4" in str(tell(app(), instruction(RandK(k=5))).error.reason)


def test_compressors_as_text() -> None:
    for form in (RandK(k=3, values="float16"), Masked(ratio=0.5), QSGD(levels=2), PermK(parts=4), TopK(k=1)):
        assert orders.read(orders.write(form)) == form
    with pytest.raises(ConfigError, match=r"Own: must be one of .*: qsgd, identity"):
        orders.write(type("Own", (), {"kind": "identity"})())
    with pytest.raises(WireError):
        orders.read("null")


def test_a_mod_knows_the_compressors_that_a_config_knows() -> None:
    assert set(orders.COMPRESSORS.values()) == set(get_args(get_args(CompressorUnion)[0]))


def test_the_mod_is_light_to_import() -> None:
    heavy = {
        "torch",
        "scipy",
        "sklearn",
        "numba",
        "matplotlib",
        "pydantic",
        "experiment.config",
        "strategies.aggregators",
    }
    code = (
        "import sys, flwr.clientapp; before = set(sys.modules); import adapters.mods;"
        f"print(({heavy!r} & set(sys.modules)) - before)"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_draw_is_a_seed_and_no_more() -> None:
    one, other = (read(tell(app(), instruction(RandK(k=2), draw=draw)), RandK(k=2)) for draw in (1, 2))
    assert one.seed != other.seed
