"""A finished round and two measures of a model, for tests of what shows or keeps them."""

from strategies.method import Evaluation
from strategies.strategy import RoundRecord

START = Evaluation(loss=2.0, accuracy=0.25, gap=1.5)
RECORD = RoundRecord(
    round=1,
    kind="full",
    cohort=[0, 1, 3],
    accepted=[0, 3],
    rejected=[("client-1", "wrong shape: 3 values, expected 4")],
    clipped=[3],
    lam=0.5,
    step_norm=0.25,
    bytes_up=100,
    bytes_down=1000,
    round_s=0.0123456789,
)
MEASURED = Evaluation(loss=0.5, accuracy=0.75, gap=0.25)
