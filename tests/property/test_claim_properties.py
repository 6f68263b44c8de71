"""f liars among m claims: whatever they say, each figure lies within what honest clients said, or there is none."""

from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from hypothesis import example, given
from hypothesis import strategies as st

from link import flwr_compat
from link.claims import read_claim, write_claim
from strategies.claims import Claim, Claims, Figure, flaw_of
from strategies.method import Rejected

FINITE = st.floats(allow_nan=False, allow_infinity=False)
LOSSES = st.floats(0, allow_infinity=False)
SHARES = st.floats(0, 1)


@st.composite
def said(draw: st.DrawFn, honest: st.SearchStrategy[float], lies: st.SearchStrategy[float]) -> Any:
    """Return honest values, lies and f, with at most f lies among them."""
    f = draw(st.integers(0, 5))
    told = draw(st.lists(lies, max_size=f))
    return draw(st.lists(honest, max_size=16)), told, f


@given(said(FINITE, FINITE))
@example(([5e-324, 5e-324], [0.0], 1))
@example(([1.7e308, 1.7e308, 1.6e308], [-1.7e308], 1))
def test_each_figure_lies_within_what_honest_clients_said(drawn: Any) -> None:
    honest, lies, f = drawn
    figure = Figure.of([*honest, *lies], f)
    m = len(honest) + len(lies)
    assert (figure is not None) == (m > 2 * f)
    if figure is not None:
        assert min(honest) <= figure.median <= max(honest)
        assert (figure.low is not None) == (figure.high is not None) == (m > 4 * f)
        if figure.low is not None and figure.high is not None:
            assert min(honest) <= figure.low <= figure.median <= figure.high <= max(honest)


@given(said(FINITE, FINITE), st.randoms(use_true_random=False))
def test_the_order_of_answers_has_no_effect(drawn: Any, random: Any) -> None:
    values = [*drawn[0], *drawn[1]]
    mixed = list(values)
    random.shuffle(mixed)
    assert Figure.of(values, drawn[2]) == Figure.of(mixed, drawn[2])


@given(st.lists(st.tuples(LOSSES, SHARES), min_size=3, max_size=9), st.lists(st.tuples(LOSSES, SHARES | st.none())))
def test_liars_who_leave_out_a_measure_cannot_move_it_either(
    honest: list[tuple[float, float]], lies: list[tuple[float, float | None]]
) -> None:
    f = min(len(lies), (len(honest) - 1) // 2)
    clients = {str(i): Claim(*values) for i, values in enumerate([*honest, *lies[:f]])}
    found = Claims.of(clients, {}, f).evaluation
    assert found is not None
    assert min(loss for loss, _ in honest) <= found.loss <= max(loss for loss, _ in honest)
    assert found.accuracy is None or min(a for _, a in honest) <= found.accuracy <= max(a for _, a in honest)


NAMES = st.sampled_from(["loss", "accuracy", "samples", "evil", ""])
NUMBERS: st.SearchStrategy[Any] = st.one_of(
    st.floats(), st.integers(-(2**80), 2**80), st.lists(st.floats(), max_size=3), SHARES
)
WORDS: st.SearchStrategy[Any] = st.text(max_size=5) | st.booleans()
METRICS = st.dictionaries(NAMES, NUMBERS, max_size=4).map(MetricRecord)
RECORDS: st.SearchStrategy[Any] = st.one_of(
    METRICS,
    st.dictionaries(NAMES, WORDS, max_size=3).map(ConfigRecord),
    st.just(ArrayRecord({"loss": Array("uint8", (1,), "raw", b"1")})),
)
ANSWERS: st.SearchStrategy[Any] = st.one_of(
    METRICS.map(lambda record: RecordDict({"measures": record})),
    st.dictionaries(st.sampled_from(["measures", "p", "\x1b"]), RECORDS, max_size=2).map(RecordDict),
    st.builds(Error, st.integers(0, 200), st.none() | st.text(max_size=400)),
)


def reply(answer: RecordDict | Error) -> Message:
    flwr_compat.set_identity(1)
    return Message(answer, reply_to=Message(RecordDict(), 1, "evaluate"))


@given(ANSWERS, st.booleans())
def test_any_answer_is_a_sound_claim_or_refused_in_a_short_line(answer: RecordDict | Error, declared: bool) -> None:
    found = read_claim(reply(answer), declared)
    if isinstance(found, Rejected):
        assert 0 < len(found.reason) <= 200
        assert found.reason.isprintable()
    else:
        assert flaw_of(found.loss, found.accuracy, found.samples) == ""
        assert declared or found.samples is None


@given(LOSSES, SHARES | st.none(), st.integers(1, 2**53) | st.none())
def test_a_claim_arrives_as_it_was_sent(loss: float, accuracy: float | None, samples: int | None) -> None:
    claim = Claim(loss, accuracy, samples)
    assert read_claim(reply(write_claim(claim)), True) == claim
