"""RobustFedAvg and AppStrategy in a Flower app of somebody else's, on a grid of this process."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from adapters.answers import answer
from adapters.app_strategy import AppStrategy
from adapters.federated_averaging import RobustFedAvg
from adapters.mods import robust_deltas_mod
from foundation.errors import ConfigError
from link import worker_state
from strategies.aggregators import CoordinateMedian, Krum, Mean, TrimmedMean
from strategies.byz_ef21 import ByzEF21
from strategies.byz_vr_marina_pp import ByzVRMarinaPP
from strategies.cohorts import sample
from strategies.compressors import Identity, PermK, RandK, TopK
from strategies.method import STATELESS, Method, Oracle, StateLostError, Vector, WorkerState
from strategies.randomness import Role, stream
from strategies.robust_averaging import RobustAveraging
from strategies.strategy import NoClientsError, NoReplyCountsError, RoundRecord, StalledError
from tests.component_grid import LOST, AppGrid

N, F = 5, 2
NODES = [2**63 + 11, 40, 30, 2**64 - 1, 50]  # as a SuperLink draws them; the roster seats them in ascending order
SEATED = sorted(NODES)
X0 = np.array([4.0, -3.0, 2.0, 1.0, 0.5, -0.5])
CENTRES = np.random.default_rng(0).normal(size=(N, 6))

Train = Callable[[Message, Context], Message]


def model(x: Vector) -> ArrayRecord:
    return ArrayRecord({"w": Array(x[2:].reshape(2, 2)), "b": Array(x[:2]), "steps": Array(np.array(3))})


def vector(arrays: ArrayRecord) -> Vector:
    named = {name: array.numpy() for name, array in arrays.items()}
    return np.concatenate([named["b"].ravel(), named["w"].ravel()])


class Pull:
    """Half of the squared distance to a point; ``full_gradient`` is a fifth of its gradient, as is the app's step."""

    dim = 6

    def __init__(self, centre: Vector) -> None:
        self.centre = centre

    def full_gradient(self, x: Vector) -> Vector:
        return x - (x - 0.2 * (x - self.centre))

    def minibatch_gradients(self, points: Sequence[Vector], batch: int, rng: np.random.Generator) -> list[Vector]:
        noise = rng.normal(size=6)
        return [self.full_gradient(x) + noise for x in points]


LOSS = {node: Pull(centre) for node, centre in zip(SEATED, CENTRES, strict=True)}


def ordinary(message: Message, context: Context) -> Message:
    """A ClientApp as it is written for FedAvg: a step towards its own centre."""
    x = vector(message.content.array_records["arrays"])
    y = x - 0.2 * (x - LOSS[context.node_id].centre)
    metrics = MetricRecord({"num-examples": 10})
    return Message(RecordDict({"arrays": model(y), "metrics": metrics}), reply_to=message)


def bad(message: Message, context: Context) -> Message:
    """A Byzantine one, which the mod serves as it serves all."""
    return Message(RecordDict({"arrays": model(np.full(6, -1e6))}), reply_to=message)


def app(train: Train = ordinary, *mods: Any) -> ClientApp:
    made = ClientApp(mods=list(mods))
    made.train()(train)
    return made


def grid(byzantine: Mapping[int, ClientApp | str] | None = None, train: Train = ordinary) -> AppGrid:
    """A grid of N nodes; ``byzantine`` says by seat who runs something else."""
    own = {SEATED[seat]: client for seat, client in (byzantine or {}).items()}
    return AppGrid({node: own.get(node, app(train, robust_deltas_mod)) for node in NODES})


def strategy(**options: Any) -> RobustFedAvg:
    quick = {"seed": 1, "join_timeout_s": 0.05, "fraction_evaluate": 0.0}
    return RobustFedAvg(**{"clients": N, "byzantine": F, **quick, **options})


def plain_loop(
    method: Method, oracles: Sequence[Oracle], rounds: int, seed: int, lose: tuple[int, int] | None = None
) -> Vector:
    """The same run as one loop. ``lose``: (round, worker) before which a worker's state is lost."""
    state, workers = method.start(X0), [STATELESS] * len(oracles)
    for k in range(1, rounds + 1):
        ask = method.ask(state, stream(seed, Role.COIN, round_=k))
        cohort = sample(N, ask.sample, range(N), stream(seed, Role.COHORT, round_=k))
        ask = replace(ask, cohort=tuple(cohort))
        replies = {}
        for i in cohort:
            if lose == (k, i):
                workers[i] = STATELESS
            told = replace(ask, vectors={**ask.vectors, **method.resync(state, i)}, cohort=None)
            draw = np.random.default_rng(int(stream(seed, Role.WORKER, i, k).bit_generator.random_raw()))
            try:
                workers[i], packet = method.reply(i, workers[i], told, oracles[i], draw)
            except StateLostError:
                continue
            if method.accepts_version(state, i, packet.version):
                replies[i] = method.compressor_for(ask, i).decompress(packet, state.x.dtype)
        state = method.update(state, ask, replies, stream(seed, Role.AGGREGATE, round_=k))
    x: Vector = state.x
    return x


# --- RobustFedAvg -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "rule", "alpha", "cohorts"),
    [
        (Identity(), CoordinateMedian(), 2.0, [5, 3, 3]),
        (RandK(k=3), CoordinateMedian(), "auto", [5, 5, 3]),
        (PermK(), Mean(), 2.0, [5, 3, 3]),
    ],
)
def test_an_ordinary_app_runs_the_method_bit_for_bit(form: Any, rule: Any, alpha: Any, cohorts: list[int]) -> None:
    records: list[RoundRecord] = []
    options = {"compressor": form, "aggregator": rule, "alpha": alpha, "on_round": records.append}
    result = strategy(fraction_train=0.6, **options).start(grid(), model(X0), 30)
    form = PermK(parts=N) if isinstance(form, PermK) else form
    method = RobustAveraging(n=N, f=F, gamma=1.0, cohort=3, aggregator=rule, compressor=form, alpha=alpha)
    x = plain_loop(method, [LOSS[node] for node in SEATED], 30, 1)
    assert vector(result.arrays).tobytes() == x.tobytes()
    assert [len(record.cohort) for record in records[:3]] == cohorts, "the opening rounds ask all"
    assert all(not record.rejected for record in records)


def test_the_mean_without_clipping_is_fedavg() -> None:
    ours = strategy(byzantine=0, aggregator=Mean(), alpha=float("inf")).start(grid(), model(X0), 5)
    x = X0
    for _ in range(5):
        x = np.mean([x - 0.2 * (x - centre) for centre in CENTRES], axis=0)
    np.testing.assert_allclose(vector(ours.arrays), x, rtol=1e-12)


def test_the_model_comes_back_as_it_was_given() -> None:
    arrays = strategy().start(grid(), model(X0), 1).arrays
    assert list(arrays) == ["w", "b", "steps"]
    assert [array.shape for array in arrays.to_numpy_ndarrays()] == [(2, 2), (2,), ()]
    assert arrays["steps"].numpy() == 3


def test_what_the_app_is_told() -> None:
    nodes = grid()
    strategy(fraction_train=0.4, deadline_s=9.0).start(nodes, model(X0), 3, 7.0, ConfigRecord({"lr": 0.1}))
    assert [len(batch) for batch in nodes.pushed] == [5, 2, 2]
    for k, batch in enumerate(nodes.pushed, 1):
        for message in batch:
            assert set(message.content) == {"arrays", "ask", "config"}
            assert dict(message.content.config_records["config"]) == {"lr": 0.1, "server-round": k}
            assert (message.metadata.ttl, message.metadata.message_type) == (7.0, "train")
        assert len({id(message.content["arrays"]) for message in batch}) == 1, "the model is one object for all"
        draws = {message.content.config_records["ask"]["draw"] for message in batch}
        assert len(draws) == len(batch)
    assert len(nodes.pushed[0][0].content.array_records) == 1, "and travels once"


def test_byzantine_nodes_break_fedavg_and_not_this() -> None:
    byzantine = {3: app(bad, robust_deltas_mod)}
    goal = CENTRES[[0, 1, 2, 4]].mean(axis=0)
    x = vector(strategy(byzantine=1, fraction_train=0.6).start(grid(byzantine), model(X0), 60).arrays)
    assert np.linalg.norm(x - goal) < 0.5 * np.linalg.norm(X0 - goal)
    naive = strategy(byzantine=0, aggregator=Mean(), alpha=float("inf")).start(grid(byzantine), model(X0), 3)
    assert np.linalg.norm(vector(naive.arrays)) > 1e5


def test_evaluation_before_and_after_each_round() -> None:
    seen: list[tuple[int, list[str]]] = []

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        seen.append((server_round, list(arrays)))
        return MetricRecord({"norm": float(np.linalg.norm(vector(arrays)))}) if server_round != 2 else None

    result = strategy().start(grid(), model(X0), 3, evaluate_fn=evaluate)
    assert seen == [(k, ["w", "b", "steps"]) for k in range(4)]
    assert list(result.evaluate_metrics_serverapp) == [0, 1, 3]
    assert result.evaluate_metrics_serverapp[0]["norm"] == pytest.approx(np.linalg.norm(X0))
    assert not result.train_metrics_clientapp


def test_clients_are_not_asked_to_evaluate(caplog: pytest.LogCaptureFixture) -> None:
    nodes = grid()
    with caplog.at_level(logging.WARNING, "flwr.breakwater"):
        strategy().start(nodes, model(X0), 1, evaluate_config=ConfigRecord({"a": 1}))
    assert {message.metadata.message_type for batch in nodes.pushed for message in batch} == {"train"}
    assert "evaluate_config is not used" in caplog.text


def test_every_start_is_a_first_one() -> None:
    one = strategy()
    first, second = (vector(one.start(grid(), model(X0), 4).arrays) for _ in range(2))
    assert first.tobytes() == second.tobytes()


def test_the_loop_of_flower_drives_it_too() -> None:
    """A user's subclass, or one of Flower's wrappers, calls the two halves itself."""
    nodes, one, arrays, config = grid(), strategy(fraction_train=0.4), model(X0), ConfigRecord()
    for k in range(1, 6):
        ids = nodes.push_messages(one.configure_train(k, arrays, config, nodes))
        got, metrics = one.aggregate_train(k, nodes.pull_messages(ids))
        assert got is not None
        assert metrics is not None
        arrays = got
    other = strategy(fraction_train=0.4).start(grid(), model(X0), 5)
    assert vector(arrays).tobytes() == vector(other.arrays).tobytes()


def test_without_a_seed_nobody_knows_who_will_be_sampled() -> None:
    assert strategy(seed=None).seed != strategy(seed=None).seed


# --- what goes wrong ----------------------------------------------------------------------------------------------


def test_an_app_without_the_mod_is_told_at_once(caplog: pytest.LogCaptureFixture) -> None:
    nodes = AppGrid({node: app() for node in NODES})
    with pytest.raises(NoReplyCountsError) as error:
        strategy().start(nodes, model(X0), 3)
    assert str(error.value) == (
        "round 1: no reply has counted yet, and 5 clients replied, of which 2 may be Byzantine: it is their ClientApp. "
        f"worker 0 (node {SEATED[0]}): undecodable: no packet in the reply; is breakwater.robust_deltas_mod on its "
        "ClientApp?"
    )
    assert len(nodes.pushed) == 1
    assert f"worker 4 (node {SEATED[4]}) rejected: undecodable: no packet in the reply" in caplog.text


def test_nodes_that_are_lost_are_not_taken_for_the_reason() -> None:
    with pytest.raises(NoReplyCountsError, match=r"4 clients replied, .* worker 1 .* no packet in the reply"):
        strategy().start(grid({0: LOST} | {i: app() for i in range(1, N)}), model(X0), 1)


def test_nodes_without_the_mod_among_others_stop_nothing() -> None:
    records: list[RoundRecord] = []
    strategy(on_round=records.append).start(grid({0: app(), 1: app()}), model(X0), 2)
    assert [record.accepted for record in records] == [[2, 3, 4]] * 2
    assert {reason.partition(";")[0] for _, reason in records[0].rejected} == {"undecodable: no packet in the reply"}


def test_as_many_wrong_replies_as_may_be_byzantine_prove_nothing() -> None:
    records: list[RoundRecord] = []
    nodes = grid({0: app(), 1: app(), 2: LOST, 3: LOST, 4: LOST})
    with pytest.raises(StalledError, match="0 of the 5 connected clients answered"):  # and not NoReplyCountsError
        strategy(on_round=records.append).start(nodes, model(X0), 3)
    assert [record.accepted for record in records] == [[]] * 2
    assert records[0].note == "no quorum: 0 usable replies of the 3 that an opening round needs; x stays"
    assert records[0].rejected[2] == (f"worker 2 (node {SEATED[2]})", "error: Node Unavailable")


def test_one_wrong_reply_of_honest_clients_proves_nothing() -> None:
    nodes = grid({0: app(), 1: LOST, 2: LOST, 3: LOST, 4: LOST})
    with pytest.raises(StalledError):
        strategy(byzantine=0).start(nodes, model(X0), 1)


def test_the_reason_of_the_mod_reaches_the_log(caplog: pytest.LogCaptureFixture) -> None:
    def forgetful(message: Message, context: Context) -> Message:
        return Message(RecordDict({"arrays": ArrayRecord({"b": Array(X0[:2])})}), reply_to=message)

    strategy().start(grid({1: app(forgetful, robust_deltas_mod)}), model(X0), 1)
    assert (
        f"round 1: worker 1 (node {SEATED[1]}) rejected: error: robust_deltas_mod: what the ClientApp returned "
        "cannot be used: the model lacks 'w'"
    ) in caplog.text


def test_an_opening_round_needs_its_quorum() -> None:
    records: list[RoundRecord] = []
    nodes = grid()

    def come_and_go(record: RoundRecord) -> None:
        records.append(record)
        nodes.offline = set(SEATED[:3]) if record.round == 1 else set()

    strategy(byzantine=1, alpha="auto", on_round=come_and_go).start(nodes, model(X0), 4)
    assert [len(record.accepted) for record in records] == [5, 2, 5, 5]
    assert records[1].note == "no quorum: 2 usable replies of the 3 that an opening round needs; x stays"
    assert records[2].step_norm == 0
    assert [record.lam is None for record in records] == [True, True, False, False]


def test_a_run_in_which_all_apps_fail_later_ends_with_the_last_model_that_counted() -> None:
    def failing(message: Message, context: Context) -> Message:
        if int(str(message.content.config_records["config"]["server-round"])) > 4:
            raise RuntimeError("out of memory")
        return ordinary(message, context)

    records: list[RoundRecord] = []
    with pytest.raises(StalledError, match="out of memory") as stalled:
        strategy(on_round=records.append).start(grid(train=failing), model(X0), 60)
    assert [len(record.accepted) for record in records] == [5, 5, 5, 5, 0, 0]
    assert stalled.value.round == 4
    healthy = strategy().start(grid(), model(X0), 4)
    assert vector(stalled.value.arrays).tobytes() == vector(healthy.arrays).tobytes()
    assert set(stalled.value.arrays) == set(model(X0)), "under the names that the app knows"


def test_too_few_nodes() -> None:
    nodes = grid()
    nodes.offline = set(SEATED[:3])
    with pytest.raises(NoClientsError, match=r"2 of 5 clients came within 0.05 s, and 3 are needed"):
        strategy().start(nodes, model(X0), 1)
    assert strategy(byzantine=0, min_available_nodes=2).start(nodes, model(X0), 1).arrays
    with pytest.raises(ConfigError, match=r"min_available_nodes = 2: must be byzantine \+ 1 = 3 .. clients = 5"):
        strategy(min_available_nodes=2)


def test_how_often_a_cohort_has_no_honest_majority_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "flwr.breakwater"):
        strategy(fraction_train=0.6).summary()  # both Byzantine clients among 3 of 5: 3 of 10 cohorts
        strategy(fraction_train=0.4, byzantine=1).summary()  # a tie of 2: 4 of 10
        strategy().summary()
    shares = [record.getMessage() for record in caplog.records if "cohorts" in record.getMessage()]
    assert [share.partition(" of the")[0] for share in shares] == ["30 %", "40 %"]


def test_fewer_nodes_than_clients_are_said(caplog: pytest.LogCaptureFixture) -> None:
    nodes = grid()
    nodes.offline = {SEATED[0]}
    with caplog.at_level(logging.INFO, "flwr.breakwater"):
        strategy().start(nodes, model(X0), 1)
    assert "4 of 5 clients are there after 0.05 s: starting" in caplog.text
    assert "aggregate_train: Received 4 results and 0 failures" in caplog.text


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"clients": 0}, "clients = 0: must be at least 1"),
        ({"byzantine": 3}, "byzantine = 3 of clients = 5: no rule withstands half; at most 2"),
        ({"byzantine": -1}, "byzantine = -1 of clients = 5"),
        ({"fraction_train": 0.0}, "fraction_train = 0.0: must be above 0 and at most 1"),
        ({"server_learning_rate": float("nan")}, "server_learning_rate = nan: must be a positive number"),
        ({"alpha": 0.0}, "alpha = 0.0: must be a positive number"),
        ({"alpha": "learn"}, "alpha = 'learn': must be a positive number"),
        ({"deadline_s": -1.0}, "deadline_s = -1.0: must be a positive number"),
        ({"join_timeout_s": float("inf")}, "join_timeout_s = inf: must be a positive number"),
        ({"every": 0}, "every = 0: must be a positive number"),
        ({"min_available_nodes": 6}, r"min_available_nodes = 6: must be byzantine \+ 1 = 3 .. clients = 5"),
        ({"compressor": TopK(k=1)}, "compressor = top-k: biased"),
        ({"arrayrecord_key": "ask"}, "arrayrecord_key = 'ask': another record has that name"),
        ({"arrayrecord_key": "config"}, "arrayrecord_key = 'config': another record has that name"),
        ({"configrecord_key": "vectors"}, "configrecord_key = 'vectors': that record is ours"),
        ({"aggregator": Krum()}, "aggregator = krum: of 5 replies 2 may be Byzantine, and it tolerates 1"),
        (
            {"aggregator": Krum(), "byzantine": 1, "fraction_train": 0.4},
            "aggregator = krum: 2 clients in a round are too few for it",
        ),
        (
            {"aggregator": Krum(), "byzantine": 1, "fraction_train": 0.6},
            "aggregator = krum: 3 clients in a round, 1 of them silent are too few for it",
        ),
        (
            {"aggregator": TrimmedMean(), "fraction_train": 0.2, "alpha": float("inf")},
            "of 1 replies 1 may be Byzantine, and it tolerates 0; choose another rule, a larger fraction_train, or",
        ),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        strategy(**options)


@pytest.mark.parametrize(
    ("options", "arrays", "rounds", "reason"),
    [
        ({}, model(X0), 0, "num_rounds = 0: must be at least 1"),
        ({}, model(X0 * np.inf), 1, "array 'b' is not finite"),
        ({}, ArrayRecord(), 1, "no floating point numbers, in 0 arrays"),
        ({"compressor": RandK(k=7)}, model(X0), 1, "compressor: k = 7: must be at most d = 6"),
    ],
)
def test_what_cannot_start(options: dict[str, Any], arrays: ArrayRecord, rounds: int, reason: str) -> None:
    nodes = grid()
    with pytest.raises(ConfigError, match=reason):
        strategy(**options).start(nodes, arrays, rounds)
    assert not nodes.pushed


def test_the_same_app_serves_fedavg() -> None:
    nodes = grid()
    fedavg = FedAvg(fraction_evaluate=0.0)
    ids = nodes.push_messages(fedavg.configure_train(1, model(X0), ConfigRecord(), nodes))
    arrays, _ = fedavg.aggregate_train(1, nodes.pull_messages(ids))
    assert arrays is not None
    np.testing.assert_allclose(vector(arrays), X0 - 0.2 * (X0 - CENTRES.mean(axis=0)), rtol=1e-12)


# --- AppStrategy with any method ----------------------------------------------------------------------------------

MARINA = ByzVRMarinaPP(
    n=N, f=F, gamma=0.5, p=0.3, cohort=2, full_cohort=N, batch=1, alpha=2.0, aggregator=CoordinateMedian(),
    compressor=RandK(k=3),
)  # fmt: skip
EF21 = ByzEF21(n=N, f=F, gamma=0.5, aggregator=CoordinateMedian(), compressor=TopK(k=2))


def own(method: Method) -> Train:
    return lambda message, context: answer(message, context, method, LOSS[context.node_id])


def driven(method: Method, nodes: AppGrid, rounds: int, **options: Any) -> Vector:
    strategy = AppStrategy(method, clients=N, byzantine=F, seed=2, join_timeout_s=0.05, **options)
    return vector(strategy.start(nodes, model(X0), rounds).arrays)


@pytest.mark.parametrize("method", [MARINA, EF21])
def test_an_app_of_its_own_runs_a_method_bit_for_bit(method: Method) -> None:
    x = driven(method, AppGrid({node: app(own(method)) for node in NODES}), 25)
    assert x.tobytes() == plain_loop(method, [LOSS[node] for node in SEATED], 25, 2).tobytes()


def test_a_node_that_lost_its_state_is_sent_it_again() -> None:
    nodes, records = AppGrid({node: app(own(EF21)) for node in NODES}), list[RoundRecord]()

    def restart(record: RoundRecord) -> None:
        records.append(record)
        if record.round == 3:
            nodes.nodes[SEATED[1]].context.state = RecordDict()

    x = driven(EF21, nodes, 6, on_round=restart)
    assert [reason.partition(":")[0] for _, reason in records[3].rejected] == ["stale state"]
    assert records[4].resynced == [1]
    assert not records[4].rejected
    assert x.tobytes() == plain_loop(EF21, [LOSS[node] for node in SEATED], 6, 2, lose=(4, 1)).tobytes()


def test_an_app_that_does_not_answer_in_our_format() -> None:
    nodes = AppGrid({node: app(lambda message, context: Message(RecordDict(), reply_to=message)) for node in NODES})
    with pytest.raises(NoReplyCountsError, match=r"does its ClientApp reply with breakwater.answer\?"):
        driven(MARINA, nodes, 3)


def test_an_instruction_of_another_strategy() -> None:
    nodes = AppGrid({node: app(own(MARINA)) for node in NODES})
    ids = nodes.push_messages(FedAvg(fraction_evaluate=0.0).configure_train(1, model(X0), ConfigRecord(), nodes))
    (reply, *_) = nodes.pull_messages(ids)
    assert "the instruction has no 'ask'; is the server a Breakwater ServerApp?" in str(reply.error.reason)


def test_a_loss_of_another_size() -> None:
    class Short(Pull):
        dim = 5

    nodes = AppGrid({node: app(lambda m, c: answer(m, c, MARINA, Short(X0))) for node in NODES})
    with pytest.raises(NoReplyCountsError, match="a model of 6 numbers, and this loss has 5"):
        driven(MARINA, nodes, 1)


def test_a_worker_state_survives_flowers_records() -> None:
    state, records = WorkerState(7, {"g": X0, "h": X0.astype(np.float32)}), RecordDict()
    worker_state.write(records, worker_state.state_to_dict(state))
    read = worker_state.state_from_dict(worker_state.read(records))
    assert read.version == 7
    assert {name: v.tobytes() for name, v in read.vectors.items()} == {n: v.tobytes() for n, v in state.vectors.items()}
    assert worker_state.state_from_dict(worker_state.read(RecordDict())) == STATELESS


class Formed(Pull):
    """Its gradients come in another form."""

    def __init__(self, form: Callable[[Vector], Any]) -> None:
        super().__init__(CENTRES[0].astype(np.float32))
        self.form = form

    def full_gradient(self, x: Vector) -> Any:
        return self.form((0.2 * (x - self.centre)).astype(np.float32))

    def minibatch_gradients(self, points: Sequence[Vector], batch: int, rng: np.random.Generator) -> Any:
        return [self.full_gradient(x) for x in points]


def trained(loss: Oracle, compressor: Any = MARINA.compressor, on_round: Any = None) -> Vector:
    """Train a float32 model with one loss at all nodes."""
    method = replace(MARINA, compressor=compressor)
    nodes = AppGrid({node: app(lambda m, c: answer(m, c, method, loss)) for node in NODES})
    arrays = ArrayRecord({"w": Array(X0.astype(np.float32))})
    drive = AppStrategy(method, clients=N, byzantine=F, seed=1, join_timeout_s=0.05, on_round=on_round)
    x: Vector = drive.start(nodes, arrays, 6).arrays["w"].numpy()
    return x


@pytest.mark.parametrize(
    "form",
    [
        lambda g: g.astype(np.float64),
        lambda g: g[None],
        lambda g: g[:, None],
        lambda g: [float(number) for number in g],
        lambda g: np.repeat(g, 2)[::2],
        lambda g: g.astype(">f4"),
    ],
    ids=["float64", "row", "column", "list", "strided", "big-endian"],
)
@pytest.mark.parametrize("compressor", [Identity(), RandK(k=3)])
def test_a_gradient_in_another_form_is_converted(form: Callable[[Vector], Any], compressor: Any) -> None:
    x = trained(Formed(form), compressor)
    assert x.tobytes() == trained(Formed(lambda g: g), compressor).tobytes()
    assert not np.array_equal(x, X0.astype(np.float32))


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        (lambda g: g[:-1], r"wrong shape: full_gradient\(\) returned \(5,\), expected \(6,\)"),
        (lambda g: g.reshape(2, 3), r"wrong shape: full_gradient\(\) returned \(2, 3\), expected \(6,\)"),
        (lambda g: g.astype(np.int64), r"wrong type: full_gradient\(\) returned int64, expected float32"),
        (lambda g: g.astype(np.complex64), r"wrong type: full_gradient\(\) returned complex64, expected float32"),
        (lambda g: g > 0, r"wrong type: full_gradient\(\) returned bool, expected float32"),
        (lambda g: None, r"wrong type: full_gradient\(\) returned NoneType, expected float32"),
        (lambda g: [[1.0], [1.0, 2.0]], r"full_gradient\(\) returned list, which is no array: ValueError: .*"),
        (lambda g: g.astype(np.float64) * 1e300, r"full_gradient\(\) returned numbers beyond float32"),
        (lambda g: g.astype(np.float64) * np.nan, r"full_gradient\(\) returned NaN or infinity"),
        (lambda g: g * np.float32("nan"), "not finite: NaN or infinite values"),
    ],
)
def test_what_is_no_gradient_is_named(form: Callable[[Vector], Any], reason: str) -> None:
    with pytest.raises(
        NoReplyCountsError, match=rf"worker 0 \(node 30\): (error: the loss cannot be used: )?{reason}$"
    ):
        trained(Formed(form))


def test_a_minibatch_has_a_gradient_for_each_point() -> None:
    class One(Formed):
        def minibatch_gradients(self, points: Sequence[Vector], batch: int, rng: np.random.Generator) -> Any:
            return self.returned(points)

        def returned(self, points: Sequence[Vector]) -> Any:
            return [self.full_gradient(points[0])]

    class Bare(One):
        def returned(self, points: Sequence[Vector]) -> Any:
            return 3

    class Rows(One):
        def returned(self, points: Sequence[Vector]) -> Any:
            return np.stack([self.full_gradient(x) for x in points]).astype(np.float64)

    for kind, told in (
        (One, "minibatch_gradients() returned 1 gradients for 2 points"),
        (Bare, "minibatch_gradients() returned int, expected a list of gradients"),
    ):
        records: list[RoundRecord] = []
        with pytest.raises(StalledError, match="the loss cannot be used"):
            trained(kind(lambda g: g), on_round=records.append)
        assert {reason for record in records[1:] for _, reason in record.rejected} == {
            f"error: the loss cannot be used: {told}"
        }
    assert trained(Rows(lambda g: g)).tobytes() == trained(Formed(lambda g: g)).tobytes()


def test_a_model_that_outgrows_float16_is_cut_off_and_reported(caplog: pytest.LogCaptureFixture) -> None:
    def grow(message: Message, context: Context) -> Message:
        w = message.content.array_records["arrays"]["w"].numpy()
        return Message(RecordDict({"arrays": ArrayRecord({"w": Array(w + np.float16(4000))})}), reply_to=message)

    records: list[RoundRecord] = []
    start = ArrayRecord({"w": Array(np.full(2, 60000, np.float16))})
    made = strategy(server_learning_rate=1.0, on_round=records.append)
    result = made.start(grid(train=grow), start, num_rounds=9)
    assert result.arrays["w"].numpy().tolist() == [65504, 65504]
    assert [record.diverged for record in records] == [False, True]
    assert records[-1].note == (
        "diverged: array 'w' holds numbers up to 6.8e+04, and float16 ends at 6.55e+04, where it is cut off; keep the "
        "model in float32 here, or take smaller steps after round 2"
    )
    assert records[-1].note in caplog.text


def test_arrays_that_are_not_trained_are_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="flwr.breakwater")
    arrays = ArrayRecord({**model(X0), "codes": Array(np.zeros((2, 2), np.uint8))})

    def train(message: Message, context: Context) -> Message:
        return Message(RecordDict({"arrays": message.content.array_records["arrays"]}), reply_to=message)

    strategy().start(grid(train=train), arrays, num_rounds=1)
    assert "not floating point, so not trained but kept as they are: 'codes' (uint8, 4)" in caplog.text
    assert "steps" not in caplog.text


# --- running statistics -------------------------------------------------------------------------------------------


def normed(x: Vector, mean: float, var: float, batches: int) -> ArrayRecord:
    """A model with a norm layer of one channel."""
    stats = {"running_mean": np.array([mean]), "running_var": np.array([var]), "num_batches_tracked": np.array(batches)}
    return ArrayRecord({"w": Array(x), **{f"norm.{name}": Array(value) for name, value in stats.items()}})


def trains(mean: float, var: float, batches: int = 4, broken: Mapping[str, Array] | None = None) -> ClientApp:
    """An ordinary app whose statistics end at these values; or a Byzantine one, behind the mod, with broken ones."""

    def train(message: Message, context: Context) -> Message:
        x = message.content.array_records["arrays"]["w"].numpy()
        return Message(RecordDict({"arrays": normed(0.8 * x, mean, var, batches)}), reply_to=message)

    def breaks(message: Message, context: Context, call_next: Train) -> Message:
        reply = call_next(message, context)
        reply.content["running_statistics"] = ArrayRecord(dict(broken or {}))
        return reply

    return app(train, *([breaks] if broken is not None else []), robust_deltas_mod)


def running(arrays: ArrayRecord | None) -> list[float]:
    assert arrays is not None
    return [float(arrays[name].numpy().item()) for name in sorted(arrays) if name != "w"]


def test_running_statistics_are_the_median_of_the_replies_and_no_part_of_the_rounds() -> None:
    x, records = np.ones(3), list[RoundRecord]()
    far = {seat: trains(1e6 * seat, 1e6, 9) for seat in (0, 1)}  # their weights are honest
    apps = far | {2: trains(1.0, 2.0), 3: trains(2.0, 3.0), 4: trains(3.0, 4.0)}
    found = strategy(on_round=records.append, alpha=1.0).start(grid(apps), normed(x, 0.0, 1.0, 0), num_rounds=3)
    assert running(found.arrays) == [4, 2.0, 4.0]  # counter, mean, variance
    assert found.arrays is not None
    assert found.arrays["w"].numpy() == pytest.approx(0.8**3 * x)
    assert [len(record.clipped) for record in records] == [0, 0, 0]


def test_a_reply_with_broken_running_statistics_counts_without_them(caplog: pytest.LogCaptureFixture) -> None:
    nan = {f"norm.{name}": Array(np.array([np.nan])) for name in ("running_mean", "running_var", "num_batches_tracked")}
    apps = {0: trains(9.0, 9.0, broken={}), 1: trains(9.0, 9.0, broken=nan)}
    apps |= {seat: trains(float(seat), 2.0) for seat in (2, 3, 4)}
    records = list[RoundRecord]()
    robust = strategy(byzantine=1, on_round=records.append)
    found = robust.start(grid(apps), normed(np.ones(3), 0.0, 1.0, 0), num_rounds=1)
    assert len(records[0].accepted) == N
    assert running(found.arrays) == [4, 3.0, 2.0]
    assert "(running statistics): missing" in caplog.text
    assert "(running statistics): unusable" in caplog.text


def test_too_few_running_statistics_leave_them_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    apps = {seat: trains(9.0, 9.0, broken={}) for seat in (0, 1)}
    apps |= {seat: trains(1.0, 2.0) for seat in (2, 3, 4)}
    found = strategy(byzantine=2).start(grid(apps), normed(np.ones(3), 0.0, 1.0, 0), num_rounds=2)
    assert running(found.arrays) == [0, 0.0, 1.0]
    assert caplog.text.count("too few: 3 replies have running statistics, of which 2 may be lies") == 1


def test_more_arrays_may_be_named_as_running_statistics() -> None:
    def train(message: Message, context: Context) -> Message:
        arrays = {"w": Array(np.zeros(2)), "ema": Array(np.array([float(context.node_id in SEATED[:3])]))}
        return Message(RecordDict({"arrays": ArrayRecord(arrays)}), reply_to=message)

    start = ArrayRecord({"w": Array(np.ones(2)), "ema": Array(np.array([0.5]))})
    robust = strategy(running_statistics=["ema"])
    found = robust.start(grid(train=train), start, num_rounds=1)
    assert robust.state.x.size == 2
    assert found.arrays is not None
    assert found.arrays["ema"].numpy().tolist() == [1.0]
    with pytest.raises(ConfigError, match="the model lacks 'none'"):
        strategy(running_statistics=["none"]).start(grid(), start, num_rounds=1)
