"""Where the torch modules of this process compute, and in which precision.

That is each party's own affair: it comes from an option, the environment or a node config, and is no part of a config,
of a setting or of what parties compare. Importing it does not import torch.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from foundation.errors import ConfigError

if TYPE_CHECKING:
    import torch

VARIABLES = {
    "device": "BREAKWATER_DEVICE",
    "precision": "BREAKWATER_PRECISION",
    "memory": "BREAKWATER_DEVICE_MEMORY",
}
"""The environment variable of each field. The options of a command are kept there, for the processes it starts too."""
KEYS = {"device": "device", "precision": "precision", "memory": "device-memory"}
"""The name of each field as an option, and in a node config."""


@dataclass(frozen=True)
class Compute:
    """Where and how the torch modules of a process compute.

    Args:
        device: ``auto`` (CUDA if there is a device, else MPS, else the CPU), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        precision: ``float32``: in the type of the parameters; ``bf16``: forward passes in bfloat16 where autocast does
            so, with float32 parameters and gradients.
        memory: share of a CUDA device's memory that this process may use, from 0 to 1; None for all.
    """

    device: str = "cpu"
    precision: str = "float32"
    memory: float | None = None

    def with_values(self, given: Mapping[str, object], where: Callable[[str], str]) -> Self:
        """Return the same with some fields as they were given.

        Args:
            given: values by field.
            where: says of a field where it was given.

        Raises:
            ConfigError: a value cannot be used; one line.
        """
        found: dict[str, Any] = {}
        for field, value in given.items():
            try:
                found[field] = PARSERS[field](value)
            except ValueError as error:
                raise ConfigError(f"{where(field)}: {error}") from None
        return replace(self, **found)

    def torch_device(self) -> "torch.device":
        """Return the device. Imports torch.

        Raises:
            ConfigError: this machine does not have it; one line.
        """
        import torch

        cuda = torch.cuda.device_count() if self.device[:4] in ("auto", "cuda") and torch.cuda.is_available() else 0
        mps = self.device in ("auto", "mps") and torch.backends.mps.is_available()
        name = self.device
        if name == "auto":
            name = "cuda" if cuda else "mps" if mps else "cpu"
        kind, _, index = name.partition(":")
        if kind == "cuda" and int(index or 0) >= cuda:
            found = f"PyTorch {torch.__version__} finds {cuda or 'no'} CUDA device{'s' * (cuda != 1)}"
            fix = f"use cuda:0 to cuda:{cuda - 1}" if cuda else "use cpu or auto, or install its driver and PyTorch"
            raise ConfigError(f"device {name}: {found} here; {fix}")
        if kind == "mps" and not mps:
            raise ConfigError(f"device mps: PyTorch {torch.__version__} finds none here; use cpu or auto")
        return torch.device(f"cuda:{int(index or 0)}" if kind == "cuda" else kind)

    def check(self) -> None:
        """Refuse a device that this machine does not have. Imports torch if one is named that is not the CPU.

        Raises:
            ConfigError: one line.
        """
        if self.device in ("auto", "cpu"):
            return
        try:
            self.torch_device()
        except ImportError as error:
            fix = "install it with `make setup` or the extra `torch`"
            raise ConfigError(f"device {self.device}: needs torch ({error}); {fix}") from None


CPU = Compute()
"""The default, and the only place of exact bits."""


def parse_device(value: object) -> str:
    """Return the name of a device.

    Raises:
        ValueError: it is none.
    """
    if not (isinstance(value, str) and re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]{1,3})?", value)):
        raise ValueError(f"{value!r}: must be auto, cpu, cuda, cuda:N or mps")
    return value


def parse_precision(value: object) -> str:
    """Return the name of a precision.

    Raises:
        ValueError: it is none.
    """
    if value not in ("float32", "bf16"):
        raise ValueError(f"{value!r}: must be float32 or bf16")
    return str(value)


def parse_memory(value: object) -> float:
    """Return a share of a device's memory.

    Raises:
        ValueError: it is none.
    """
    try:
        share = float(value)  # type: ignore[arg-type]  # what is no number is refused
    except (TypeError, ValueError):
        share = 0.0
    if isinstance(value, bool) or not 0 < share <= 1:
        raise ValueError(f"{value!r}: must be above 0 and at most 1, the share of the device's memory")
    return share


PARSERS: dict[str, Callable[[object], Any]] = {
    "device": parse_device,
    "precision": parse_precision,
    "memory": parse_memory,
}

_chosen: ContextVar[Compute | None] = ContextVar("chosen", default=None)
"""Of each thread by itself: several runs may be in the threads of one process."""


def current() -> Compute:
    """Return where this process computes: as ``computing`` says, else as its environment does.

    Raises:
        ConfigError: a variable of the environment cannot be used; one line.
    """
    chosen = _chosen.get()
    if chosen is not None:
        return chosen
    given = {field: os.environ[name] for field, name in VARIABLES.items() if os.environ.get(name)}
    return CPU.with_values(given, VARIABLES.__getitem__)


@contextmanager
def computing(on: Compute) -> Iterator[None]:
    """Within, in this thread: modules that are built compute there, whatever the environment says, and stay there."""
    token = _chosen.set(on)
    try:
        yield
    finally:
        _chosen.reset(token)
