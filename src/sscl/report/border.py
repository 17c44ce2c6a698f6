"""How often voxels near the reference's border are wrong, and the others: by case, by experiment, as differences."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from sscl.metrics.border import REACH, BorderCounts
from sscl.metrics.table import csv_rows
from sscl.report.layout import Table
from sscl.report.statistics import Interval, Scores, paired_difference


@dataclass(frozen=True)
class CaseRow:
    """One case as one run of an experiment predicted it."""

    run: str
    experiment: str
    seed: int
    case: str
    counts: BorderCounts
    failed: bool = False
    """One of its masks is empty and the reference's is not, or the other way round. Both rates are then 1: an empty
    mask has few wrong voxels away from the border, fewer than many a poor one."""


@dataclass(frozen=True)
class Rate:
    """Wrong voxels as a part of a region's, 0 to 1: the mean over seeds and cases (None: no case has such a region),
    and its difference to the baseline (None: this is the baseline, or there is no mean)."""

    mean: float | None
    difference: Interval | None


@dataclass(frozen=True)
class RateRow:
    """One experiment. share_near: part of all its wrong voxels that lies near the border; None if none is wrong."""

    experiment: str
    baseline: str
    num_seeds: int
    num_cases: int
    num_failed: int
    near: Rate
    elsewhere: Rate
    share_near: float | None


def border_csv(rows: Sequence[CaseRow]) -> str:
    """The text of border.csv: one row per run and case."""
    counted = ("wrong_near", "voxels_near", "wrong_elsewhere", "voxels_elsewhere")
    lines = ((r.run, r.experiment, r.seed, r.case, *vars(r.counts).values(), int(r.failed)) for r in rows)
    return csv_rows([("run", "method", "seed", "case", *counted, "failed"), *lines])


def rate_rows(rows: Sequence[CaseRow]) -> list[RateRow]:
    """One row per experiment, in order; the first is the baseline of the paired differences of all others.

    A region that a case does not have (no border where the organ is absent) is left out of that region's means: the
    reference alone decides that, so it is left out of every experiment's.

    Raises:
        UserError: the runs hold different cases.
    """
    by_experiment: dict[str, list[CaseRow]] = defaultdict(list)
    for row in rows:
        by_experiment[row.experiment].append(row)
    baseline = next(iter(by_experiment))
    regions = [_rates(by_experiment, baseline, region) for region in ("rate_near", "rate_elsewhere")]
    return [
        RateRow(
            experiment=name,
            baseline=baseline,
            num_seeds=len({row.seed for row in group}),
            num_cases=len({row.case for row in group}),
            num_failed=sum(row.failed for row in group),
            near=regions[0][name],
            elsewhere=regions[1][name],
            share_near=_share_near([row.counts for row in group]),
        )
        for name, group in by_experiment.items()
    ]


def border_table(rows: Sequence[RateRow], notes: Sequence[str] = ()) -> Table:
    """`rate_rows` as a table, with what its numbers mean and further notes below."""
    head = [
        *("method", "seeds", "cases", "failed", "wrong near the border, %", "difference, points (95 % interval)"),
        *("wrong elsewhere, %", "difference, points (95 % interval)", "share of the wrong voxels that is near, %"),
    ]
    body = [
        [
            *(row.experiment, str(row.num_seeds), str(row.num_cases), str(row.num_failed)),
            *(_percent(row.near.mean, 2), _difference(row, row.near, 2)),
            *(_percent(row.elsewhere.mean, 4), _difference(row, row.elsewhere, 4)),
            _percent(row.share_near, 1),
        ]
        for row in rows
    ]
    return Table("Wrong voxels near the reference's border and elsewhere", head, body, [*_explained(rows), *notes])


def _explained(rows: Sequence[RateRow]) -> list[str]:
    """The lines below the table."""
    lines = [
        f"Near: a voxel of another class lies within {REACH:g} voxels, centre to centre, in the reference. Rates are "
        "means over seeds and cases of wrong voxels / voxels of the region.",
        f"Differences to {rows[0].baseline}, the same cases paired; bootstrap over cases and seeds. "
        "Less than 0: fewer wrong voxels.",
        "failed: cases, over all seeds, of which a mask is empty where the reference's is not, or the other way round. "
        "Both rates of such a case are 100 %; the share is of the voxels as they are.",
    ]
    if min(row.num_seeds for row in rows) == 1:
        lines.append("With one seed an interval speaks of these trainings only, not of the methods.")
    short = {
        f"{row.near.difference.num_cases} of {row.num_cases}"
        for row in rows
        if row.near.difference is not None and row.near.difference.num_cases < row.num_cases
    }
    return lines + [f"The rates near the border are of {count} cases: the others have none." for count in sorted(short)]


def _rates(groups: dict[str, list[CaseRow]], baseline: str, region: str) -> dict[str, Rate]:
    scores = {name: _scores(group, region) for name, group in groups.items()}
    return {
        name: Rate(_mean(own), paired_difference(own, scores[baseline]) if name != baseline and own else None)
        for name, own in scores.items()
    }


def _scores(group: Sequence[CaseRow], region: str) -> Scores:
    """Rates by seed and case, of the cases that have the region."""
    scores: dict[int, dict[str, float]] = defaultdict(dict)
    for row in group:
        rate = getattr(row.counts, region)
        if rate is not None:
            scores[row.seed][row.case] = 1.0 if row.failed else rate
    return scores


def _mean(scores: Scores) -> float | None:
    values = [value for cases in scores.values() for value in cases.values()]
    return sum(values) / len(values) if values else None


def _share_near(counts: Sequence[BorderCounts]) -> float | None:
    near, elsewhere = sum(c.wrong_near for c in counts), sum(c.wrong_elsewhere for c in counts)
    return near / (near + elsewhere) if near + elsewhere else None


def _percent(value: float | None, digits: int) -> str:
    return "n/a" if value is None else f"{100 * value:.{digits}f}"


def _difference(row: RateRow, rate: Rate, digits: int) -> str:
    if rate.difference is None:
        return "baseline" if row.experiment == row.baseline else "n/a"
    mean, low, high = (
        f"{100 * value:+.{digits}f}" for value in (rate.difference.mean, rate.difference.low, rate.difference.high)
    )
    return f"{mean} ({low} to {high})"
