"""Compressors Q: R^d -> R^d in two halves: what travels is a small packet and not the vector.

    import breakwater as bw

    quantiser = bw.compressors.QSGD(levels=4)
    packet = quantiser.compress(v, rng)
    quantiser.decompress(packet, v.dtype)

docs/catalogue.md lists them. A compressor of one's own has the methods of ``Compressor``.
"""

from strategies.compressors import QSGD, Identity, Masked, Natural, PermK, RandK, ScaledSign, TopK
from strategies.compressors.choices import Choice
from strategies.compressors.coordinates import draw_seed
from strategies.compressors.packed import Packed
from strategies.operators import Compressor, Packet, PacketLayout, Vector

__all__ = [
    "QSGD",
    "Choice",
    "Compressor",
    "Identity",
    "Masked",
    "Natural",
    "Packed",
    "Packet",
    "PacketLayout",
    "PermK",
    "RandK",
    "ScaledSign",
    "TopK",
    "Vector",
    "draw_seed",
]
