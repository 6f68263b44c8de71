"""What Byzantine clients send: the attacks of the literature, and the faults of a broken client.

    import breakwater as bw

    config = bw.Config(..., attack=bw.attacks.ALIE())

docs/catalogue.md lists them. An attack of one's own derives from ``Attack``.
"""

from attacks.adaptive import ROP, Fang, Mimic, MinMax, MinSum, OptimalALIE, OptimalIPM
from attacks.attack import Attack
from attacks.backdoor import Replace
from attacks.classical import ALIE, FOE, IPM, Big, BitFlip, Gaussian, Infinity, LabelFlip, NaN, ShiftBack, Silence, Zero
from attacks.faults import WireFault
from attacks.view import Sight, View
from strategies.operators import Packet, Vector

__all__ = [
    "ALIE",
    "FOE",
    "IPM",
    "ROP",
    "Attack",
    "Big",
    "BitFlip",
    "Fang",
    "Gaussian",
    "Infinity",
    "LabelFlip",
    "Mimic",
    "MinMax",
    "MinSum",
    "NaN",
    "OptimalALIE",
    "OptimalIPM",
    "Packet",
    "Replace",
    "ShiftBack",
    "Sight",
    "Silence",
    "Vector",
    "View",
    "WireFault",
    "Zero",
]
