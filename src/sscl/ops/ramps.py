"""Weights that grow at the beginning of training."""

import math


def sigmoid_rampup(current: float, length: float) -> float:
    """exp(-5 (1 - t/T)^2): 0.0067 at the start, 1 from `length` on (Laine and Aila, ICLR 2017)."""
    if length <= 0:
        return 1.0
    remaining = 1 - min(max(current, 0), length) / length
    return math.exp(-5 * remaining**2)
