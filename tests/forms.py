"""One or more of every compressor, for tests that hold for all of them."""

from strategies.compressors import QSGD, Identity, Masked, Natural, PermK, RandK, ScaledSign, TopK
from strategies.method import Compressor

FORMS: tuple[Compressor, ...] = (
    Identity(),
    Identity(values="float16"),
    Identity(values="bfloat16"),
    RandK(ratio=0.3),
    RandK(ratio=0.3, values="float16"),
    RandK(ratio=0.3, levels=3),
    Masked(ratio=0.4),
    Masked(ratio=0.4, values="bfloat16"),
    Masked(ratio=0.4, levels=90),
    PermK(parts=4),
    PermK(parts=4, values="float16"),
    PermK(parts=4, levels=1),
    TopK(ratio=0.02),
    TopK(ratio=0.5),
    TopK(ratio=0.5, values="float16"),
    TopK(ratio=0.5, values="bfloat16"),
    QSGD(levels=1),
    QSGD(levels=5),
    QSGD(levels=127),
    QSGD(levels=300),
    QSGD(levels=1, norm="linf"),
    QSGD(levels=7, norm="linf"),
    Natural(),
    ScaledSign(),
)


def in_round(form: Compressor, seed: int = 11, worker: int = 1) -> Compressor:
    """Return the operator of a worker in a round with that seed."""
    return form.of_round(seed, worker)
