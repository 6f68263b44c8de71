"""RobustFedAvg: FedAvg's place in a Flower app, taken by a method that Byzantine clients cannot break.

    -  strategy = FedAvg(fraction_train=0.5)
    +  strategy = RobustFedAvg(clients=10, byzantine=3, fraction_train=0.5)

and ``adapters.mods.robust_deltas_mod`` on the ClientApp. The instruction is FedAvg's, the model under "arrays" and the
app's configuration under "config", and beside them ``adapters.orders`` for the mod. The model travels once, as the app
reads it.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Unpack

from flwr.app import RecordDict

from adapters.app_strategy import OWN_RECORDS, AppCodec, AppOptions, AppStrategy, check_share
from adapters.named_arrays import ArrayLayout
from adapters.orders import ORDER, write, write_order
from foundation.errors import ConfigError
from strategies.aggregators import CoordinateMedian, Rule
from strategies.cohorts import byzantine_majority, expected_byzantine
from strategies.compressors import Identity, PermK
from strategies.hyperparameters import AUTO
from strategies.method import Ask, Compressor, Vector
from strategies.radius import Alpha
from strategies.robust_averaging import RobustAveraging

log = logging.getLogger("flwr.breakwater")


@dataclass(frozen=True)
class DeltaCodec(AppCodec):
    """Instructions that an app written for FedAvg can read.

    Args:
        compressor: Q.
        arrays: name of the record that is the model.
    """

    compressor: Compressor
    arrays: str

    def write_ask(self, ask: Ask, extra: Mapping[str, Vector] = {}) -> RecordDict:  # never written to
        """Return the content of an instruction; this method has nothing extra for anybody."""
        order = write_order(ask, self.compressor, self.arrays)
        return RecordDict({self.arrays: self.to_arrays(ask.vectors["x"]), ORDER: order})


class RobustFedAvg(AppStrategy):
    """Federated averaging by ``strategies.robust_averaging``. What a client claims, examples and metrics, is not used.

    Args:
        clients: n; see ``AppStrategy``.
        byzantine: f.
        fraction_train: C/n, the share of clients sampled in a round. The opening rounds ask all.
        aggregator: the robust rule, with its pre-aggregators.
        compressor: what the mod compresses deltas with; unbiased.
        alpha: clipping multiplier of ``strategies.robust_averaging``; "auto" learns it, ``math.inf`` does not clip.
        server_learning_rate: gamma, what the aggregated delta is multiplied by.
        arrayrecord_key: name of the record with the model.
        configrecord_key: name of the record with the app's ``train_config``.

        options: those of ``AppStrategy``.

    Raises:
        ConfigError: a value is out of bounds, or the rule cannot defend such cohorts.
    """

    method: RobustAveraging
    byzantine: int
    hint = "is breakwater.robust_deltas_mod on its ClientApp?"

    def __init__(
        self,
        clients: int,
        byzantine: int,
        *,
        fraction_train: float = 1.0,
        aggregator: Rule | None = None,
        compressor: Compressor | None = None,
        alpha: Alpha = 2.0,
        server_learning_rate: float = 1.0,
        arrayrecord_key: str = "arrays",
        configrecord_key: str = "config",
        **options: Unpack[AppOptions],
    ) -> None:
        check_share(clients, byzantine)
        rule = CoordinateMedian() if aggregator is None else aggregator
        form: Compressor = Identity() if compressor is None else compressor
        if isinstance(form, PermK) and form.parts is None:
            form = replace(form, parts=clients)
        if not 0 < fraction_train <= 1:
            raise ConfigError(f"fraction_train = {fraction_train}: must be above 0 and at most 1")
        if not 0 < server_learning_rate < math.inf:
            raise ConfigError(f"server_learning_rate = {server_learning_rate}: must be a positive number")
        if alpha != AUTO and not (isinstance(alpha, int | float) and alpha > 0):
            raise ConfigError(f'alpha = {alpha!r}: must be a positive number, math.inf or "auto"')
        write(form)  # refuses what no mod knows
        if not form.unbiased:
            raise ConfigError(f"compressor = {form.kind}: biased, and the mean of biased deltas leads elsewhere")
        if arrayrecord_key in OWN_RECORDS or arrayrecord_key == configrecord_key:
            raise ConfigError(f"arrayrecord_key = {arrayrecord_key!r}: another record has that name; choose another")
        cohort = max(1, round(fraction_train * clients))
        _check_rule(rule, cohort, clients, byzantine, clips=alpha != math.inf)
        gamma, clip = float(server_learning_rate), None if alpha == math.inf else alpha
        method = RobustAveraging(
            n=clients, f=byzantine, gamma=gamma, cohort=cohort, aggregator=rule, compressor=form, alpha=clip
        )
        super().__init__(method, clients=clients, byzantine=byzantine, configrecord_key=configrecord_key, **options)
        self.compressor = form
        self.arrayrecord_key = arrayrecord_key

    def summary(self) -> None:
        """Log the method, and how much it has to clip."""
        super().summary()
        share = sum(byzantine_majority(self.clients, self.byzantine, self.method.cohort))
        if share > 0:
            risk = "%.0f %% of the cohorts have no honest majority, so their updates are clipped"
            log.info(f"{risk}; a larger fraction_train makes them fewer and the model better", 100 * share)

    def make_codec(self, layout: ArrayLayout) -> AppCodec:
        """Return how this model travels.

        Raises:
            ConfigError: the compressor cannot carry it.
        """
        try:
            self.compressor.layout(layout.dim, layout.dtype)
        except ValueError as error:
            raise ConfigError(f"compressor: {error}") from None
        return DeltaCodec(layout, self.hint, self.compressor, self.arrayrecord_key)


def _check_rule(rule: Rule, cohort: int, n: int, f: int, *, clips: bool) -> None:
    """Refuse a rule that cannot defend all clients, or cannot take a cohort and what silent clients leave of it.

    A cohort may have more Byzantine clients than the rule tolerates, where clipping bounds what they do.
    """
    for size in (n,) if clips else (n, cohort):
        share, tolerated = expected_byzantine(size, n, f), rule.tolerates(size)
        if rule.defends and tolerated < share:
            others = "" if size == n else ", a larger fraction_train, or clip"
            limit = f"{share} may be Byzantine, and it tolerates {max(0, tolerated)}"
            raise ConfigError(f"aggregator = {rule.kind}: of {size} replies {limit}; choose another rule{others}")
    share = expected_byzantine(cohort, n, f)
    for size in (cohort, cohort - share):
        if size > 0 and rule.tolerates(size) < 0:
            silent = f", {share} of them silent" if size < cohort else ""
            few, fix = "are too few for it", "choose another rule or a larger fraction_train"
            raise ConfigError(f"aggregator = {rule.kind}: {cohort} clients in a round{silent} {few}; {fix}")
