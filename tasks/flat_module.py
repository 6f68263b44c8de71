"""A torch module on flat NumPy vectors: its parameters are views of one vector, and so are their gradients.

A model comes in by one copy and its gradient goes out by one; between them everything stays on the device. Whatever
the module draws at random comes from a seed that the caller gives for each evaluation, and torch's own generators are
left as they were. On the CPU it computes with one thread, so that every process computes the same bits; other devices
promise less, see docs/tasks.md. Importing it imports torch.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from strategies.method import Vector
from tasks.compute import CPU, Compute
from tasks.modules import trained
from tasks.norm_stats import NormStats
from tasks.placement import Placement
from tasks.samples import Samples, count
from tasks.threads import GENERATORS

HALF = ("float16", "bfloat16")
"""Types of parameters that are trained through a float32 vector x."""

Objective = Callable[[nn.Module, Samples], Tensor]
"""(module, batch) -> the MEAN loss of these samples, a scalar."""


class FlatModule:
    """A torch module whose parameters, and gradients, lie in one flat vector each.

    Args:
        module: any module on the CPU whose output is a function of its parameters, the inputs and torch's generators.
            Its layers are in the mode that they are trained in.
        dtype: what its parameters are converted to. Of ``HALF``, x and gradients are float32 all the same.
        compute: where it computes, and in which precision.

    Raises:
        TaskError: it has no parameters, or parameters that are no real numbers on the CPU.
        ConfigError: it cannot compute there.
    """

    def __init__(self, module: nn.Module, dtype: str, compute: Compute = CPU) -> None:
        found = trained(module)  # before the imaginary part of a number would be dropped
        wide = torch.float32 if dtype in HALF else getattr(torch, dtype)
        start = torch.cat([parameter.detach().reshape(-1).to(wide) for parameter in found.values()])
        self.place = place = Placement(compute, dtype)
        self.module = module.to(place.device, getattr(torch, dtype))
        by_name = dict(module.named_parameters())
        self.trained = {name: by_name[name] for name in found}
        parameters = list(self.trained.values())
        start = start.to(place.device)
        self._parameters = start.to(getattr(torch, dtype))
        self._slopes = torch.zeros_like(self._parameters)
        sizes = [parameter.numel() for parameter in parameters]
        for parameter, values, slope in zip(
            parameters, torch.split(self._parameters, sizes), torch.split(self._slopes, sizes), strict=True
        ):
            parameter.data, parameter.grad = values.view_as(parameter), slope.view_as(parameter)
        self._half = dtype in HALF
        # Without half parameters these are the parameters and their gradients themselves.
        self._start = start if self._half else self._parameters
        self._total = torch.zeros_like(start) if self._half else self._slopes
        # On the CPU this is their memory too. Writing through NumPy is safe: no graph outlives a call of a method.
        self._staged = self._start if place.on_cpu else place.host(start).copy_(start)
        self._x: Vector = self._staged.numpy()
        self.initial: Vector = self._x.copy()
        self.norm_stats = NormStats(module)
        self._modes = {layer: layer.training for layer in module.modules()}

    @property
    def dim(self) -> int:
        """The number of parameters, d."""
        return len(self._x)

    def layout(self) -> str:
        """Return the names and shapes of what x holds, in its order, as JSON."""
        return json.dumps([[name, list(parameter.shape)] for name, parameter in self.trained.items()])

    def _move(self, x: Vector) -> None:
        self._x[:] = x
        if not self.place.on_cpu:
            self._start.copy_(self._staged)
        if self._half:
            self._parameters.copy_(self._start)

    def gradient(
        self,
        x: Vector,
        batches: Iterable[Samples],
        objective: Objective,
        samples: int,
        seed: int = 0,
        l2: float = 0.0,
    ) -> tuple[Vector, bool]:
        """Return the gradient at x of mean loss + (l2/2) ||x||^2, and whether anything was drawn at random.

        Args:
            x: shape (d,).
            batches: of the samples.
            objective: mean loss of one batch.
            samples: how many samples the batches have together.
            seed: of all that the module and the loss draw.
            l2: weight of the regulariser.

        Returns:
            The gradient, shape (d,), a fresh array; whether it depends on the seed.
        """
        self._move(x)
        self._total.zero_()
        with self.norm_stats.kept(), drawing(seed, self.place.generators()) as drawn:
            for batch in self.place.moved(batches):
                with self.place.autocast():
                    mean = objective(self.module, batch)
                (mean * (count(batch) / samples)).backward()  # type: ignore[no-untyped-call]  # torch does not type it
                if self._half:
                    self._total += self._slopes
                    self._slopes.zero_()
            moved = drawn()
        if l2 > 0:
            self._total += self._start * l2
        return self.place.fetched(self._total), moved

    @contextmanager
    def evaluating(self, x: Vector, stats: Vector | None) -> Iterator[nn.Module]:
        """Within: the module at x in evaluation mode, without gradients.

        Args:
            x: shape (d,).
            stats: the running statistics, see ``norm_stats``; None for those that it has.
        """
        self._move(x)
        generators = self.place.generators()
        with torch.no_grad(), self.norm_stats.kept(), drawing(0, generators), self.place.autocast():
            if stats is not None:
                self.norm_stats.write(stats)
            try:
                for layer in self._modes:
                    layer.training = False
                yield self.module
            finally:
                for layer, mode in self._modes.items():
                    layer.training = mode

    def statistics(self, x: Vector, batches: Iterable[Samples], forward: Objective, seed: int) -> Vector:
        """Return the mean over some batches of the batch statistics at x, shape (``norm_stats.size``,), float64.

        Args:
            x: shape (d,).
            batches: of training samples; pushed through in training mode.
            forward: pushes one through.
            seed: of all that the module draws.
        """
        self._move(x)
        moved = self.place.moved(batches)
        with drawing(seed, self.place.generators()), self.place.autocast():
            return self.norm_stats.measured(lambda b=batch: forward(self.module, b) for batch in moved)  # type: ignore[misc]  # a default


@contextmanager
def drawing(seed: int, others: Sequence[torch.Generator] = ()) -> Iterator[Callable[[], bool]]:
    """Within: torch's generators, of the CPU and of CUDA in use, begin at a seed; afterwards they are as before.

    Args:
        seed: where they begin.
        others: further generators, of other devices.

    Yields:
        Returns whether anything has been drawn.
    """
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch does not type it
    generators = [torch.default_generator, *(torch.cuda.default_generators if in_use else ()), *others]
    with GENERATORS:
        before = [generator.get_state() for generator in generators]
        try:
            for generator in generators:  # torch.manual_seed would also note it down for GPUs that nobody uses
                generator.manual_seed(seed)
            seeded = [generator.get_state() for generator in generators]
            yield lambda: not all(map(torch.equal, seeded, (generator.get_state() for generator in generators)))
        finally:
            for generator, state in zip(generators, before, strict=True):
                generator.set_state(state)
