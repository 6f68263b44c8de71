"""What the specs of the built-in tasks share: how they are parsed, and the checks of their fields."""

from dataclasses import dataclass
from math import isfinite
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from tasks.partition import OWN, check_partition


@dataclass(frozen=True, kw_only=True)
class BuiltIn:
    """A built-in task: it has unit tests and is not tried before a run."""

    tested: ClassVar[bool] = True
    own_data: ClassVar[bool] = False
    """Whether each client may bring data of its own."""
    has_images: ClassVar[bool] = False
    """Whether its inputs are images, into which an attacker may plant a trigger."""
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            if get_origin(kind) is Literal and getattr(self, name) not in get_args(kind):
                allowed = " or ".join(f'"{choice}"' for choice in get_args(kind))
                raise ValueError(f'{name} = "{getattr(self, name)}": must be {allowed}')
        for name in ("hidden", "train_limit", "features"):
            value = getattr(self, name, None)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"{name} = {value}: must be at least 1")
        l2: float = getattr(self, "l2", 0.0)
        if not (l2 >= 0 and isfinite(l2)):
            raise ValueError(f"l2 = {l2}: must be a finite number from 0 up")
        partition: str = getattr(self, "partition", "iid")
        check_partition(partition)
        if partition == OWN and not self.own_data:
            here = f'kind = "{getattr(self, "kind", "")}" splits data that all processes have'
            raise ValueError(f'partition = "{OWN}": {here}; use kind = "table", or "custom" with local_data(folder)')
