"""Methods, each with both halves, server and worker, and what a method of one's own needs.

    import breakwater as bw

    method = bw.methods.ByzVRMarinaPP(n=10, f=3, gamma=0.05, ...)

docs/catalogue.md lists them. ``Method`` is the contract; CONTRIBUTING.md has two complete examples.
"""

from strategies.byz_dasha_page import ByzDashaPage
from strategies.byz_dm21 import ByzDM21
from strategies.byz_ef21 import ByzEF21, ByzEF21BC
from strategies.byz_ef21_sgdm import ByzEF21SGDM
from strategies.byz_nsgdm import ByzNSGDM
from strategies.byz_vr_marina import ByzVRMarina
from strategies.byz_vr_marina_2 import ByzVRMarina2
from strategies.byz_vr_marina_pp import ByzVRMarinaPP
from strategies.cohorts import aggregate, stack
from strategies.demoa import DeMoA
from strategies.descent import Descent, gradient
from strategies.evidence import examine
from strategies.hyperparameters import Key
from strategies.local_sgd import LocalSGD
from strategies.method import (
    Ask,
    Evaluation,
    Method,
    Oracle,
    Past,
    Rejected,
    Report,
    Stateful,
    StateLostError,
    WorkerState,
)
from strategies.operators import Aggregator, Combined, Compressor, Packet, PacketLayout, Rows, Vector, Weights
from strategies.randomness import Role, stream
from strategies.robust_averaging import RobustAveraging
from strategies.robust_momentum_sgd import RobustMomentumSGD
from strategies.robust_sgd import RobustSGD
from strategies.rosdhb import RoSDHB, RoSDHBLocal
from strategies.schedules import CosineSchedule, LinearSchedule, SqrtSchedule, StepSchedule
from strategies.server_step import ServerAdam, ServerMomentum
from strategies.vectors import norm

__all__ = [
    "Aggregator",
    "Ask",
    "ByzDM21",
    "ByzDashaPage",
    "ByzEF21",
    "ByzEF21BC",
    "ByzEF21SGDM",
    "ByzNSGDM",
    "ByzVRMarina",
    "ByzVRMarina2",
    "ByzVRMarinaPP",
    "Combined",
    "Compressor",
    "CosineSchedule",
    "DeMoA",
    "Descent",
    "Evaluation",
    "Key",
    "LinearSchedule",
    "LocalSGD",
    "Method",
    "Oracle",
    "Packet",
    "PacketLayout",
    "Past",
    "Rejected",
    "Report",
    "RoSDHB",
    "RoSDHBLocal",
    "RobustAveraging",
    "RobustMomentumSGD",
    "RobustSGD",
    "Role",
    "Rows",
    "ServerAdam",
    "ServerMomentum",
    "SqrtSchedule",
    "StateLostError",
    "Stateful",
    "StepSchedule",
    "Vector",
    "Weights",
    "WorkerState",
    "aggregate",
    "examine",
    "gradient",
    "norm",
    "stack",
    "stream",
]
