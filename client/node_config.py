"""Flower's node config, read once where it comes in: which seat a node has, its data, and what it does if Byzantine."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from attacks.attack import Attack
from client.party import Limits
from experiment.config import Config, parse_attack, suggest
from experiment.run_config import RunConfig, split
from foundation.errors import ConfigError
from tasks import compute
from tasks.compute import CPU, Compute

_PARTITION, _PARTITIONS, _ATTACK, _SET, _DATA = "partition-id", "num-partitions", "attack", "set", "data"
_CONFIG, _BATCH, _ROUNDS = "config", "min-batch", "max-rounds"
_EVALUATION, _STATISTICS, _MODEL = "evaluation", "statistics", "model"
_COMPUTE = {key: field for field, key in compute.KEYS.items()}


@dataclass(frozen=True)
class NodeConfig:
    """The values of a node config; its keys are in parentheses.

    Args:
        partition: which worker the node is. (``partition-id``)
        partitions: of how many, where it is known, as in Flower's simulation. (``num-partitions``)
        attack: kind of the attack of a Byzantine node. (``attack``)
        settings: ``attack.key=value`` for its parameters. (``set``)
        data: the folder of the node's own data; None for the run's. (``data``)
        config: a config file of the node's owner, which the run's must agree with. (``config``)
        model: where the final model of a run is left, of a node with its own data. (``model``)
        limits: what the owner of the data allows. (``min-batch``, ``max-rounds``, ``evaluation``, ``statistics``)
        compute: where its torch models compute; what is not given is the environment's. (``device``, ``precision``,
            ``device-memory``)
    """

    partition: object = None
    partitions: object = None
    attack: str | None = None
    settings: tuple[str, ...] = ()
    data: Path | None = None
    config: Path | None = None
    limits: Limits = field(default_factory=Limits)
    model: Path | None = None
    compute: Compute = CPU

    @classmethod
    def read(cls, given: Mapping[str, object]) -> Self:
        """Return the values of a node config.

        Raises:
            ConfigError: it has an unknown key, or a value cannot be read; one line.
        """
        limits = (_BATCH, _ROUNDS, _EVALUATION, _STATISTICS)
        known = (_PARTITION, _PARTITIONS, _ATTACK, _SET, _DATA, _CONFIG, _MODEL, *limits, *_COMPUTE)
        for key in given:
            if key not in known:
                raise ConfigError(f"node config: {key}: unknown key{suggest(key, known)}")
        attack, data, config = given.get(_ATTACK), given.get(_DATA), given.get(_CONFIG)
        kind = str(attack) if _ATTACK in given else None
        folder, settings = Path(str(data)) if data else None, split(given.get(_SET), "node config")
        own, seat = Path(str(config)) if config else None, (given.get(_PARTITION), given.get(_PARTITIONS))
        model = Path(str(given[_MODEL])) if given.get(_MODEL) else None
        values = {field: given[key] for key, field in _COMPUTE.items() if key in given}
        on = compute.current().with_values(values, lambda field: f"node config: {compute.KEYS[field]}")
        return cls(*seat, kind, settings, folder, own, _limits(given), model, on)

    def seat(self, clients: int) -> int:
        """Return the seat that the node config names.

        Raises:
            ConfigError: it names none of this federation.
        """
        seats = f"0 .. {clients - 1}"
        index, partitions = self.partition, clients if self.partitions is None else self.partitions
        if index is None:
            option = f'--node-config "{_PARTITION}=I"'
            raise ConfigError(f"node config: {_PARTITION} is missing; give {option}, I from {seats}")
        if not isinstance(index, int) or not 0 <= index < clients:
            must = f"must be {seats}, as federation.clients = {clients}"
            raise ConfigError(f"node config: {_PARTITION} = {index!r}: {must}")
        if partitions != clients:
            raise ConfigError(f"node config: {_PARTITIONS} = {partitions!r}: must be federation.clients = {clients}")
        return index

    def attack_kind(self, run: RunConfig, config: Config) -> str | None:
        """Return the kind of the attack that the node runs; None for an honest one."""
        if self.attack is not None or not run.last_attack or config.attack is None:
            return self.attack
        return config.attack.kind if self.seat(config.federation.clients) in config.attackers else None

    def attack_of(self, run: RunConfig, config: Config) -> Attack | None:
        """Return the attack that the node runs; None for an honest one.

        Raises:
            ConfigError: there is no such attack, or a parameter cannot be used.
        """
        kind = self.attack_kind(run, config)
        return None if kind is None else parse_attack(kind, self.settings, config)


def _limits(given: Mapping[str, object]) -> Limits:
    """Return what the owner of a node's data allows.

    Raises:
        ConfigError: a value cannot be used; one line.
    """
    for key in (_BATCH, _ROUNDS):
        value = given.get(key)
        if value is not None and (type(value) is not int or value < 1):
            raise ConfigError(f"node config: {key} = {value!r}: must be a whole number from 1 up")
    for key in (_EVALUATION, _STATISTICS):
        if type(given.get(key, True)) is not bool:
            raise ConfigError(f"node config: {key} = {given[key]!r}: must be true or false")
    numbers: Any = {"min_batch": given.get(_BATCH), "max_rounds": given.get(_ROUNDS)}
    flags: Any = {"evaluation": given.get(_EVALUATION, True), "statistics": given.get(_STATISTICS, True)}
    return Limits(**numbers, **flags)
