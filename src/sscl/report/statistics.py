"""How sure a difference between two methods is, over cases and over seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from sscl.core.errors import UserError

Scores = Mapping[int, Mapping[str, float]]
"""seed -> case -> score."""

_RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """A mean and its bootstrap interval, in the unit of the scores, and what it rests on."""

    mean: float
    low: float
    high: float
    num_cases: int
    num_seeds: int


def paired_difference(ours: Scores, baseline: Scores, level: float = 0.95, seed: int = 0) -> Interval:
    """Mean of ours - baseline with a bootstrap interval over cases and seeds (percentiles of 10,000 resamples).

    Only the seeds that both sides have count (`same_seeds`). A resample draws the cases anew, the same ones for both
    sides (the same patient is hard or easy for both), and the seeds of each side anew, apart (equal seeds do not make
    two methods' runs alike). Resampling rows and columns of a
    table is the pigeonhole bootstrap (Owen 2007, doi:10.1214/07-AOAS122). Of n things it draws n - 1: n would spread
    sqrt((n-1)/n) of what they should, which for few seeds is far too little (Hesterberg 2015, narrowness bias,
    doi:10.1080/00031305.2015.1089789). A score never has a negative weight, so if one of ours falls, the mean falls and
    no end of the interval rises: a missed case makes nothing look better.

    In simulations with 3 to 5 seeds and 8 to 20 cases the 95 % interval held the truth in 87 to 97 % of the trials,
    with 2 seeds in 71 (where seeds decide nearly all) to 96 %. With one seed it speaks of these two trainings only: the
    spread between trainings cannot be seen.

    Args:
        ours, baseline: finite scores; every seed of both holds the same cases.
        level: share of the interval, between 0 and 1.
        seed: of the resampling; the result is a function of the arguments.

    Raises:
        UserError: no seed, no case, different cases, or a score that is no finite number.
    """
    ours, baseline = same_seeds(ours, baseline)
    cases = _common_cases(ours, baseline)
    a, b = _table(ours, cases), _table(baseline, cases)
    rng = np.random.default_rng(seed)
    of_cases = _weights(len(cases), rng)
    means = _resampled(a, of_cases, rng) - _resampled(b, of_cases, rng)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(a.mean() - b.mean()), float(low), float(high), len(cases), min(len(a), len(b)))


def same_seeds(ours: Scores, baseline: Scores) -> tuple[Scores, Scores]:
    """Both sides with the seeds that both have, so that a side that was trained more often is not judged by more draws;
    where they share none, as they are."""
    same = sorted(ours.keys() & baseline.keys())
    return ({seed: ours[seed] for seed in same}, {seed: baseline[seed] for seed in same}) if same else (ours, baseline)


def _resampled(scores: NDArray[np.float64], of_cases: NDArray[np.float64], rng: np.random.Generator) -> Any:
    """Mean of a (seeds, cases) table by resample."""
    return np.sum((_weights(len(scores), rng) @ scores) * of_cases, axis=1)


def _weights(n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """(resamples, n): the share of the n - 1 draws that each one got; of one, all of them."""
    draws = max(1, n - 1)
    return rng.multinomial(draws, np.full(n, 1 / n), size=_RESAMPLES) / draws


def _common_cases(ours: Scores, baseline: Scores) -> list[str]:
    tables = [*ours.values(), *baseline.values()]
    if not ours or not baseline or not tables[0]:
        raise UserError("comparison: there must be at least one seed and one case on either side.")
    for other in tables[1:]:
        if odd := set(tables[0]) ^ set(other):
            raise UserError(
                f"comparison: {', '.join(sorted(odd))} not scored in every run. Score the same cases in all."
            )
    return sorted(tables[0])


def _table(scores: Scores, cases: list[str]) -> NDArray[np.float64]:
    """(seeds, cases)."""
    table = np.array([[scores[seed][case] for case in cases] for seed in sorted(scores)], dtype=np.float64)
    if not np.isfinite(table).all():
        raise UserError("comparison: a score is not a finite number; only such scores can be compared.")
    return table


def wilcoxon(ours: Mapping[str, float], baseline: Mapping[str, float]) -> float:
    """p of Wilcoxon's signed-rank test, two-sided, paired by case; 1 where no case differs.

    It speaks of these trainings' mean over seeds and of other cases like these, not of other trainings.
    """
    if ours.keys() != baseline.keys():
        raise UserError("comparison: the two sides were scored on different cases. Score the same cases in both.")
    differences = np.array([ours[case] - baseline[case] for case in sorted(ours)])
    if not np.any(differences):
        return 1.0
    return float(stats.wilcoxon(differences, zero_method="zsplit").pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): the k-th smallest of m is multiplied by m - k + 1, never below a smaller one.

    With all corrected values below a level, the chance of any false finding among them is below it.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected
