"""The table of the methods that a config can name; a new one is one name here."""

from strategies.byz_dasha_page import ByzDashaPage
from strategies.byz_dm21 import ByzDM21
from strategies.byz_ef21 import ByzEF21, ByzEF21BC
from strategies.byz_ef21_sgdm import ByzEF21SGDM
from strategies.byz_nsgdm import ByzNSGDM
from strategies.byz_vr_marina import ByzVRMarina
from strategies.byz_vr_marina_2 import ByzVRMarina2
from strategies.byz_vr_marina_pp import ByzVRMarinaPP
from strategies.demoa import DeMoA
from strategies.local_sgd import LocalSGD
from strategies.method import Method
from strategies.robust_momentum_sgd import RobustMomentumSGD
from strategies.robust_sgd import RobustSGD
from strategies.rosdhb import RoSDHB, RoSDHBLocal

MARINA = (ByzVRMarinaPP, ByzVRMarina, ByzVRMarina2)
DESCENT = (RobustSGD, RobustMomentumSGD, LocalSGD)
ESTIMATES = (ByzDashaPage, ByzEF21, ByzEF21BC, ByzEF21SGDM, ByzDM21)
METHODS: tuple[type[Method], ...] = (*MARINA, *DESCENT, *ESTIMATES, RoSDHB, RoSDHBLocal, DeMoA, ByzNSGDM)
