"""Units of length, and which lengths a pixel of a microscope can have. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

INCH_UM = Fraction(25_400)
POWERS_OF_TEN = (
    "Ym 24, Zm 21, Em 18, Pm 15, Tm 12, Gm 9, Mm 6, km 3, hm 2, dam 1, m 0, "
    "dm -1, cm -2, mm -3, µm -6, nm -9, pm -12, fm -15, am -18, zm -21, ym -24"
)
UM_PER_UNIT: Mapping[str, Fraction] = {
    **{unit: Fraction(10) ** (int(power) + 6) for unit, power in map(str.split, POWERS_OF_TEN.split(","))},
    "Å": Fraction(1, 10_000),
    "thou": INCH_UM / 1000,
    "li": INCH_UM / 12,
    "in": INCH_UM,
    "ft": INCH_UM * 12,
    "yd": INCH_UM * 36,
    "mi": INCH_UM * 63_360,
    "pt": INCH_UM / 72,
    "ua": Fraction(149_597_870_700) * 10**6,
    "ly": Fraction(9_460_730_472_580_800) * 10**6,
    "pc": Fraction(30_856_775_814_913_673) * 10**6,
}
"""Exact micrometres in each unit of OME's UnitsLength; "pixel" and "reference frame" are no lengths and are absent."""
NO_LENGTH = frozenset({"pixel", "reference frame"})
SMALLEST_UM = 0.001
"""Below this four decimals, all that an Aperio MPP has, say nothing."""
LARGEST_UM = 50.0
"""A whole-slide overview is 15 to 30 um/px (the corpus has a DICOM volume of 28.97); nothing a microscope calls a scan
is coarser."""
