"""The other gradient methods as plain loops, written from their papers: the references for whole runs.

As in ``examples.plain_loop``, shared with the product is what defines a run to the last bit (config, random streams,
problem, rule, compressor, norm), and nothing of how a run is carried out.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from client.coalition import Coalition, CoalitionMember
from experiment.opened import Experiment
from strategies.compressors import Identity
from strategies.method import Ask, Packet, Vector
from strategies.randomness import Role, stream
from strategies.vectors import norm
from tests.reference.plain_steps import ServerStep, gamma_of, scheduled


class World:
    """What the loops need of an experiment: who is sampled, what an attacker sends, Q and the rule."""

    def __init__(self, experiment: Experiment) -> None:
        self.config, self.problem = experiment.config, experiment.problem
        federation = self.config.federation
        self.n, self.f, self.seed = federation.clients, federation.byzantine, federation.seed
        self.strategy: Any = self.config.strategy  # its keys
        self.members: dict[int, CoalitionMember] = {}
        if self.config.attack is not None:
            brain = Coalition(experiment, self.config.attack)
            self.members = {i: CoalitionMember(brain, i) for i in range(self.n - self.f, self.n)}

    def cohort(self, k: int, size: int) -> list[int]:
        return sorted(stream(self.seed, Role.COHORT, round_=k).permutation(self.n)[:size].tolist())

    def worker_rng(self, k: int, i: int) -> np.random.Generator:
        return stream(self.seed, Role.WORKER, i, k)

    def q(self, v: Vector, rng: np.random.Generator) -> Vector:
        form = self.config.compressor
        return form.decompress(form.compress(v, rng), v.dtype)

    def attacked(
        self, k: int, i: int, kind: str, vectors: dict[str, Vector], cohort: list[int], dense: bool
    ) -> Vector | None:
        """What the server reads from the attacker i; None for silence."""
        told = tuple(cohort) if self.config.reveals_cohort else None
        packet = self.members[i].answer(Ask(k, kind, vectors, cohort=told))
        form = Identity() if dense else self.config.compressor
        if not isinstance(packet, Packet) or form.validate(packet, self.problem.dim, self.problem.dtype) is not None:
            return None
        return form.decompress(packet, self.problem.dtype)

    def aggregate(self, k: int, rows: list[Vector], f: int) -> Vector:
        rng = stream(self.seed, Role.AGGREGATE, round_=k)
        return self.config.aggregator(np.stack(rows), min(f, self.config.aggregator.tolerates(len(rows))), rng)

    def share(self, rows: list[Vector]) -> int:
        """ceil(delta n')."""
        return int(np.ceil(self.f * len(rows) / self.n))


def clip(row: Vector, lam: float) -> Vector:
    length = norm(row)
    return (row.astype(np.float64) / length * lam).astype(row.dtype) if length > lam else row


class Notes:
    """The radius that sets itself: twice the lower median of the last 31 rounds' lower medians of ||row|| / step."""

    def __init__(self) -> None:
        self.ratios: list[float] = []

    @staticmethod
    def lower_median(values: list[float]) -> float:
        return sorted(values)[(len(values) - 1) // 2]

    def note(self, rows: list[Vector], step: float) -> None:
        self.ratios = [*self.ratios, self.lower_median([norm(row) for row in rows]) / step][-31:]

    def alpha(self) -> float:
        return 2 * self.lower_median(self.ratios)


def descent(experiment: Experiment) -> Iterator[Vector]:
    """Yield x^1, x^2, ... of robust SGD, with client momentum, or with local steps; clipped or not."""
    world = World(experiment)
    s, problem = world.strategy, world.problem
    x, x_prev, g = problem.initial(), None, None
    momenta: dict[int, Vector] = {}
    notes, step_along = Notes(), ServerStep(s)
    for k in range(1, s.rounds + 1):
        cohort = world.cohort(k, s.cohort)
        rows: list[Vector] = []
        for i in cohort:
            if i in world.members:
                kind = "momentum" if s.kind == "robust-momentum-sgd" else "gradient"
                row = world.attacked(k, i, kind, {"x": x}, cohort, dense=False)
                if row is not None:
                    rows.append(row)
                continue
            rng, oracle = world.worker_rng(k, i), problem.oracle(i)
            y, gradients = x, []
            for _ in range(s.local_steps if s.kind == "local-sgd" else 1):
                if s.batch:
                    gradients.append(oracle.minibatch_gradients([y], s.batch, rng)[0])
                else:
                    gradients.append(oracle.full_gradient(y))
                if s.kind == "local-sgd":
                    if len(gradients) > 1 and s.local_momentum:
                        gradients[-1] = s.local_momentum * gradients[-2] + gradients[-1]
                    y = y - scheduled(s.local_schedule, s.local_gamma, k - 1) * gradients[-1]
            v = gradients[0] if len(gradients) == 1 else sum(gradients[1:], gradients[0]) / len(gradients)
            if s.kind == "robust-momentum-sgd":
                v = momenta[i] = s.beta * momenta[i] + (1 - s.beta) * v if i in momenta else v
            rows.append(world.q(v, rng))
        if rows and (not s.clip or g is None):
            g = world.aggregate(k, rows, world.share(rows))
        elif rows:
            assert g is not None
            differences: list[Vector] = [row - g for row in rows]
            short = differences
            if x_prev is not None:
                step = norm(x - x_prev)
                if s.clip == "auto" and not notes.ratios:
                    notes.note(differences, step)
                    alpha = notes.alpha()
                else:
                    alpha = notes.alpha() if s.clip == "auto" else float(s.alpha)
                    if s.clip == "auto":
                        notes.note(differences, step)
                short = [clip(row, alpha * step) for row in differences]
            g = g + world.aggregate(k, short, world.share(rows))
        if g is not None and (rows or s.clip):
            x, x_prev = x - gamma_of(s, k) * step_along(g), x
        yield x


def marina(experiment: Experiment) -> Iterator[Vector]:
    """Yield x^1, x^2, ... of Byz-VR-MARINA, its 2.0, or Byz-VR-MARINA-PP with its options."""
    world = World(experiment)
    s, problem, n = world.strategy, world.problem, world.n
    partial = s.kind == "byz-vr-marina-pp"
    auto = partial and s.clip == "auto"
    x, x_prev, g = problem.initial(), problem.initial(), np.zeros(problem.dim, problem.dtype)
    own: dict[int, Vector] = {}
    notes = Notes()
    for k in range(1, s.rounds + 1):
        full = bool(stream(world.seed, Role.COIN, round_=k).random() < s.p) or k == 1 or (auto and k == 2)
        cohort = world.cohort(k, n if not partial else s.full_cohort if full else s.cohort)
        came: dict[int, Vector] = {}
        for i in cohort:
            rng, oracle = world.worker_rng(k, i), problem.oracle(i)
            if i in world.members:
                vectors = {"x": x} if full else {"x": x, "x_prev": x_prev}
                if s.kind == "byz-vr-marina" and not full:
                    vectors = {"x_prev": x_prev, "g": g}
                read = world.attacked(k, i, "full" if full else "difference", vectors, cohort, dense=full)
                if read is not None:
                    came[i] = read
            elif full and s.full_batch:
                came[i] = oracle.minibatch_gradients([x], s.full_batch, rng)[0]
            elif full:
                came[i] = oracle.full_gradient(x)
            else:
                new, old = oracle.minibatch_gradients([x, x_prev], s.batch, rng)
                came[i] = world.q(new - old, rng)
        if not full and s.kind == "byz-vr-marina":
            rows = [g + row for row in came.values()]
        elif not full and s.kind == "byz-vr-marina-2":
            rows = [own[i] + row for i, row in came.items() if i in own]
        else:
            rows = list(came.values())
        if s.kind == "byz-vr-marina-2":
            members = came if full else [i for i in came if i in own]
            own = dict(zip(members, rows, strict=True))
        before = g
        if not partial:
            g = world.aggregate(k, rows, world.f)
        elif full:
            g = world.aggregate(k, rows, world.share(rows))
            if auto and k == 2:
                longer = float(np.sqrt(1 + world.config.compressor.omega(problem.dim)))
                notes.note([longer * (g - before)], norm(x - x_prev))
        elif rows:
            step = norm(x - x_prev)
            short = [clip(row, (notes.alpha() if auto else float(s.alpha)) * step) for row in rows]
            if auto:
                notes.note(rows, step)
            if s.plus:
                total = (np.sum(np.array(short, np.float64), axis=0) / len(short)).astype(problem.dtype)
            else:
                total = world.aggregate(k, short, world.share(short))
            g = g + total
        x, x_prev = x - gamma_of(s, k) * g, x
        yield x


def demoa(experiment: Experiment) -> Iterator[Vector]:
    """Yield x^1, x^2, ... of DeMoA, and of its first version."""
    world = World(experiment)
    s, problem, n = world.strategy, world.problem, world.n
    p, alpha, step_along = s.cohort / n, float(s.alpha), ServerStep(s)
    x = problem.initial()
    m = np.zeros((n, problem.dim), problem.dtype)
    for k in range(1, s.rounds + 1):
        cohort = world.cohort(k, s.cohort)
        came: dict[int, Vector] = {}
        for i in cohort:
            if i in world.members:
                row = world.attacked(k, i, "gradient", {"x": x}, cohort, dense=False)
                if row is not None and np.isfinite(row).all():
                    came[i] = row
                continue
            rng, oracle = world.worker_rng(k, i), problem.oracle(i)
            g = oracle.minibatch_gradients([x], s.batch, rng)[0] if s.batch else oracle.full_gradient(x)
            came[i] = world.q(g, rng)
        for i in range(n):
            if s.stale == "decay":
                m[i] = (1.0 - alpha * p) * m[i] + (alpha * came[i] if i in came else 0.0)
            elif i in came:
                m[i] = (1.0 - alpha) * m[i] + alpha * came[i]
        x = x - gamma_of(s, k) * step_along(world.aggregate(k, list(m), world.f))
        yield x


def nsgdm(experiment: Experiment) -> Iterator[Vector]:
    """Yield x^1, x^2, ... of Byz-NSGDM."""
    world = World(experiment)
    s, problem, n = world.strategy, world.problem, world.n
    x = problem.initial()
    m = np.zeros((n, problem.dim), problem.dtype)
    for k in range(s.rounds):
        rows: list[Vector] = []
        for i in range(n):
            if i in world.members:
                row = world.attacked(k + 1, i, "momentum", {"x": x}, list(range(n)), dense=False)
                if row is not None and np.isfinite(row).all():
                    rows.append(row)
                continue
            rng, oracle = world.worker_rng(k + 1, i), problem.oracle(i)
            g = oracle.minibatch_gradients([x], s.batch, rng)[0] if s.batch else oracle.full_gradient(x)
            m[i] = s.beta * m[i] + (1 - s.beta) * g
            rows.append(world.q(m[i], rng))
        g = world.aggregate(k + 1, rows, world.f)
        gamma_k = s.gamma / (k + 1) ** 0.5 if isinstance(s.gamma, float) else gamma_of(s, k + 1)
        x = x - gamma_k * (g / norm(g))
        yield x
