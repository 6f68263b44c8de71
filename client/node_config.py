"""Flower's node config, read once where it comes in: which seat a node has, its data, and what it does if Byzantine."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from attacks.attack import Attack
from experiment.config import Config, parse_attack, suggest
from experiment.run_config import RunConfig, split
from foundation.errors import ConfigError

_PARTITION, _PARTITIONS, _ATTACK, _SET, _DATA = "partition-id", "num-partitions", "attack", "set", "data"


@dataclass(frozen=True)
class NodeConfig:
    """The values of a node config; its keys are in parentheses.

    Args:
        partition: which worker the node is. (``partition-id``)
        partitions: of how many, where it is known, as in Flower's simulation. (``num-partitions``)
        attack: kind of the attack of a Byzantine node. (``attack``)
        settings: ``attack.key=value`` for its parameters. (``set``)
        data: the folder of the node's own data; None for the run's. (``data``)
    """

    partition: object = None
    partitions: object = None
    attack: str | None = None
    settings: tuple[str, ...] = ()
    data: Path | None = None

    @classmethod
    def read(cls, given: Mapping[str, object]) -> Self:
        """Return the values of a node config.

        Raises:
            ConfigError: it has an unknown key, or ``set`` cannot be read; one line.
        """
        known = (_PARTITION, _PARTITIONS, _ATTACK, _SET, _DATA)
        for key in given:
            if key not in known:
                raise ConfigError(f"node config: {key}: unknown key{suggest(key, known)}")
        attack, data = given.get(_ATTACK), given.get(_DATA)
        kind = str(attack) if _ATTACK in given else None
        folder, settings = Path(str(data)) if data else None, split(given.get(_SET), "node config")
        return cls(given.get(_PARTITION), given.get(_PARTITIONS), kind, settings, folder)

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
        federation = config.federation
        return config.attack.kind if self.seat(federation.clients) in federation.last_seats else None

    def attack_of(self, run: RunConfig, config: Config) -> Attack | None:
        """Return the attack that the node runs; None for an honest one.

        Raises:
            ConfigError: there is no such attack, or a parameter cannot be used.
        """
        kind = self.attack_kind(run, config)
        return None if kind is None else parse_attack(kind, self.settings, config)
