"""What many measurements say together: medians with their spread, and ratios within a round."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, and how far the numbers lie apart."""

    median: float
    low: float
    high: float
    first_quartile: float
    third_quartile: float
    count: int

    def text(self, digits: int = 2) -> str:
        """ "1.23 (1.20-1.31)"; a single number has no spread."""
        if self.count == 1:
            return f"{self.median:.{digits}f}"
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}-{self.high:.{digits}f})"


def spread(numbers: Sequence[float]) -> Spread:
    """Of at least one number; quartiles include the ends. Raises ValueError for none."""
    if not numbers:
        raise ValueError("nothing was measured")
    if len(numbers) == 1:
        only = float(numbers[0])
        return Spread(only, only, only, only, only, 1)
    first, middle, third = statistics.quantiles(numbers, n=4, method="inclusive")
    return Spread(middle, min(numbers), max(numbers), first, third, len(numbers))


def ratios(those: Sequence[float], ours: Sequence[float]) -> list[float]:
    """``those`` over ``ours``, round by round: what slows a whole round down is in both. A contender that was stopped
    early is compared with the rounds it took part in."""
    return [their / our for their, our in zip(those, ours, strict=False)]
